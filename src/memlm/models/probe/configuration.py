"""Settings of a probe decoder."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError, did_you_mean
from memlm.models.base import MemlmConfig, require_positive
from memlm.models.layers.backbone import BACKBONES


@strict
class ProbeConfig(MemlmConfig):
    """A decoder from one vector of `vector_size` numbers to `length` tokens.

    Raises:
        ConfigError: sizes below one, or heads that do not divide the width.
    """

    model_type = "memlm_probe"

    vocab_size: int = 1024
    """Classes: tokens that occur in training passages, and one for all others."""
    length: int = 64
    """Tokens to give back."""
    vector_size: int = 256
    """Numbers in the vector."""
    readout_rank: int = 8
    """Numbers that each position reads out of the vector."""
    hidden_size: int = 192
    num_layers: int = 2
    backbone: str = "mixer"
    num_heads: int = 16
    kernel_size: int = 1
    causal: bool = True
    intermediate_size: int | None = None
    initializer_range: float = 0.02
    attention_implementation: str = "sdpa"
    learned_positions: bool = False
    tie_word_embeddings: bool = False

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that cannot be."""
        require_positive(self, "vocab_size", "length", "vector_size", "readout_rank", "hidden_size", "num_heads")
        if self.backbone not in BACKBONES:
            raise ConfigError(f"unknown backbone '{self.backbone}'. {did_you_mean(self.backbone, BACKBONES)}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be divisible by num_heads ({self.num_heads}).")
