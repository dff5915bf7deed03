"""Layouts of a decoder's memories in a store: keys and values of all layers, or one vector for each memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import DamagedStoreError
from memlm.models.slots import EncodingSettings, MemoryDecoder, SlotMemories
from memlm.models.slots.codes import rotated
from memlm.models.slots.memories import LayerSlots, packed
from memlm.models.slots.vectors import MemoryVectors
from memlm.store.format.document import SlotPlaces, StoredDocument, no_places
from memlm.store.format.header import SlotFormat
from memlm.store.quantize import Bits, QuantizedMemories, dequantize, quantize, rows_of

_AT_ONCE = 8
"""Chunks that are encoded at once."""
_ROUNDING = 0.01
"""Nats by which rounding to fp16 may lift a bias above its limit."""


class SlotLayout(Protocol):
    """A layout of the memories of chunks.

    Attributes:
        shape: vectors of a chunk, and numbers of a vector.
    """

    shape: tuple[int, int]

    def write(self, chunks: list[list[int]], bits: Bits) -> tuple[QuantizedMemories, SlotPlaces | None]:
        """Encode chunks and round their memories."""
        ...

    def read(self, document: StoredDocument, rows: Int[Tensor, " chunks"]) -> SlotMemories:
        """Return the memories of some chunks of a document, in order."""
        ...


class KeyValueLayout:
    """Keys and values of all layers and heads, behind a rotation that spreads large numbers.

    Args:
        model: the decoder.
        slots: sizes.
        encoding: how chunks are encoded.
    """

    def __init__(self, model: MemoryDecoder, slots: SlotFormat, encoding: EncodingSettings) -> None:
        self.model, self.slots, self.encoding = model, slots, encoding
        self.numbers = model.slot_sizes[2]
        self.shape = (slots.layers * slots.heads * 2 * slots.slots, self.numbers)

    def write(self, chunks: list[list[int]], bits: Bits) -> tuple[QuantizedMemories, SlotPlaces]:
        """Encode chunks as slots whose biases and values fit the rounded keys."""
        settings: dict[str, Any] = {**vars(self.encoding), "fit": replace(self.encoding.fit, bits=bits)}
        empty = no_places(self.slots)
        folded = [(torch.zeros(0, *self.shape), empty.bias, empty.positions)]
        for group in groups_of(chunks):
            memories = self.model.memories(group, tokens_per_memory=self.slots.tokens_per_memory, **settings)
            memories = memories.to(device=torch.device("cpu"))
            folded += [self._folded(memories, row, len(chunk)) for row, chunk in enumerate(group)]
        vectors, bias, positions = (torch.cat(parts) for parts in zip(*folded, strict=True))
        return quantize(vectors if bits == 16 else rotated(vectors), bits), SlotPlaces(bias, positions)

    def read(self, document: StoredDocument, rows: Int[Tensor, " chunks"]) -> SlotMemories:
        """Return the memories of some chunks of a document, each at its place in the document.

        Raises:
            DamagedStoreError: numbers that no decoder wrote.
        """
        starts = (document.tokens.cumsum(0) - document.tokens)[rows].long()[:, None, None]
        found: list[LayerSlots] = []
        first_slot, device = self._first_slot(), self.model.decoder.device
        starts = starts.to(device)
        for number, (first, stored) in enumerate(zip(first_slot, self._unfolded(document, rows), strict=True)):
            layer = stored.map(lambda x: x.to(device))
            keys = self.model.reader.rotary.move(layer.keys, starts.expand_as(layer.positions), layer=number)
            moved = replace(layer, keys=keys, positions=layer.positions + starts)
            # the chunks of one text stand side by side in one row
            text = moved.map(lambda x: x.transpose(0, 1).flatten(1, 2)[None])
            columns = zip(vars(first).values(), vars(text).values(), strict=True)
            found.append(LayerSlots(*(torch.cat(pair, dim=2) for pair in columns)))
        lengths = 1 + document.tokens.cumsum(0)[rows[-1:]].long().to(device)
        counts = torch.tensor([1 + sum(self._mean(n) for n in document.tokens[rows].tolist())], device=device)
        return packed(found, lengths, counts)

    def _mean(self, tokens: int) -> int:
        """Return the slots of a chunk for each head in the mean."""
        return math.ceil(tokens / self.slots.tokens_per_memory)

    def _ranges(self, tokens: int) -> tuple[Int[Tensor, "layers heads"], Int[Tensor, "layers heads"]]:
        """Return the place of each head's first slot among all of a chunk, and its number of slots."""
        slots, mean = self.slots, self._mean(tokens)
        numbers = torch.arange(slots.layers * slots.heads).view(slots.layers, slots.heads)
        if self.encoding.heads is None:  # a head's slots stand at the end of its part
            return (numbers + 1) * slots.slots - mean, torch.full_like(numbers, mean)
        counts = self.encoding.heads.slots(tokens, mean)
        return (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts), counts

    def _folded(self, memories: SlotMemories, row: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors, biases and positions of a chunk, without the token before it."""
        slots, (starts, counts) = self.slots, self._ranges(tokens)
        places = torch.cat(
            [torch.arange(n) + start for start, n in zip(starts.flatten(), counts.flatten().tolist(), strict=True)]
        )
        every = slots.layers * slots.heads * slots.slots

        def of(name: str, empty: int | float) -> Tensor:
            found = [getattr(layer, name)[row][(layer.held & ~layer.before_text)[row]] for layer in memories.layers]
            flat = torch.cat(found)
            return flat.new_full((every, *flat.shape[1:]), empty).index_copy(0, places, flat)

        pairs = torch.stack([of(name, 0.0).unflatten(0, (-1, slots.slots)) for name in ("keys", "values")], 1)
        bias, positions = of("bias", -math.inf).half(), of("positions", 0).to(torch.int16)
        return pairs.flatten(0, 2)[None].float(), bias[None], positions[None]

    def _unfolded(self, document: StoredDocument, rows: Int[Tensor, " chunks"]) -> list[LayerSlots]:
        """Return the slots (chunks, heads, slots) of each layer."""
        places, slots = document.places, self.slots
        if places is None:
            raise _damaged(document)
        vectors = dequantize(rows_of(document.memories, rows))
        vectors = vectors if document.memories.bits == 16 else rotated(vectors)
        pairs = vectors.view(len(rows), -1, 2, slots.slots, self.numbers)
        bias, positions = places.bias[rows].float(), places.positions[rows].long()
        known = (bias <= self.encoding.fit.bias_limit + _ROUNDING) & ~bias.isnan()
        within = (positions >= 0) & (positions <= self.encoding.chunk_length)
        if not bool(known.all() and within.all() and vectors.isfinite().all()):
            raise _damaged(document)
        flat = [*(pairs[:, :, i].flatten(1, 2) for i in range(2)), bias, positions]
        ranges = [self._ranges(tokens) for tokens in document.tokens[rows].tolist()]
        starts, counts = (torch.stack(column) for column in zip(*ranges, strict=True))
        return [_layer(flat, starts[:, i], counts[:, i]) for i in range(slots.layers)]

    def _first_slot(self) -> list[LayerSlots]:
        """Return the slot of the token before every text, which depends on the decoder alone."""
        memories = self.model.memories([[0]], slots=1, mode="joint").to(torch.float)
        return [layer.map(lambda x: x[:, :, :1]) for layer in memories.layers]


class VectorLayout:
    """One vector for each memory, of a writer whose injection keeps vectors.

    Args:
        model: the decoder.
        slots: sizes.
        encoding: how chunks are encoded.
    """

    def __init__(self, model: MemoryDecoder, slots: SlotFormat, encoding: EncodingSettings) -> None:
        self.model, self.slots, self.encoding = model, slots, encoding
        self.shape = (slots.slots, int(model.decoder.config.hidden_size))

    def write(self, chunks: list[list[int]], bits: Bits) -> tuple[QuantizedMemories, None]:
        """Encode chunks as vectors; those of a chunk come first, and zeros fill a chunk that is not full."""
        written = [torch.zeros(0, *self.shape)]
        for group in groups_of(chunks):
            found = self.model.vectors(group, tokens_per_memory=self.slots.tokens_per_memory).vectors.float().cpu()
            written.append(F.pad(found, (0, 0, 0, self.slots.slots - found.shape[1])))
        return quantize(torch.cat(written), bits), None

    def read(self, document: StoredDocument, rows: Int[Tensor, " chunks"]) -> SlotMemories:
        """Return the memories of some chunks of a document, one behind the other."""
        vectors = dequantize(rows_of(document.memories, rows))
        counts = (document.tokens[rows] / self.slots.tokens_per_memory).ceil().long()
        held = torch.arange(self.slots.slots) < counts[:, None]
        return self.model.from_vectors(MemoryVectors(vectors[held][None], counts.sum(0, keepdim=True)))


def _layer(flat: list[Tensor], starts: Int[Tensor, "chunks heads"], counts: Int[Tensor, "chunks heads"]) -> LayerSlots:
    """Return a layer's slots, with empty ones before those of heads with fewer, out of all slots of chunks.

    Args:
        flat: keys, values, biases and positions, each (chunks, slots of all layers and heads, ...).
        starts: (chunks, heads), the place of each head's first slot.
        counts: (chunks, heads), slots of each head.
    """
    most = int(counts.max())
    number = torch.arange(most) - (most - counts[..., None])
    index = (starts[..., None] + number).clamp(min=0)

    def of(x: Tensor) -> Tensor:
        wide = index.flatten(1).view(len(x), -1, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])
        return x.gather(1, wide).unflatten(1, index.shape[1:])

    keys, values, bias, positions = map(of, flat)
    return LayerSlots(keys, values, bias.masked_fill(number < 0, -math.inf), positions)


def groups_of(chunks: list[list[int]]) -> Sequence[list[list[int]]]:
    """Return the chunks that are encoded at once."""
    return [chunks[first : first + _AT_ONCE] for first in range(0, len(chunks), _AT_ONCE)]


def _damaged(document: StoredDocument) -> DamagedStoreError:
    name = f"document {ascii(document.id)[:80]}"
    return DamagedStoreError(f"{name} holds no slots of this decoder; restore the store from a copy.")
