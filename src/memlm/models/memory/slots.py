"""Memories become inputs of the decoder: slots in blocks of one chunk each, or vectors beside the chunk's own tokens.

The layouts of the slots before each chunk's tokens:

- `aligned`: the newest block is next to the tokens, and unused blocks before it are masked. The distance between a
  token and the memory it needs is the same for every chunk.
- `fixed`: blocks are filled from the left, oldest first (arXiv 2602.13466).
- `variable`: as `aligned`, but positions count from the first memory (arXiv 2602.13466).
- `oracle`: as `aligned`, and each chunk's own memory is next to its tokens, which shows what a memory could add.

An entry of a slot table is the chunk whose memory fills that block, or UNUSED.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from memlm.models.layers.readout import READOUTS
from memlm.models.memory.configuration import MemoryModelConfig

UNUSED: Final = -1


def slot_table(layout: str, *, chunks: int, memory_blocks: int) -> Int[Tensor, "chunks blocks"]:
    """Return the chunk whose memory fills each block of slots, for each chunk that is read.

    Args:
        layout: one of LAYOUTS.
        chunks: number of chunks in a document.
        memory_blocks: number of blocks in the decoder's input; if earlier chunks are more, the newest are kept.
    """
    chunk, block = torch.arange(chunks)[:, None], torch.arange(memory_blocks)
    if layout == "fixed":
        dropped = (chunk - memory_blocks).clamp(min=0)
        held = block + dropped
    else:
        held = block - memory_blocks + chunk + reads_own_chunk(layout)
    return torch.where((held >= 0) & (held < chunk + reads_own_chunk(layout)), held, UNUSED)


def reads_own_chunk(layout: str) -> bool:
    """Return whether a chunk is read behind its own memory, which contains the tokens to predict."""
    return layout == "oracle"


def memory_blocks_needed(layout: str, *, chunks: int, trained: int) -> int:
    """Return the number of blocks for a document, at least that of training, so that positions stay the same.

    Args:
        layout: one of LAYOUTS.
        chunks: number of chunks in the longest document.
        trained: number of chunks in a training document.
    """
    most = max(chunks, trained)
    return most if layout == "fixed" or reads_own_chunk(layout) else most - 1


def memory_shape(config: MemoryModelConfig) -> tuple[int, int]:
    """Return the shape (memories, numbers) of one chunk's memories."""
    return config.encoder_config.memories_per_chunk, config.encoder_config.bottleneck_size


def _readout(config: MemoryModelConfig, length: int) -> nn.Module:
    """Return a readout that writes `length` vectors of the decoder's width from one chunk's memories."""
    memories, numbers = memory_shape(config)
    sizes = {"length": length, "width": config.decoder_config.hidden_size, "rank": config.readout_rank}
    return READOUTS[config.readout](**sizes, memories=memories, numbers=numbers)


class SlotReadout(nn.Module):
    """Turns one chunk's memories into slots, and lays slots out before the tokens of each chunk."""

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        width = config.decoder_config.hidden_size
        self.slots = _readout(config, config.slots_per_chunk)
        self.per_chunk = config.slots_per_chunk
        self.masks_unused = config.filler == "masked"
        self.places = nn.Embedding(config.slots_per_chunk, width) if config.learned_positions else None
        self.filler = nn.Parameter(torch.ones(width)) if config.filler == "learned" else None

    def init_own_weights(self) -> None:
        """Initialise the filler of unused slots, if it is learned."""
        if self.filler is not None:
            init.ones_(self.filler)

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks slots width"]:
        """Return the slots of each chunk."""
        slots = self.slots(memories)
        return slots if self.places is None else slots + self.places.weight

    def place(
        self, slots: Float[Tensor, "documents chunks slots width"], table: Int[Tensor, "rows blocks"]
    ) -> tuple[Float[Tensor, "documents rows inputs width"], Bool[Tensor, "rows inputs"]]:
        """Return the slots before each chunk that is read, and which of them may be read.

        Args:
            slots: (documents, chunks, slots, width), of the chunks that were encoded.
            table: (rows, blocks), from `slot_table`.
        """
        used = table != UNUSED
        placed = slots[:, table.clamp(min=0)]
        filler = placed.new_ones(placed.shape[-1]) if self.filler is None else self.filler.to(placed.dtype)
        placed = torch.where(used[:, :, None, None], placed, filler)
        readable = used if self.masks_unused else torch.ones_like(used)
        return placed.flatten(2, 3), readable.repeat_interleave(self.per_chunk, dim=1)


HIDDEN_SHARE = 4
"""The `hidden` injection gives 1/HIDDEN_SHARE of the decoder's width to memories."""


class Injection(nn.Module):
    """Adds a chunk's memories to each of its tokens (`projection`), or replaces part of their width (`hidden`).

    `hidden` corresponds to concatenation with a narrower token table: the last numbers of each token are replaced.
    """

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        memories, numbers = memory_shape(config)
        width = config.decoder_config.hidden_size
        self.concatenates = config.injection == "hidden"
        self.width = width // HIDDEN_SHARE if self.concatenates else width
        self.map = nn.Linear(memories * numbers, self.width, bias=False)

    def forward(
        self,
        tokens: Float[Tensor, "documents chunks length width"],
        memories: Float[Tensor, "documents chunks memories numbers"],
    ) -> Float[Tensor, "documents chunks length width"]:
        """Return tokens that contain their chunk's memories."""
        read = self.map(memories.flatten(2))[:, :, None].to(tokens.dtype)
        if not self.concatenates:
            return tokens + read
        return torch.cat([tokens[..., : -self.width], read.expand(-1, -1, tokens.shape[2], -1)], dim=-1)


class ChunkPositionEmbedding(nn.Embedding):
    """A learned vector for each position in a chunk, added to the token there."""

    def __init__(self, length: int, width: int, std: float) -> None:
        super().__init__(length, width)
        self.std = std

    def init_own_weights(self) -> None:
        """Initialise the vectors at the scale of the tokens."""
        init.normal_(self.weight, std=self.std)


class ReconstructionHead(nn.Module):
    """Predicts a chunk's tokens from its memories alone: a readout, GELU and one linear layer."""

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        self.read = _readout(config, config.chunk_length)
        self.head = nn.Linear(config.decoder_config.hidden_size, config.encoder_config.vocab_size, bias=False)

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks tokens vocabulary"]:
        """Return the logits of each token of each chunk."""
        return self.head(F.gelu(self.read(memories)))
