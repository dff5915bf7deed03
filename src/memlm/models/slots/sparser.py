"""Memories with fewer slots, made of memories alone: neither the text nor the decoder's states are needed again.

    slots ── scores of a bank of queries, with biases ── fit ──▶ fewer slots

The bank holds queries of the same decoder on some other text, moved behind the text that the memories are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.models.slots.attention import ScoreRule
from memlm.models.slots.encoded import Reader
from memlm.models.slots.fit import fit_slots
from memlm.models.slots.memories import LayerSlots, SlotMemories, packed
from memlm.models.slots.rotary import Rotary
from memlm.models.slots.states import EncodingSettings, reader_distances


class QueryBank(NamedTuple):
    """Queries of a decoder's layers on a text, rotated to its positions from 1 on.

    Attributes:
        queries: for each layer, (key heads, group, tokens, numbers).
        rules: how each layer scores keys.
        rotary: moves queries.
        settings: distances of the places that queries are moved to, and the fit.
    """

    queries: Sequence[Float[Tensor, "heads group tokens numbers"]]
    rules: Sequence[ScoreRule]
    rotary: Rotary
    settings: EncodingSettings

    @classmethod
    def of(cls, reader: Reader, ids: Sequence[int], settings: EncodingSettings) -> QueryBank:
        """Return the queries of a decoder that reads a text as it is."""
        whole = replace(settings, mode="joint", block_length=len(ids), query_stride=1)
        rows = torch.tensor([list(ids)], device=reader.decoder.device)
        layers = reader.encode(rows, torch.ones_like(rows, dtype=torch.bool), whole).layers
        return cls([states.queries[0, 0] for states in layers], [x.rule for x in layers], reader.rotary, whole)

    def fewer(self, memories: SlotMemories, counts: Int[Tensor, " batch"]) -> SlotMemories:
        """Return memories of at most `counts` slots for each text, without that of the token before it."""
        rows = [self._row(memories.rows(torch.tensor([row])), int(count)) for row, count in enumerate(counts)]
        layers = [_stacked([row[number] for row in rows]) for number in range(len(self.queries))]
        return packed(layers, memories.lengths, memories.counts.minimum(1 + counts))

    def _row(self, memories: SlotMemories, count: int) -> list[LayerSlots]:
        """Return the slots of one text."""
        if count >= int(memories.counts) - 1:
            return list(memories.layers)
        position = int(memories.lengths)
        return [self._layer(number, layer, position, count) for number, layer in enumerate(memories.layers)]

    def _layer(self, number: int, layer: LayerSlots, position: int, count: int) -> LayerSlots:
        heads, text = layer.keys.shape[1], layer.hidden(layer.before_text)
        wanted = torch.tensor(self.settings.head_slots(number, heads, position - 1, count))
        counts = wanted.minimum(text.held[0].sum(-1).cpu())
        parts = [
            self._heads(number, text, position, torch.nonzero(counts == slots)[:, 0], slots)
            for slots in counts.unique().tolist()
        ]
        before = layer.map(lambda x: x[layer.before_text].unflatten(0, (1, heads, 1)))
        most = int(counts.max())
        fewer = LayerSlots(
            *(torch.cat(x, 1) for x in zip(*(vars(_wider(part, most)).values() for _, part in parts), strict=True))
        )
        order = torch.cat([own for own, _ in parts]).argsort()
        pairs = zip(vars(before).values(), vars(fewer.map(lambda x: x[:, order])).values(), strict=True)
        return LayerSlots(*(torch.cat(pair, 2) for pair in pairs))

    def _heads(
        self, number: int, text: LayerSlots, position: int, heads: Int[Tensor, " heads"], count: int
    ) -> tuple[Int[Tensor, " heads"], LayerSlots]:
        """Return heads and as many slots of each, without that of the token before the text."""
        text = text.map(lambda x: x[:, heads])
        if bool((text.held.sum(-1) == count).all()):
            every = text.held.int().argsort(dim=-1, stable=True)[..., text.bias.shape[2] - count :]
            return heads, text.taken(every)
        queries, places = self._queries(number, position)
        score = self.rules[number].scores(queries[heads], text.keys[0].float()) + text.bias[0, :, None]
        seen = self._seen(number, places, text.positions[0])
        found = fit_slots(score, text.values[0].float(), count, self.settings.fit, visible=seen)
        kept = text.taken(found.indices[None])
        return heads, replace(
            kept, values=found.values[None].to(text.values), bias=kept.bias + found.bias.to(text.bias)
        )

    def _queries(
        self, number: int, position: int
    ) -> tuple[Float[Tensor, "heads queries numbers"], Int[Tensor, " queries"]]:
        """Return the queries of a layer behind a text, and the positions that they are moved to."""
        queries = self.queries[number]
        tokens = queries.shape[2]
        places = position + reader_distances(number, self.settings)[:tokens].to(queries.device)
        own = torch.arange(1, tokens + 1, device=queries.device)
        moved = self.rotary.move(queries.flatten(0, 1)[None], (places - own)[None, None], layer=number)[0]
        return moved.unflatten(0, queries.shape[:2]).flatten(1, 2), places.repeat(queries.shape[1])

    def _seen(self, number: int, places: Tensor, positions: Tensor) -> Bool[Tensor, "heads queries slots"] | None:
        window = self.rules[number].window
        return None if window is None else places[None, :, None] - positions[:, None] < window


def _wider(slots: LayerSlots, most: int) -> LayerSlots:
    """Return slots behind as many empty ones as make `most`."""

    def wider(x: Tensor, empty: int | float) -> Tensor:
        shape = (*x.shape[:2], most - x.shape[2], *x.shape[3:])
        return torch.cat([x.new_full(shape, empty), x], 2)

    empties = (0.0, 0.0, -torch.inf, 0)
    return LayerSlots(*(wider(x, empty) for x, empty in zip(vars(slots).values(), empties, strict=True)))


def _stacked(rows: Sequence[LayerSlots]) -> LayerSlots:
    """Return one batch of rows, with empty slots before those of shorter rows."""
    most = max(row.bias.shape[2] for row in rows)
    columns = zip(*(vars(_wider(row, most)).values() for row in rows), strict=True)
    return LayerSlots(*map(torch.cat, columns))
