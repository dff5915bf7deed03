"""Settings of a passage encoder."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError, did_you_mean
from memlm.models.base import MemlmConfig, require_positive
from memlm.models.layers.backbone import BACKBONES
from memlm.models.layers.bottleneck import LastToken, Penultimate

POOLINGS = {"last_token": LastToken, "penultimate": Penultimate}
OBJECTIVES = ("next_token", "retrieval")


@strict
class PassageEncoderConfig(MemlmConfig):
    """An encoder of at most `chunk_length` tokens whose one hidden state stands for all of them.

    Raises:
        ConfigError: unknown kinds, sizes below one, heads that do not divide the width.
    """

    model_type = "memlm_passage_encoder"

    vocab_size: int = 1024
    chunk_length: int = 64
    hidden_size: int = 192
    backbone: str = "mixer"
    num_layers: int = 2
    num_heads: int = 16
    kernel_size: int = 1
    causal: bool = True
    intermediate_size: int | None = None
    pooling: str = "penultimate"
    """Whose hidden state is the vector: `last_token`, or `penultimate` (the paper's choice for causal models)."""
    objective: str = "next_token"
    """What training asks for: `next_token`, or `retrieval` (a stretch of the passage must find it)."""
    temperature: float = 0.02
    """Of retrieval; the paper's."""
    memories_per_chunk: int = 1
    """One vector per passage; what the poolings read."""
    initializer_range: float = 0.02
    attention_implementation: str = "sdpa"
    learned_positions: bool = False
    """Llama layers get a learnt vector of each position beside their rotary ones; mixers know positions anyway."""
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that cannot be."""
        require_positive(self, "vocab_size", "chunk_length", "hidden_size", "num_heads")
        for name, known in (("backbone", BACKBONES), ("pooling", POOLINGS), ("objective", OBJECTIVES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name} '{value}'. {did_you_mean(value, known)}")
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be divisible by num_heads ({self.num_heads}).")
        if self.memories_per_chunk != 1:
            raise ConfigError(f"memories_per_chunk ({self.memories_per_chunk}) must be 1 for a passage encoder.")
