"""Settings of the masked mixer."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_divisible, require_positive


@strict
class MixerConfig(MemlmConfig):
    """A stack of masked mixer blocks (Badger, arXiv 2409.01482).

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys.
    """

    model_type = "memlm_mixer"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012  (transformers reads a plain class attribute)

    from_data: ClassVar[frozenset[str]] = MemlmConfig.from_data | {"max_position_embeddings", "use_cache"}

    vocab_size: int = 1024
    hidden_size: int = 192
    """Width of the layers."""
    intermediate_size: int | None = None
    """Width of the feed-forward layer; four times the hidden size by default."""
    num_hidden_layers: int = 4
    """Number of layers."""
    num_heads: int = 1
    """Independent token mixings per layer, each on its own part of the width; 1 is flat, without projections."""
    kernel_size: int = 1
    """Taps of the convolution along the width; each tap is one mixing matrix over positions."""
    max_position_embeddings: int = 64
    """Longest input: the mixing matrices are this large."""
    causal: bool = True
    """Positions see only themselves and earlier ones."""
    final_norm: bool = False
    """Add a layer norm after the last block."""
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def check(self) -> None:
        """Raise ConfigError for sizes that do not exist or do not fit each other."""
        require_positive(self, "vocab_size", "hidden_size", "num_heads", "kernel_size", "max_position_embeddings")
        require_positive(self, "intermediate_size")
        require_divisible(self, "hidden_size", "num_heads")
        if not 0 <= self.num_hidden_layers <= 512:
            raise ConfigError(f"num_hidden_layers ({self.num_hidden_layers}) must lie between 0 and 512.")
        if self.kernel_size > self.hidden_size // self.num_heads:
            width = self.hidden_size // self.num_heads
            raise ConfigError(f"kernel_size ({self.kernel_size}) must not exceed the width of a head ({width}).")
