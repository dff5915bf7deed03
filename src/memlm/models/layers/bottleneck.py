"""Hidden states of a chunk become its memories.

Departures from a pooled sentence embedding:
- M vectors per chunk, each standing for its own stretch of the chunk (`learned_slots` apart, which may look anywhere)
- padding is never read; a stretch without text gives a zero vector before the projection
- `slices` and `positionwise`: each position has a linear map of its own into the memory (see `positionwise`)
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from memlm.models.layers.positionwise import Positionwise, Slices


class QuantizationNoise(nn.Module):
    """Adds uniform noise as wide as one step of rounding to `bits` bits with one scale per vector."""

    def __init__(self, bits: int | None) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch numbers"]:
        """In training `x` plus centred noise; otherwise, or with no bits set, `x` itself."""
        if self.bits is None or not self.training:
            return x
        step = x.detach().abs().amax(-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        return x + (torch.rand_like(x) - 0.5) * step


Chunks = Float[Tensor, "chunks tokens width"]
ChunkMask = Bool[Tensor, "chunks tokens"]
Pooled = Float[Tensor, "chunks memories pooled"]


@runtime_checkable
class PoolingSettings(Protocol):
    """The part of a configuration that taking one state from each stretch reads."""

    chunk_length: int
    hidden_size: int
    memories_per_chunk: int


@runtime_checkable
class BottleneckSettings(PoolingSettings, Protocol):
    """The part of a configuration that a bottleneck reads."""

    num_heads: int
    bottleneck: str
    bottleneck_size: int
    bottleneck_rank: int
    readout_rank: int
    noise_bits: int | None
    memory_activation: str


class StretchPooling(nn.Module):
    """Cuts the chunk into as many stretches as there are memories, and takes one vector from each."""

    def __init__(self, settings: PoolingSettings) -> None:
        super().__init__()
        self.chunk_length = settings.chunk_length
        self.num_memories = settings.memories_per_chunk
        self.pooled_size = settings.hidden_size

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Pooled:
        """(chunks, tokens, width) -> (chunks, memories, width)."""
        missing = self.chunk_length - hidden.shape[1]
        hidden = nn.functional.pad(hidden, (0, 0, 0, missing)).unflatten(1, (self.num_memories, -1))
        mask = nn.functional.pad(mask, (0, missing)).unflatten(1, (self.num_memories, -1))
        weights = self.weights(mask).to(hidden.dtype)
        readable = hidden.masked_fill(~mask[..., None], 0.0)
        return torch.einsum("cms,cmsd->cmd", weights, readable)

    def weights(
        self, mask: Bool[Tensor, "chunks memories stretch"]
    ) -> Float[Tensor, "chunks memories stretch"] | Bool[Tensor, "chunks memories stretch"]:
        """How much each position counts; the one thing a pooling has to say."""
        raise NotImplementedError


class LastToken(StretchPooling):
    """The last token of the stretch (the paper's choice for autoencoders)."""

    def weights(self, mask: Tensor) -> Tensor:
        """Which positions count, and how much."""
        return mask & (_tokens_after(mask) == 0)


class Penultimate(StretchPooling):
    """The last token but one, or the only one there is (the paper's choice for causal encoders)."""

    def weights(self, mask: Tensor) -> Tensor:
        """Which positions count, and how much."""
        wanted = (mask.sum(-1, keepdim=True) - 1).clamp(max=1)
        return mask & (_tokens_after(mask) == wanted)


class Mean(StretchPooling):
    """The mean of the stretch's tokens."""

    def weights(self, mask: Tensor) -> Tensor:
        """Which positions count, and how much."""
        return mask / mask.sum(-1, keepdim=True).clamp(min=1)


class LearnedSlots(nn.Module):
    """M learned queries attend over the chunk and return what they found."""

    def __init__(self, settings: BottleneckSettings) -> None:
        super().__init__()
        self.pooled_size = width = settings.hidden_size
        self.slots = nn.Parameter(torch.randn(settings.memories_per_chunk, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, settings.num_heads, batch_first=True)

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Pooled:
        """(chunks, tokens, width) -> (chunks, memories, width)."""
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        # an all-padding chunk has nothing to attend to, and softmax over nothing is NaN
        readable = mask | ~mask.any(-1, keepdim=True)
        queries = self.slots.expand(len(hidden), -1, -1)
        found, _ = self.attention(queries, hidden, hidden, key_padding_mask=~readable, need_weights=False)
        return found.masked_fill(~mask.any(-1)[:, None, None], 0.0)


BOTTLENECKS = {
    "last_token": LastToken,
    "penultimate": Penultimate,
    "mean": Mean,
    "learned_slots": LearnedSlots,
    "positionwise": Positionwise,
    "slices": Slices,
}


class MemoryWriter(nn.Module):
    """Pooling, then the projection to the memory's size, its activation, and quantisation noise in training."""

    def __init__(self, settings: BottleneckSettings) -> None:
        super().__init__()
        self.pooling = BOTTLENECKS[settings.bottleneck](settings)
        pooled, size = self.pooling.pooled_size, settings.bottleneck_size
        self.down = nn.Identity() if pooled == size else nn.Linear(pooled, size)
        self.noise = QuantizationNoise(settings.noise_bits)
        self.activation = ACTIVATIONS[settings.memory_activation](size)

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Float[Tensor, "chunks memories numbers"]:
        """Return the memories of hidden states (chunks, tokens, width)."""
        return self.noise(self.activation(self.down(self.pooling(hidden, mask))))


class RMSNormalised(nn.Module):
    """Scales each memory to a mean square of one."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; no parameters."""
        return nn.functional.rms_norm(x, (self.size,), eps=1e-6)


def _tanh(size: int) -> nn.Module:
    return nn.Tanh()


def _none(size: int) -> nn.Module:
    return nn.Identity()


ACTIVATIONS = {"none": _none, "tanh": _tanh, "rms_norm": RMSNormalised}


def _tokens_after(mask: Tensor) -> Tensor:
    """How many readable positions follow, within the stretch."""
    return mask.flip(-1).long().cumsum(-1).flip(-1) - 1
