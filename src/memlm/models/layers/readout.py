"""Memories become the decoder's inputs.

repeated      every position gets the memory of its stretch
windowed      position i gets elements i, i+1, ... of it, half its width, wrapping (the paper's unrolled embedding)
prefix        the memories stand before L blank positions
slices, positionwise  each position has a linear map of its own out of the memories (memlm.models.layers.positionwise)
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memlm.models.layers.positionwise import PositionwiseReadout, SlicesReadout

Memories = Float[Tensor, "chunks memories numbers"]
DecoderInputs = Float[Tensor, "chunks slots_and_tokens width"]


@runtime_checkable
class ReadoutSettings(Protocol):
    """The part of a configuration that a readout reads."""

    chunk_length: int
    hidden_size: int
    bottleneck_size: int
    memories_per_chunk: int
    readout: str
    readout_rank: int


class Repeated(nn.Module):
    """Every position of a stretch gets the same vector."""

    prefix_slots = 0

    def __init__(self, settings: ReadoutSettings) -> None:
        super().__init__()
        self.stretch = settings.chunk_length // settings.memories_per_chunk
        same = settings.bottleneck_size == settings.hidden_size
        self.up = nn.Identity() if same else nn.Linear(settings.bottleneck_size, settings.hidden_size)

    def forward(self, memories: Memories) -> DecoderInputs:
        """(chunks, memories, numbers) -> (chunks, chunk_length, width)."""
        return self.up(memories).repeat_interleave(self.stretch, dim=1)


class Windowed(nn.Module):
    """The paper's unrolled embedding (2.9): half the elements, starting one further at each position, then one linear.

    Windows repeat where the width is smaller than a stretch, so the width should be at least the stretch's length.
    """

    prefix_slots = 0

    def __init__(self, settings: ReadoutSettings) -> None:
        super().__init__()
        width = settings.hidden_size
        self.repeat = Repeated(settings)
        self.spread = nn.Linear(width // 2, width)
        self.length = settings.chunk_length

    def forward(self, memories: Memories) -> DecoderInputs:
        """(chunks, memories, numbers) -> (chunks, chunk_length, width)."""
        repeated = self.repeat(memories)
        width = repeated.shape[-1]
        starts = torch.arange(self.length, device=memories.device) % self.repeat.stretch
        windows = (starts[:, None] + torch.arange(width // 2, device=memories.device)) % width
        return self.spread(repeated.gather(-1, windows.expand(len(repeated), -1, -1)))


class Prefix(nn.Module):
    """The memories stand first, then one learned blank vector at each position to be written."""

    def __init__(self, settings: ReadoutSettings) -> None:
        super().__init__()
        self.prefix_slots = settings.memories_per_chunk
        self.length = settings.chunk_length
        same = settings.bottleneck_size == settings.hidden_size
        self.up = nn.Identity() if same else nn.Linear(settings.bottleneck_size, settings.hidden_size)
        self.blank = nn.Parameter(torch.randn(settings.hidden_size))

    def forward(self, memories: Memories) -> DecoderInputs:
        """(chunks, memories, numbers) -> (chunks, memories + chunk_length, width)."""
        slots = self.up(memories)
        return torch.cat([slots, self.blank.to(slots.dtype).expand(len(slots), self.length, -1)], dim=1)


READOUTS = {
    "repeated": Repeated,
    "windowed": Windowed,
    "prefix": Prefix,
    "positionwise": PositionwiseReadout,
    "slices": SlicesReadout,
}


def naive_windows(memory: Float[Tensor, " width"], length: int) -> Float[Tensor, "length half"]:
    """The windows of the unrolled embedding, element by element: the oracle of the tests."""
    width = len(memory)
    return torch.stack([torch.stack([memory[(i + j) % width] for j in range(width // 2)]) for i in range(length)])
