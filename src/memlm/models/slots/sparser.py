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
        most = max(len(row[0].bias[0, 0]) for row in rows)
        layers = [_stacked([row[number] for row in rows], most) for number in range(len(self.queries))]
        held = (~layers[-1].bias[:, 0].isinf()).sum(-1)
        return packed(layers, memories.lengths, held)

    def _row(self, memories: SlotMemories, count: int) -> list[LayerSlots]:
        """Return the slots of one text."""
        if count >= int(memories.counts) - 1:
            return list(memories.layers)
        position = int(memories.lengths)
        return [self._layer(number, layer, position, count) for number, layer in enumerate(memories.layers)]

    def _layer(self, number: int, layer: LayerSlots, position: int, count: int) -> LayerSlots:
        # the first slot that holds something is the token before the text
        first = int((~layer.bias[0, 0].isinf()).nonzero()[0])
        before, text = layer.map(lambda x: x[:, :, first : first + 1]), layer.map(lambda x: x[:, :, first + 1 :])
        queries, places = self._queries(number, position)
        score = self.rules[number].scores(queries, text.keys[0].float()) + text.bias[0, :, None]
        seen = self._seen(number, places, text.positions[0])
        found = fit_slots(score, text.values[0].float(), count, self.settings.fit, visible=seen)
        heads = torch.arange(len(found.indices), device=found.indices.device)[:, None]
        kept = text.map(lambda x: x[:, heads, found.indices])
        fewer = replace(kept, values=found.values[None].to(text.values), bias=kept.bias + found.bias.to(text.bias))
        pairs = zip(vars(before).values(), vars(fewer).values(), strict=True)
        return LayerSlots(*(torch.cat(pair, 2) for pair in pairs))

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


def _stacked(rows: Sequence[LayerSlots], most: int) -> LayerSlots:
    """Return one batch of rows, with empty slots before those of shorter rows."""

    def wider(x: Tensor, empty: int | float) -> Tensor:
        shape = (*x.shape[:2], most - x.shape[2], *x.shape[3:])
        return torch.cat([x.new_full(shape, empty), x], 2)

    columns = zip(*(vars(row).values() for row in rows), strict=True)
    empties = (0.0, 0.0, -torch.inf, 0)
    return LayerSlots(*(torch.cat([wider(x, e) for x in column]) for column, e in zip(columns, empties, strict=True)))
