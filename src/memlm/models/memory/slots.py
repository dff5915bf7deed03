"""Memories become the decoder's inputs, and groups of slots find their places. D documents, C chunks, G groups.

The layouts of the slots before each chunk's tokens:

- `aligned`: the newest group stands next to the tokens, and unused groups before it are masked. The distance between a
  token and the memory it needs is the same for every chunk.
- `fixed`: groups are filled from the left, oldest first (arXiv 2602.13466).
- `variable`: as `aligned`, but positions count from the first memory that is there (arXiv 2602.13466).
- `oracle`: as `aligned`, and each chunk's own memory stands next to its tokens, which shows what a memory could add.

An entry of a slot table is the chunk whose memory stands there, or UNUSED.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memlm.models.layers.readout import READOUTS
from memlm.models.memory.configuration import ChunkEncoderConfig, MemoryModelConfig

UNUSED: Final = -1


def slot_table(layout: str, *, chunks: int, groups: int) -> Int[Tensor, "chunks groups"]:
    """Whose memory each group of slots holds, for each of `chunks` chunks read one after the other.

    Args:
        layout: one of LAYOUTS.
        chunks: how many chunks a document has.
        groups: groups of slots in the decoder's input; where they are fewer than the earlier chunks, the newest stay.
    """
    chunk, group = torch.arange(chunks)[:, None], torch.arange(groups)
    if layout == "fixed":
        dropped = (chunk - groups).clamp(min=0)
        held = group + dropped
    else:
        held = group - groups + chunk + reads_own_chunk(layout)
    return torch.where((held >= 0) & (held < chunk + reads_own_chunk(layout)), held, UNUSED)


def reads_own_chunk(layout: str) -> bool:
    """Whether a chunk is read behind its own memory, which knows what comes."""
    return layout == "oracle"


def memory_blocks_needed(layout: str, *, chunks: int, trained: int) -> int:
    """Groups of slots for documents of so many chunks; as many as in training at least, so that positions stay.

    Args:
        layout: one of LAYOUTS.
        chunks: of the longest document.
        trained: chunks of a document in training.
    """
    most = max(chunks, trained)
    return most if layout == "fixed" or reads_own_chunk(layout) else most - 1


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
        writer = cast(ChunkEncoderConfig, config.encoder_config)
        width = config.decoder_config.hidden_size
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
            table: of memlm.models.memory.slots; it may name fewer chunks than there are slots.
        """
        used = table != UNUSED
        placed = slots[:, table.clamp(min=0)]
        filler = placed.new_ones(placed.shape[-1]) if self.filler is None else self.filler.to(placed.dtype)
        placed = torch.where(used[:, :, None, None], placed, filler)
        readable = used if self.masks_unused else torch.ones_like(used)
        return placed.flatten(2, 3), readable.repeat_interleave(self.per_chunk, dim=1)


HIDDEN_SHARE = 4
"""`hidden` gives one part in so many of the decoder's width to the memory."""


class Injection(nn.Module):
    """A chunk's own memories beside each of its tokens: added (`projection`), or part of their width (`hidden`).

    `hidden` is the paper's concatenation, its token table as much narrower: a token's last numbers give way.
    """

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        writer, width = cast(ChunkEncoderConfig, config.encoder_config), config.decoder_config.hidden_size
        self.concatenates = config.injection == "hidden"
        self.width = width // HIDDEN_SHARE if self.concatenates else width
        self.map = nn.Linear(writer.memories_per_chunk * writer.bottleneck_size, self.width, bias=False)

    def forward(
        self,
        tokens: Float[Tensor, "documents chunks length width"],
        memories: Float[Tensor, "documents chunks memories numbers"],
    ) -> Float[Tensor, "documents chunks length width"]:
        """Tokens that know their chunk's memories."""
        read = self.map(memories.flatten(2))[:, :, None].to(tokens.dtype)
        if not self.concatenates:
            return tokens + read
        return torch.cat([tokens[..., : -self.width], read.expand(-1, -1, tokens.shape[2], -1)], dim=-1)
