"""Settings of the text autoencoder."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_known
from memlm.models.layers.bottleneck import ChunkCodingConfig
from memlm.models.layers.readout import READOUTS


@strict
class TextAutoencoderConfig(ChunkCodingConfig):
    """One chunk of tokens becomes `memories_per_chunk` vectors of `bottleneck_size` numbers, and comes back.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys, unknown kinds.
    """

    model_type = "memlm_autoencoder"
    from_data: ClassVar[frozenset[str]] = MemlmConfig.from_data | {"freeze_embeddings"}

    num_decoder_layers: int = 2
    """Layers that write the tokens back."""
    readout: str = "slices"
    """How memories become the decoder's inputs."""
    freeze_embeddings: bool = False
    """Training leaves the token table as it is."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    @property
    def memory_size(self) -> int:
        """Numbers that all memories of one chunk hold together."""
        return self.memories_per_chunk * self.bottleneck_size

    @property
    def document_length(self) -> int:
        """Tokens of a row in training: one chunk."""
        return self.chunk_length

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_known(self, readout=READOUTS)
        if not 0 <= self.num_decoder_layers <= 512:
            raise ConfigError(f"num_decoder_layers ({self.num_decoder_layers}) must lie between 0 and 512.")
        if self.readout == "windowed" and self.hidden_size % 2:
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be even for the windowed readout.")
