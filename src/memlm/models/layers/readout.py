"""Memories become the decoder's inputs.

repeated      every position gets the memory of its stretch
windowed      position i gets elements i, i+1, ... of it, half its width, wrapping (the paper's unrolled embedding)
prefix        the memories stand before L blank positions
slices, positionwise  each position has a linear map of its own out of the memories (memlm.models.layers.bottleneck)

A readout turns `memories` vectors of `numbers` numbers into `length` vectors of `width` numbers; `rank` is the number
of numbers that each position of the positionwise readout reads.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

Memories = Float[Tensor, "chunks memories numbers"]
DecoderInputs = Float[Tensor, "chunks slots_and_tokens width"]


class Repeated(nn.Module):
    """Every position of a stretch gets the same vector."""

    prefix_slots = 0

    def __init__(self, *, length: int, width: int, memories: int, numbers: int, rank: int) -> None:
        super().__init__()
        self.stretch = length // memories
        self.up = nn.Identity() if numbers == width else nn.Linear(numbers, width)

    def forward(self, memories: Memories) -> DecoderInputs:
        """Return (chunks, length, width) from memories (chunks, memories, numbers)."""
        return self.up(memories).repeat_interleave(self.stretch, dim=1)


class Windowed(nn.Module):
    """The paper's unrolled embedding (2.9): half the elements, starting one further at each position, then one linear.

    Windows repeat where the width is smaller than a stretch, so the width should be at least the stretch's length.
    """

    prefix_slots = 0

    def __init__(self, *, length: int, width: int, memories: int, numbers: int, rank: int) -> None:
        super().__init__()
        self.repeat = Repeated(length=length, width=width, memories=memories, numbers=numbers, rank=rank)
        self.spread = nn.Linear(width // 2, width)

    def forward(self, memories: Memories) -> DecoderInputs:
        """Return (chunks, length, width) from memories (chunks, memories, numbers)."""
        repeated = self.repeat(memories)
        chunks, length, width = repeated.shape
        starts = torch.arange(length, device=memories.device) % self.repeat.stretch
        windows = (starts[:, None] + torch.arange(width // 2, device=memories.device)) % width
        return self.spread(repeated.gather(-1, windows.expand(chunks, -1, -1)))


class Prefix(nn.Module):
    """The memories stand first, then one learned blank vector at each position to be written."""

    def __init__(self, *, length: int, width: int, memories: int, numbers: int, rank: int) -> None:
        super().__init__()
        self.prefix_slots, self.length = memories, length
        self.up = nn.Identity() if numbers == width else nn.Linear(numbers, width)
        self.blank = nn.Parameter(torch.randn(width))

    def init_own_weights(self) -> None:
        """Initialise the blank vector."""
        init.normal_(self.blank)

    def forward(self, memories: Memories) -> DecoderInputs:
        """Return (chunks, memories + length, width) from memories (chunks, memories, numbers)."""
        slots = self.up(memories)
        return torch.cat([slots, self.blank.to(slots.dtype).expand(len(slots), self.length, -1)], dim=1)


class SlicesReadout(nn.Module):
    """Each group of positions has its own map out of its slice of the memory."""

    prefix_slots = 0

    def __init__(self, *, length: int, width: int, memories: int, numbers: int, rank: int) -> None:
        super().__init__()
        self.length = length
        groups = math.gcd(length, memories * numbers)
        self.maps = nn.Parameter(torch.empty(groups, memories * numbers // groups, length // groups * width))

    def init_own_weights(self) -> None:
        """Initialise all maps alike; they keep the variance."""
        init.normal_(self.maps, std=self.maps.shape[1] ** -0.5)
        init.copy_(self.maps, self.maps[:1].expand_as(self.maps))

    def forward(self, memories: Memories) -> DecoderInputs:
        """Return (chunks, length, width) from memories (chunks, memories, numbers)."""
        slices = memories.reshape(len(memories), *self.maps.shape[:2])
        read = (slices.transpose(0, 1) @ self.maps).transpose(0, 1)
        return read.reshape(len(memories), self.length, -1)


class PositionwiseReadout(nn.Module):
    """All memories together are split into `rank` numbers per position, and each position has its own map."""

    prefix_slots = 0

    def __init__(self, *, length: int, width: int, memories: int, numbers: int, rank: int) -> None:
        super().__init__()
        self.split = nn.Linear(memories * numbers, length * rank)
        self.maps = nn.Parameter(torch.empty(length, rank, width))

    def init_own_weights(self) -> None:
        """Initialise the maps, which keep the variance."""
        init.normal_(self.maps, std=self.maps.shape[1] ** -0.5)

    def forward(self, memories: Memories) -> DecoderInputs:
        """Return (chunks, length, width) from memories (chunks, memories, numbers)."""
        read = self.split(memories.flatten(1)).unflatten(1, (len(self.maps), -1))
        return (read.transpose(0, 1) @ self.maps).transpose(0, 1)


READOUTS = {
    "repeated": Repeated,
    "windowed": Windowed,
    "prefix": Prefix,
    "positionwise": PositionwiseReadout,
    "slices": SlicesReadout,
}
