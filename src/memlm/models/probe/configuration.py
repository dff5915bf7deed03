"""Settings of a probe decoder."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from memlm.models.base import require_positive
from memlm.models.layers.backbone import LayersConfig


@strict
class ProbeConfig(LayersConfig):
    """A decoder from one vector of `vector_size` numbers to `length` tokens.

    Raises:
        ConfigError: sizes below one, or heads that do not divide the width.
    """

    model_type = "memlm_probe"

    vocab_size: int = 1024
    """Number of classes: tokens that occur in training passages, and one for all others."""
    length: int = 64
    """Number of tokens to predict."""
    vector_size: int = 256
    """Numbers in the vector."""
    readout_rank: int = 8
    """Numbers that each position reads from the vector."""
    num_layers: int = 2
    """Layers of the decoder."""

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_positive(self, "length", "vector_size", "readout_rank")
