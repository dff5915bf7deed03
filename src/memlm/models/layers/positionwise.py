"""Memories that every position writes and reads through a linear map of its own.

In the paper all of a chunk is routed through one position's hidden state, and every position reads a shifted window of
it. Here nothing has to be routed:

    slices        hidden (L, D) ── own map, g positions together ──▶ own slice of the memory ── own map ──▶ (L, D)
    positionwise  hidden (L, D) ── own map D -> r ── join L*r -> W ──▶ memory ── split W -> L*r ── own map ──▶ (L, D)

With `slices` the memory is laid out along the chunk: G = gcd(L, W) groups of g = L/G positions with W/G numbers each,
all groups starting from the same map. It starts as an autoencoder of single tokens, learnt from every token at once;
the layers before and after then find out how neighbours can help. `positionwise` mixes all positions in one dense
layer, which has to be untangled first, and whose noise hurts every position at once (LOG.md has the measurements).
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import initialization as init


@runtime_checkable
class PositionwiseSettings(Protocol):
    """The part of a configuration that both directions read."""

    chunk_length: int
    hidden_size: int
    bottleneck_size: int
    bottleneck_rank: int
    memories_per_chunk: int
    readout_rank: int


class Slices(nn.Module):
    """Writes: each group of positions has its own map into its own slice of the memory."""

    def __init__(self, settings: PositionwiseSettings) -> None:
        super().__init__()
        numbers = settings.memories_per_chunk * settings.bottleneck_size
        groups = math.gcd(settings.chunk_length, numbers)
        together = settings.chunk_length // groups
        self.num_memories = settings.memories_per_chunk
        self.pooled_size = settings.bottleneck_size
        self.length = settings.chunk_length
        self.maps = nn.Parameter(torch.empty(groups, together * settings.hidden_size, numbers // groups))

    def forward(
        self, hidden: Float[Tensor, "chunks tokens width"], mask: Bool[Tensor, "chunks tokens"]
    ) -> Float[Tensor, "chunks memories numbers"]:
        """(chunks, tokens, width) -> (chunks, memories, numbers); masked positions write nothing."""
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        hidden = nn.functional.pad(hidden, (0, 0, 0, self.length - hidden.shape[1]))
        grouped = hidden.reshape(len(hidden), *self.maps.shape[:2])
        written = (grouped.transpose(0, 1) @ self.maps).transpose(0, 1)
        return written.reshape(len(hidden), self.num_memories, self.pooled_size)


class SlicesReadout(nn.Module):
    """Reads: each group of positions has its own map out of its slice."""

    prefix_slots = 0

    def __init__(self, settings: PositionwiseSettings) -> None:
        super().__init__()
        numbers = settings.memories_per_chunk * settings.bottleneck_size
        groups = math.gcd(settings.chunk_length, numbers)
        together = settings.chunk_length // groups
        self.length = settings.chunk_length
        self.maps = nn.Parameter(torch.empty(groups, numbers // groups, together * settings.hidden_size))

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks tokens width"]:
        """(chunks, memories, numbers) -> (chunks, chunk_length, width)."""
        slices = memories.reshape(len(memories), *self.maps.shape[:2])
        read = (slices.transpose(0, 1) @ self.maps).transpose(0, 1)
        return read.reshape(len(memories), self.length, -1)


class Positionwise(nn.Module):
    """Writes: each position's own map to `rank` numbers; one layer joins all of them into the memories."""

    def __init__(self, settings: PositionwiseSettings) -> None:
        super().__init__()
        length, rank = settings.chunk_length, settings.bottleneck_rank
        self.num_memories = settings.memories_per_chunk
        self.pooled_size = settings.bottleneck_size
        self.maps = nn.Parameter(torch.empty(length, settings.hidden_size, rank))
        self.join = nn.Linear(length * rank, self.num_memories * settings.bottleneck_size)

    def forward(
        self, hidden: Float[Tensor, "chunks tokens width"], mask: Bool[Tensor, "chunks tokens"]
    ) -> Float[Tensor, "chunks memories numbers"]:
        """(chunks, tokens, width) -> (chunks, memories, numbers); masked positions write nothing."""
        tokens = hidden.shape[1]
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        written = (hidden.transpose(0, 1) @ self.maps[:tokens]).transpose(0, 1)
        written = nn.functional.pad(written, (0, 0, 0, len(self.maps) - tokens))
        return self.join(written.flatten(1)).unflatten(1, (self.num_memories, -1))


class PositionwiseReadout(nn.Module):
    """Reads: all memories together are split into `rank` numbers per position, and each position has its own map."""

    prefix_slots = 0

    def __init__(self, settings: PositionwiseSettings) -> None:
        super().__init__()
        length, rank = settings.chunk_length, settings.readout_rank
        self.split = nn.Linear(settings.memories_per_chunk * settings.bottleneck_size, length * rank)
        self.maps = nn.Parameter(torch.empty(length, rank, settings.hidden_size))

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks tokens width"]:
        """(chunks, memories, numbers) -> (chunks, chunk_length, width)."""
        read = self.split(memories.flatten(1)).unflatten(1, (len(self.maps), -1))
        return (read.transpose(0, 1) @ self.maps).transpose(0, 1)


PositionMaps = Slices | SlicesReadout | Positionwise | PositionwiseReadout


@torch.no_grad()
def start_maps(module: PositionMaps) -> None:
    """Variance-keeping maps; those of slices all start alike."""
    init.normal_(module.maps, std=module.maps.shape[1] ** -0.5)
    if isinstance(module, Slices | SlicesReadout):
        init.copy_(module.maps, module.maps[:1].expand_as(module.maps))
