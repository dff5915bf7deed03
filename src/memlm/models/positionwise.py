"""Every position writes into the memory, and reads from it, through a linear map of its own.

In the paper all of a chunk is routed through one position's hidden state, and every position reads a shifted window of
it. Here nothing has to be routed: position t maps its hidden state to `rank` numbers, and one linear layer joins the
numbers of all positions into the memory. Reading mirrors it.

    hidden (L, D) ── own map D -> r ──▶ (L, r) ── join L*r -> W ──▶ memory (W) ── split W -> L*r ──▶ (L, r) ── own map r -> D ──▶ (L, D)

The start decides how fast it learns. With `slices` position t's numbers begin in their own slice of the memory, all
positions by the same map: the model starts as an autoencoder of single tokens, which is learnt from every token at once,
and only then finds out how positions share. With `random` it has to untangle a random mixture first: at equal tokens
24 % against 99.8 % token accuracy (LOG.md, "slices").
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import initialization as init

STARTS = ("slices", "random")


@runtime_checkable
class PositionwiseSettings(Protocol):
    """The part of a configuration that both directions read."""

    chunk_length: int
    hidden_size: int
    bottleneck_size: int
    bottleneck_rank: int
    memories_per_chunk: int
    readout_rank: int


class Positionwise(nn.Module):
    """Writes: each position's own map to `rank` numbers; all positions together make the memories."""

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

    def block(self, position: int) -> tuple[slice, slice]:
        """Rows and columns of the join's weight that carry this position's numbers into its slice."""
        rank = self.maps.shape[2]
        return own_slice(position, len(self.maps), self.join.out_features), slice(position * rank, (position + 1) * rank)


class PositionwiseReadout(nn.Module):
    """Reads: all memories together are split into `rank` numbers per position, and each position has its own map."""

    prefix_slots = 0

    def __init__(self, settings: PositionwiseSettings) -> None:
        super().__init__()
        length, rank = settings.chunk_length, settings.readout_rank
        self.join = nn.Linear(settings.memories_per_chunk * settings.bottleneck_size, length * rank)
        self.maps = nn.Parameter(torch.empty(length, rank, settings.hidden_size))

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks tokens width"]:
        """(chunks, memories, numbers) -> (chunks, chunk_length, width)."""
        read = self.join(memories.flatten(1)).unflatten(1, (len(self.maps), -1))
        return (read.transpose(0, 1) @ self.maps).transpose(0, 1)

    def block(self, position: int) -> tuple[slice, slice]:
        """Rows and columns of the join's weight that bring this position its slice."""
        rank = self.maps.shape[1]
        return slice(position * rank, (position + 1) * rank), own_slice(position, len(self.maps), self.join.in_features)


def own_slice(position: int, length: int, numbers: int) -> slice:
    """The stretch of the memory that a position starts with; neighbours overlap where there is less than one each."""
    width = -(-numbers // length)
    first = 0 if length == 1 else position * (numbers - width) // (length - 1)
    return slice(first, first + width)


@torch.no_grad()
def start_positionwise(module: Positionwise | PositionwiseReadout, kind: str) -> None:
    """Initialise one direction as `kind` says (STARTS)."""
    deviation = module.maps.shape[1] ** -0.5
    init.normal_(module.maps, std=deviation)
    if kind == "random":
        return
    init.copy_(module.maps, module.maps[:1].expand_as(module.maps))
    weight = torch.zeros_like(module.join.weight)
    rows, columns = module.block(0)
    shared = torch.empty(rows.stop - rows.start, columns.stop - columns.start, dtype=weight.dtype, device=weight.device)
    # orthogonal: whatever a position's numbers say at the start arrives without being squeezed
    nn.init.orthogonal_(shared)
    for position in range(len(module.maps)):
        rows, columns = module.block(position)
        weight[rows, columns] = shared
    init.copy_(module.join.weight, weight)
    init.zeros_(module.join.bias)
