"""Hidden states of a chunk become its memories.

Departures from a pooled sentence embedding:
- M vectors per chunk, each standing for its own stretch of the chunk (`learned_slots` apart, which may look anywhere)
- padding is never read; a stretch without text gives a zero vector before the projection
- `slices` and `positionwise` give each position a linear map of its own into the memory; the readouts of these names
  give it one out of the memory. In the paper all of a chunk is routed through one position's hidden state, and every
  position reads a shifted window of it. Here nothing has to be routed:

    slices        hidden (L, D) ── own map, g positions together ──▶ own slice of the memory ── own map ──▶ (L, D)
    positionwise  hidden (L, D) ── own map D -> r ── join L*r -> W ──▶ memory ── split W -> L*r ── own map ──▶ (L, D)

With `slices` the memory is laid out along the chunk: G = gcd(L, W) groups of g = L/G positions with W/G numbers each,
all groups starting from the same map. It starts as an autoencoder of single tokens, learnt from every token at once;
the layers before and after then find out how neighbours can help. `positionwise` mixes all positions in one dense
layer, which has to be untangled first, and whose noise hurts every position at once (LOG.md has the measurements).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import initialization as init

from memlm.errors import ConfigError
from memlm.models.base import require_divisible, require_known, require_positive
from memlm.models.layers.backbone import LayersConfig


class QuantizationNoise(nn.Module):
    """Uniform noise as wide as one step of rounding to `bits` bits with one scale per vector."""

    def __init__(self, bits: int | None) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch numbers"]:
        """Return `x` plus centred noise in training; otherwise, or with no bits set, `x` itself."""
        if self.bits is None or not self.training:
            return x
        step = x.detach().abs().amax(-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        return x + (torch.rand_like(x) - 0.5) * step


Chunks = Float[Tensor, "chunks tokens width"]
ChunkMask = Bool[Tensor, "chunks tokens"]
Pooled = Float[Tensor, "chunks memories numbers"]


@runtime_checkable
class PoolingSettings(Protocol):
    """The part of a configuration that a pooling of stretches reads."""

    chunk_length: int
    hidden_size: int
    memories_per_chunk: int


class StretchPooling(nn.Module):
    """Cuts the chunk into as many stretches as there are memories, and takes one vector from each."""

    def __init__(self, settings: PoolingSettings) -> None:
        super().__init__()
        self.chunk_length = settings.chunk_length
        self.num_memories = settings.memories_per_chunk
        self.pooled_size = settings.hidden_size

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Pooled:
        """Return (chunks, memories, width) from hidden states (chunks, tokens, width)."""
        missing = self.chunk_length - hidden.shape[1]
        hidden = nn.functional.pad(hidden, (0, 0, 0, missing)).unflatten(1, (self.num_memories, -1))
        mask = nn.functional.pad(mask, (0, missing)).unflatten(1, (self.num_memories, -1))
        weights = self._weights(mask).to(hidden.dtype)
        readable = hidden.masked_fill(~mask[..., None], 0.0)
        return torch.einsum("cms,cmsd->cmd", weights, readable)

    def _weights(self, mask: Tensor) -> Tensor:
        """Return the weight of each position, (chunks, memories, stretch)."""
        raise NotImplementedError


class LastToken(StretchPooling):
    """The last token of the stretch (the paper's choice for autoencoders)."""

    def _weights(self, mask: Tensor) -> Tensor:
        return mask & (_tokens_after(mask) == 0)


class Penultimate(StretchPooling):
    """The last token but one, or the only one there is (the paper's choice for causal encoders)."""

    def _weights(self, mask: Tensor) -> Tensor:
        tokens_after = (mask.sum(-1, keepdim=True) - 1).clamp(max=1)
        return mask & (_tokens_after(mask) == tokens_after)


class Mean(StretchPooling):
    """The mean of the stretch's tokens."""

    def _weights(self, mask: Tensor) -> Tensor:
        return mask / mask.sum(-1, keepdim=True).clamp(min=1)


class LearnedSlots(nn.Module):
    """M learned queries attend over the chunk and return what they found."""

    def __init__(self, settings: ChunkCodingConfig) -> None:
        super().__init__()
        self.pooled_size = width = settings.hidden_size
        self.slots = nn.Parameter(torch.randn(settings.memories_per_chunk, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, settings.num_heads, batch_first=True)

    def init_own_weights(self) -> None:
        """Initialise the queries."""
        init.normal_(self.slots, std=self.slots.shape[1] ** -0.5)

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Pooled:
        """Return (chunks, memories, width) from hidden states (chunks, tokens, width)."""
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        # an all-padding chunk has nothing to attend to, and softmax over nothing is NaN
        readable = mask | ~mask.any(-1, keepdim=True)
        queries = self.slots.expand(len(hidden), -1, -1)
        found, _ = self.attention(queries, hidden, hidden, key_padding_mask=~readable, need_weights=False)
        return found.masked_fill(~mask.any(-1)[:, None, None], 0.0)


class Slices(nn.Module):
    """Each group of positions has its own map into its own slice of the memory."""

    def __init__(self, settings: ChunkCodingConfig) -> None:
        super().__init__()
        self.num_memories, self.pooled_size = settings.memories_per_chunk, settings.bottleneck_size
        self.length = settings.chunk_length
        numbers = self.num_memories * self.pooled_size
        groups = math.gcd(self.length, numbers)
        self.maps = nn.Parameter(torch.empty(groups, self.length // groups * settings.hidden_size, numbers // groups))

    def init_own_weights(self) -> None:
        """Initialise all maps alike; they keep the variance."""
        init.normal_(self.maps, std=self.maps.shape[1] ** -0.5)
        init.copy_(self.maps, self.maps[:1].expand_as(self.maps))

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Pooled:
        """Return (chunks, memories, numbers) from (chunks, tokens, width); masked positions write nothing."""
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        hidden = nn.functional.pad(hidden, (0, 0, 0, self.length - hidden.shape[1]))
        grouped = hidden.reshape(len(hidden), *self.maps.shape[:2])
        written = (grouped.transpose(0, 1) @ self.maps).transpose(0, 1)
        return written.reshape(len(hidden), self.num_memories, self.pooled_size)


class Positionwise(nn.Module):
    """Each position has its own map to `bottleneck_rank` numbers; one layer joins all of them into the memories."""

    def __init__(self, settings: ChunkCodingConfig) -> None:
        super().__init__()
        length, rank = settings.chunk_length, settings.bottleneck_rank
        self.num_memories, self.pooled_size = settings.memories_per_chunk, settings.bottleneck_size
        self.maps = nn.Parameter(torch.empty(length, settings.hidden_size, rank))
        self.join = nn.Linear(length * rank, self.num_memories * self.pooled_size)

    def init_own_weights(self) -> None:
        """Initialise the maps, which keep the variance."""
        init.normal_(self.maps, std=self.maps.shape[1] ** -0.5)

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Pooled:
        """Return (chunks, memories, numbers) from (chunks, tokens, width); masked positions write nothing."""
        tokens = hidden.shape[1]
        hidden = hidden.masked_fill(~mask[..., None], 0.0)
        written = (hidden.transpose(0, 1) @ self.maps[:tokens]).transpose(0, 1)
        written = nn.functional.pad(written, (0, 0, 0, len(self.maps) - tokens))
        return self.join(written.flatten(1)).unflatten(1, (self.num_memories, -1))


BOTTLENECKS = {
    "last_token": LastToken,
    "penultimate": Penultimate,
    "mean": Mean,
    "learned_slots": LearnedSlots,
    "positionwise": Positionwise,
    "slices": Slices,
}


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "tanh": torch.tanh,
    "rms_norm": lambda x: nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6),
}


class MemoryWriter(nn.Module):
    """Pooling, then the projection to the memory's size, its activation, and quantisation noise in training."""

    def __init__(self, settings: ChunkCodingConfig) -> None:
        super().__init__()
        self.pooling = BOTTLENECKS[settings.bottleneck](settings)
        pooled, size = self.pooling.pooled_size, settings.bottleneck_size
        self.down = nn.Identity() if pooled == size else nn.Linear(pooled, size)
        self.noise = QuantizationNoise(settings.noise_bits)
        self.activation = settings.memory_activation

    def forward(self, hidden: Chunks, mask: ChunkMask) -> Float[Tensor, "chunks memories numbers"]:
        """Return the memories of hidden states (chunks, tokens, width)."""
        return self.noise(ACTIVATIONS[self.activation](self.down(self.pooling(hidden, mask))))


def _tokens_after(mask: Tensor) -> Tensor:
    """Return how many readable positions follow within the stretch."""
    return mask.flip(-1).long().cumsum(-1).flip(-1) - 1


@strict
class ChunkCodingConfig(LayersConfig):
    """An encoder that turns a chunk of tokens into `memories_per_chunk` vectors of `bottleneck_size` numbers."""

    chunk_length: int = 64
    """Largest number of tokens in a chunk."""
    num_encoder_layers: int = 2
    """Layers that read the tokens."""
    bottleneck: str = "slices"
    """How hidden states become memories."""
    bottleneck_size: int = 256
    """Numbers in one memory."""
    bottleneck_rank: int = 16
    """Numbers that each position contributes before all are joined (`positionwise` bottleneck)."""
    memories_per_chunk: int = 1
    """Memories that stand for one chunk."""
    readout_rank: int = 16
    """Numbers that each position reads (`positionwise` readout)."""
    noise_bits: int | None = None
    """Train with uniform noise as wide as one step of rounding to this many bits."""
    memory_activation: str = "none"
    """Function that bounds the numbers of a memory: `none`, `tanh` or `rms_norm`."""

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_positive(self, "chunk_length", "bottleneck_size", "bottleneck_rank", "memories_per_chunk")
        require_positive(self, "readout_rank")
        require_known(self, bottleneck=BOTTLENECKS, memory_activation=ACTIVATIONS)
        require_divisible(self, "chunk_length", "memories_per_chunk")
        if not 0 <= self.num_encoder_layers <= 512:
            raise ConfigError(f"num_encoder_layers ({self.num_encoder_layers}) must lie between 0 and 512.")
        if self.noise_bits is not None and not 2 <= self.noise_bits <= 16:
            raise ConfigError(f"noise_bits ({self.noise_bits}) must lie between 2 and 16.")
