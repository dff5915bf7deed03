"""Settings of a passage encoder."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError
from memlm.models.base import require_known, require_positive
from memlm.models.layers.bottleneck import LastToken, Penultimate
from memlm.models.layers.configuration import LayersConfig

POOLINGS = {"last_token": LastToken, "penultimate": Penultimate}
PASSAGE_OBJECTIVES = ("next_token", "retrieval")


@strict
class PassageEncoderConfig(LayersConfig):
    """An encoder of at most `chunk_length` tokens whose one hidden state stands for all of them.

    Raises:
        ConfigError: unknown kinds, sizes below one, heads that do not divide the width.
    """

    model_type = "memlm_passage_encoder"

    chunk_length: int = 64
    """Largest number of tokens in a passage."""
    num_layers: int = 2
    """Layers that read the tokens."""
    pooling: str = "penultimate"
    """Token whose hidden state is the vector: `last_token`, or `penultimate` (Badger's choice for causal models)."""
    objective: str = "next_token"
    """Objective in training: `next_token`, or `retrieval` (a stretch of the passage must find it)."""
    temperature: float = 0.02
    """Temperature of the retrieval loss."""
    memories_per_chunk: int = 1
    """One vector per passage; poolings read this field."""

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_positive(self, "chunk_length")
        require_known(self, pooling=POOLINGS, objective=PASSAGE_OBJECTIVES)
        if self.memories_per_chunk != 1:
            raise ConfigError(f"memories_per_chunk ({self.memories_per_chunk}) must be 1 for a passage encoder.")
