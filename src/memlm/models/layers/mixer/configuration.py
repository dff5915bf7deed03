"""Settings of the masked mixer."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_positive


@strict
class MixerConfig(MemlmConfig):
    """A stack of masked mixer blocks (paper 2.11; Badger, arXiv 2409.01482).

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys.
    """

    model_type = "memlm_mixer"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012  (transformers reads a plain class attribute)

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int | None = None
    """Width of the feed-forward layer; four times the hidden size where not set."""
    num_hidden_layers: int = 4
    num_heads: int = 1
    """Independent token mixings per layer, each on its own part of the width; 1 is flat, without projections."""
    kernel_size: int = 1
    """Taps of the convolution along the width; each tap is one mixing matrix over positions."""
    max_position_embeddings: int = 64
    """Longest input: the mixing matrices are this large."""
    causal: bool = True
    """Whether a position sees only itself and those before it."""
    final_norm: bool = False
    """A layer norm after the last block; the paper has none."""
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def check(self) -> None:
        """Raise ConfigError for sizes that cannot be."""
        require_positive(self, "vocab_size", "hidden_size", "num_heads", "kernel_size", "max_position_embeddings")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be divisible by num_heads ({self.num_heads}).")
        if self.kernel_size > self.hidden_size // self.num_heads:
            width = self.hidden_size // self.num_heads
            raise ConfigError(f"kernel_size ({self.kernel_size}) must not exceed the width of a head ({width}).")
