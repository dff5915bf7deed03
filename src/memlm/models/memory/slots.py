"""Memories become the decoder's inputs, and groups of slots find their places. D documents, C chunks, G groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memlm.models.layers.readout import READOUTS
from memlm.models.memory.configuration import MemoryModelConfig
from memlm.models.memory.encoder_configuration import ChunkEncoderConfig
from memlm.models.memory.layout import UNUSED


@dataclass
class SlotSettings:
    """A readout writes `chunk_length` inputs of the decoder's width: here, one chunk's slots."""

    chunk_length: int
    hidden_size: int
    bottleneck_size: int
    bottleneck_rank: int
    memories_per_chunk: int
    readout: str
    readout_rank: int


class SlotReadout(nn.Module):
    """One chunk's memories -> K inputs of the decoder, and what stands where no memory is."""

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        writer = cast(ChunkEncoderConfig, config.writer)
        width = config.reader.hidden_size
        settings = SlotSettings(
            chunk_length=config.slots_per_chunk,
            hidden_size=width,
            bottleneck_size=writer.bottleneck_size,
            bottleneck_rank=config.readout_rank,
            memories_per_chunk=writer.memories_per_chunk,
            readout=config.readout,
            readout_rank=config.readout_rank,
        )
        self.slots = READOUTS[config.readout](settings)
        self.per_chunk = config.slots_per_chunk
        self.masks_unused = config.filler == "masked"
        self.places = nn.Embedding(config.slots_per_chunk, width) if config.learned_positions else None
        self.filler = nn.Parameter(torch.ones(width)) if config.filler == "learned" else None

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks slots width"]:
        """Slots of each chunk."""
        slots = self.slots(memories)
        return slots if self.places is None else slots + self.places.weight

    def place(
        self, slots: Float[Tensor, "documents chunks slots width"], table: Int[Tensor, "rows groups"]
    ) -> tuple[Float[Tensor, "documents rows inputs width"], Bool[Tensor, "rows inputs"]]:
        """Slots laid out for each chunk that is read, and which of them may be read.

        Args:
            slots: of the chunks that were encoded.
            table: of memlm.models.memory.layout; it may name fewer chunks than there are slots.
        """
        used = table != UNUSED
        placed = slots[:, table.clamp(min=0)]
        filler = placed.new_ones(placed.shape[-1]) if self.filler is None else self.filler.to(placed.dtype)
        placed = torch.where(used[:, :, None, None], placed, filler)
        readable = used if self.masks_unused else torch.ones_like(used)
        return placed.flatten(2, 3), readable.repeat_interleave(self.per_chunk, dim=1)
