"""Memories of a pretrained decoder: keys and values of a few slots for each layer and head."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from memlm.models.slots.rotary import Rotary


@dataclass(frozen=True, eq=False)
class LayerSlots:
    """Slots of one layer.

    Attributes:
        keys: (batch, key heads, slots, numbers), rotated to `positions`.
        values: (batch, key heads, slots, numbers).
        bias: (batch, key heads, slots), added to the scores; minus infinity for a slot that holds nothing.
        positions: (batch, key heads, slots), positions of the tokens that the slots come from.
    """

    keys: Float[Tensor, "batch heads slots numbers"]
    values: Float[Tensor, "batch heads slots numbers"]
    bias: Float[Tensor, "batch heads slots"]
    positions: Int[Tensor, "batch heads slots"]

    @property
    def held(self) -> Bool[Tensor, "batch heads slots"]:
        """True for slots that hold something."""
        return ~self.bias.isinf()

    @property
    def before_text(self) -> Bool[Tensor, "batch heads slots"]:
        """True for the slot of the token before the text, which stands at position 0."""
        return self.held & (self.positions == 0)

    def map(self, change: Callable[[Tensor], Tensor]) -> LayerSlots:
        """Return slots whose tensors are each passed through `change`."""
        return LayerSlots(*map(change, (self.keys, self.values, self.bias, self.positions)))

    def taken(self, indices: Int[Tensor, "batch heads taken"]) -> LayerSlots:
        """Return some slots of each head."""
        wide = indices[..., None].expand(*indices.shape, self.keys.shape[3])
        return self.map(lambda x: x.gather(2, indices if x.ndim == 3 else wide))

    def hidden(self, mask: Bool[Tensor, "batch heads slots"]) -> LayerSlots:
        """Return slots of which some hold nothing: those where the mask is True."""
        return replace(self, bias=self.bias.masked_fill(mask, -math.inf))


@dataclass(frozen=True, eq=False)
class SlotMemories:
    """Memories of a batch of texts, as a decoder reads them; rows and heads with fewer slots begin with empty ones.

    Attributes:
        layers: slots of each layer, as many as the head with most slots has.
        lengths: (batch,), the position of the token that follows each text.
        counts: (batch,), the number of slots of each text for each head in the mean, that of the first token included.
    """

    layers: Sequence[LayerSlots]
    lengths: Int[Tensor, " batch"]
    counts: Int[Tensor, " batch"]

    @property
    def num_slots(self) -> int:
        """The number of slots of the longest row, for each head in the mean."""
        return int(self.counts.max())

    @property
    def held(self) -> Int[Tensor, "batch layers heads"]:
        """The number of slots of each head that hold something."""
        return torch.stack([layer.held.sum(-1) for layer in self.layers], 1)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> SlotMemories:
        """Return the memories with keys and values of another type, or on another device."""
        layers = [
            LayerSlots(x.keys.to(device, dtype), x.values.to(device, dtype), x.bias.to(device), x.positions.to(device))
            for x in self.layers
        ]
        return SlotMemories(layers, self.lengths.to(device), self.counts.to(device))

    def rows(self, indices: Int[Tensor, " rows"]) -> SlotMemories:
        """Return the memories of some texts."""
        layers = [layer.map(lambda x: x[indices]) for layer in self.layers]
        return SlotMemories(layers, self.lengths[indices], self.counts[indices])

    def beginnings(self, ends: Int[Tensor, " beginnings"]) -> SlotMemories:
        """Return memories of beginnings of each text, one row for each of `ends`, the positions of their last slots."""
        index = torch.arange(len(self.lengths), device=ends.device).repeat_interleave(len(ends))
        chosen, last = self.rows(index), ends.repeat(len(self.lengths))
        layers = [layer.hidden(layer.positions > last[:, None, None]) for layer in chosen.layers]
        # the last layer reads memories, whichever layer they enter
        counts = (~layers[-1].bias[:, 0].isinf()).sum(-1)
        return packed(layers, chosen.lengths.minimum(1 + last), counts)


def packed(layers: Sequence[LayerSlots], lengths: Int[Tensor, " batch"], counts: Int[Tensor, " batch"]) -> SlotMemories:
    """Return memories whose empty slots stand at the beginning, without those that no row needs.

    Args:
        layers: slots of each layer, with empty ones anywhere.
        lengths: (batch,), the position of the token that follows each text.
        counts: (batch,), the number of slots of each text for each head in the mean.
    """

    def pack(layer: LayerSlots) -> LayerSlots:
        most = int(layer.held.sum(-1).max())
        return layer.taken(layer.held.int().argsort(dim=-1, stable=True)[..., layer.bias.shape[2] - most :])

    return SlotMemories([pack(layer) for layer in layers], lengths, counts)


class FlatSlots(NamedTuple):
    """The slots of one text without empty ones, those of the first layer's first head first.

    Attributes:
        keys: (slots, numbers).
        values: (slots, numbers).
        bias: (slots,).
        positions: (slots,).
        held: (layers, heads), slots of each head.
    """

    keys: Float[Tensor, "slots numbers"]
    values: Float[Tensor, "slots numbers"]
    bias: Float[Tensor, " slots"]
    positions: Int[Tensor, " slots"]
    held: Int[Tensor, "layers heads"]

    @classmethod
    def of(cls, memories: SlotMemories) -> FlatSlots:
        """Return the slots of memories of one text."""
        names = ("keys", "values", "bias", "positions")
        flat = [torch.cat([getattr(layer, name)[layer.held] for layer in memories.layers]) for name in names]
        return cls(flat[0], flat[1], flat[2], flat[3], memories.held[0])

    def layers(self) -> list[LayerSlots]:
        """Return the slots of each layer, with empty ones before those of heads with fewer."""
        sizes, empties = self.held.flatten().tolist(), (0.0, 0.0, -math.inf, 0)
        heads = [_filled(x, sizes, empty) for x, empty in zip(self[:4], empties, strict=True)]
        each = zip(*(x.unflatten(0, self.held.shape) for x in heads), strict=True)
        most = self.held.amax(1).tolist()
        return [
            LayerSlots(*(x[None, :, x.shape[1] - count :] for x in layer))
            for layer, count in zip(each, most, strict=True)
        ]


def _filled(x: Tensor, sizes: list[int], empty: int | float) -> Tensor:
    """Return parts of so many entries as rows of one length, each behind empty entries."""
    return pad_sequence([part.flip(0) for part in x.split(sizes)], batch_first=True, padding_value=empty).flip(1)


def joined(parts: Sequence[SlotMemories], distances: Sequence[int], rotary: Rotary) -> SlotMemories:
    """Return the memories of consecutive parts of one text.

    Args:
        parts: memories of each part, of one text each.
        distances: number of positions that each part is moved further on.
        rotary: moves the keys.
    """
    layers: list[LayerSlots] = []
    for number in range(len(parts[0].layers)):
        pairs = zip(parts, distances, strict=True)
        moved = [_moved(part.layers[number], distance, rotary, number) for part, distance in pairs]
        # one token stands before the text, not one before each part
        rest = [layer.hidden(layer.before_text) for layer in moved[1:]]
        columns = zip(*(vars(layer).values() for layer in (moved[0], *rest)), strict=True)
        layers.append(LayerSlots(*(torch.cat(column, dim=2) for column in columns)))
    counts = torch.stack([part.counts for part in parts]).sum(0) - (len(parts) - 1)
    return packed(layers, distances[-1] + parts[-1].lengths, counts)


def _moved(layer: LayerSlots, distance: int, rotary: Rotary, number: int) -> LayerSlots:
    """Return slots that are `distance` positions further on, apart from that of the token before the text."""
    distances = torch.full_like(layer.positions, distance).masked_fill(layer.before_text, 0)
    keys = rotary.move(layer.keys, distances, layer=number).to(layer.keys.dtype)
    return replace(layer, keys=keys, positions=layer.positions + distances)
