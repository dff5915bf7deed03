"""What a decoder computed while it read texts, from which memories of any number of slots are made.

    text ── decoder ──▶ queries, keys, values of each layer ── fit ──▶ slots

`joint` encoding reads the whole text at once. `chunks` encoding reads each chunk by itself, behind the first token, so
that chunks can be encoded in parallel and kept one by one; its cost is linear in the length of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from memlm.errors import UserError
from memlm.models.base import CACHE_NAME
from memlm.models.slots.attention import AttentionRecord, recorded
from memlm.models.slots.fit import FitSettings, fit_slots, scores
from memlm.models.slots.memories import LayerSlots, SlotMemories, packed
from memlm.models.slots.rotary import Rotary

MODES = ("joint", "chunks")


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """How texts are encoded, and how slots are fitted.

    The defaults are those of the measurements in docs/results.
    """

    mode: str = "joint"
    """`joint` reads the whole text at once; `chunks` reads each chunk by itself, in parallel."""
    chunk_length: int = 128
    """Tokens of a chunk that is read by itself."""
    block_length: int = 512
    """Tokens whose slots are fitted together in joint encoding."""
    query_stride: int = 1
    """Every `query_stride`-th token of a block gives reference queries."""
    query_distance: int = 1024
    """The reference queries are the text's own, moved to positions 0 to `query_distance` - 1 behind the text."""
    fit: FitSettings = field(default_factory=FitSettings)
    """Settings of the fit."""

    @property
    def tokens_per_fit(self) -> int:
        """The tokens whose slots are fitted together."""
        return self.block_length if self.mode == "joint" else self.chunk_length


@dataclass(frozen=True, eq=False)
class LayerStates:
    """Queries, keys and values of one layer, cut into blocks whose slots are fitted together.

    Attributes:
        first_key: (batch, key heads, 1, numbers), of the token before the text, which is kept as it is.
        first_value: (batch, key heads, 1, numbers).
        queries: (batch, blocks, heads, length, numbers), rotated to their tokens' positions.
        keys: (batch, blocks, key heads, length, numbers), rotated.
        values: (batch, blocks, key heads, length, numbers).
        scaling: factor of the scores.
        softcap: bound of the scores, or None.
        window: number of positions that a query sees, or None.
    """

    first_key: Tensor
    first_value: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    softcap: float | None
    window: int | None

    def scores(self, queries: Tensor, keys: Tensor) -> Float[Tensor, "heads queries keys"]:
        """Return the scores of keys, with all leading dimensions folded."""
        return scores(queries, keys, scaling=self.scaling, softcap=self.softcap).flatten(0, -3)

    def behind_first(self, keys: Tensor, values: Tensor, bias: Tensor, positions: Tensor) -> LayerSlots:
        """Return slots behind that of the first token."""
        zero = torch.zeros_like(bias[..., :1])
        return LayerSlots(
            torch.cat([self.first_key, keys], dim=2),
            torch.cat([self.first_value, values], dim=2),
            torch.cat([zero, bias], dim=2),
            torch.cat([zero.long(), positions], dim=2),
        )


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as a decoder read them; `at` makes memories of any number of slots.

    Attributes:
        layers: states of each layer.
        mask: (batch, blocks, length), True for text.
        lengths: (batch,), the position behind each text.
        rotary: moves queries and keys.
        settings: of the encoding.
    """

    layers: Sequence[LayerStates]
    mask: Bool[Tensor, "batch blocks length"]
    lengths: Int[Tensor, " batch"]
    rotary: Rotary
    settings: EncodingSettings

    def at(self, *, tokens_per_memory: int | float | None = None, slots: int | None = None) -> SlotMemories:
        """Return memories with one slot for `tokens_per_memory` tokens, or with `slots` slots for each text.

        At one token per memory the keys and values of all tokens are kept as they are. The token before the text always
        is, and is not counted.

        Raises:
            UserError: neither or both are given, or they are less than 1.
        """
        counts = self._counts(tokens_per_memory, slots)
        if torch.equal(counts, self.mask.sum(-1)):
            everything = torch.arange(self.mask[0].numel(), device=counts.device).expand(len(counts), 1, -1)
            kept = everything.masked_fill(~self.mask.flatten(1)[:, None], -1)
            return self.keep([kept.expand(-1, x.keys.shape[2], -1) for x in self.layers])
        layers = [self._fitted(i, counts) for i in range(len(self.layers))]
        return packed(layers, self.lengths, counts.sum(1) + 1)

    def keep(self, indices: Sequence[Int[Tensor, "batch heads slots"]]) -> SlotMemories:
        """Return memories that are the keys and values of some tokens, as methods of cache eviction keep them.

        Args:
            indices: for each layer, (batch, key heads, slots), tokens of the text; -1 for an empty slot.
        """
        layers: list[LayerSlots] = []
        for states, index in zip(self.layers, indices, strict=True):
            keys, values = (x.transpose(1, 2).flatten(2, 3) for x in (states.keys, states.values))
            wide = index.clamp(min=0)[..., None].expand(*index.shape, keys.shape[-1])
            bias = torch.zeros_like(index, dtype=torch.float).masked_fill(index < 0, -math.inf)
            layers.append(states.behind_first(keys.gather(2, wide), values.gather(2, wide), bias, 1 + index))
        return packed(layers, self.lengths, (indices[0] >= 0).sum(-1).amax(1) + 1)

    def _counts(self, tokens_per_memory: int | float | None, slots: int | None) -> Int[Tensor, "batch blocks"]:
        tokens = self.mask.sum(-1)
        if slots is None:
            if tokens_per_memory is None or not tokens_per_memory >= 1:
                raise UserError(f"give tokens_per_memory ({tokens_per_memory}) of at least 1, or slots.")
            return (tokens / tokens_per_memory).ceil().long()
        if tokens_per_memory is not None or slots < 1:
            raise UserError(f"give slots ({slots}) of at least 1, or tokens_per_memory ({tokens_per_memory}).")
        share = (slots / tokens.sum(1, keepdim=True)).clamp(max=1.0)
        return (tokens.cumsum(1) * share).round().long().diff(dim=1, prepend=torch.zeros_like(tokens[:, :1]))

    def _fitted(self, layer: int, counts: Int[Tensor, "batch blocks"]) -> LayerSlots:
        states = self.layers[layer]
        batch, blocks, heads, length, numbers = states.keys.shape
        positions = 1 + torch.arange(blocks * length, device=counts.device).view(1, blocks, 1, length)
        chosen = torch.arange(0, length, self.settings.query_stride, device=counts.device)
        reader = self._reader_positions(layer, length)[..., chosen]
        group = states.queries.shape[2] // heads
        distances = (reader - positions[..., chosen]).expand(batch, -1, -1, -1).flatten(0, 1)
        moved = self.rotary.move(states.queries[..., chosen, :].flatten(0, 1), distances, layer=layer)
        visible = self._visible(reader, positions, chosen, states.window)
        if visible is not None:
            visible = visible.expand(batch, -1, heads, -1, -1).repeat(1, 1, 1, group, 1).flatten(0, 2)
        fitted = fit_slots(
            states.scores(moved.unflatten(1, (heads, group)).flatten(2, 3), states.keys.flatten(0, 1).float()),
            states.values.flatten(0, 2).float(),
            visible,
            counts.flatten().repeat_interleave(heads),
            self.settings.fit,
        )
        taken, bias, values = (x.unflatten(0, (batch, blocks, heads)) for x in fitted)
        keys = states.keys.gather(3, taken[..., None].expand(*taken.shape, numbers))
        at = positions.expand(batch, -1, heads, -1).gather(3, taken)
        return states.behind_first(*(x.transpose(1, 2).flatten(2, 3) for x in (keys, values.to(keys), bias, at)))

    def _visible(
        self, reader: Tensor, positions: Tensor, chosen: Tensor, window: int | None
    ) -> Bool[Tensor, "batch blocks 1 queries length"] | None:
        if window is None and bool(self.mask.all()):
            return None
        visible = (self.mask[:, :, None] & self.mask[..., chosen, None])[:, :, None]
        return visible if window is None else visible & (reader[..., None] - positions[..., None, :] < window)

    def _reader_positions(self, layer: int, length: int) -> Int[Tensor, "batch 1 1 length"]:
        # the same draw for every block, so that a text has the same memories in every batch
        generator = torch.Generator().manual_seed(layer)
        settings = self.settings
        further = torch.randint(0, settings.query_distance, (settings.tokens_per_fit,), generator=generator)
        return self.lengths[:, None, None, None] + further[:length].to(self.lengths.device)


def encode(
    decoder: PreTrainedModel,
    input_ids: Int[Tensor, "batch tokens"],
    mask: Bool[Tensor, "batch tokens"],
    *,
    first_token_id: int,
    rotary: Rotary,
    settings: EncodingSettings,
) -> EncodedTexts:
    """Let a decoder read texts and return what its layers computed.

    Args:
        decoder: with `use_slot_attention`.
        input_ids: (batch, tokens), text first.
        mask: (batch, tokens), True for text.
        first_token_id: token before the text, or before each chunk.
        rotary: of the decoder.
        settings: of the encoding.
    """
    batch, joint = len(input_ids), settings.mode == "joint"
    length = min(settings.tokens_per_fit, input_ids.shape[1])
    pad = -input_ids.shape[1] % length
    ids, full = F.pad(input_ids, (0, pad)), F.pad(mask, (0, pad))
    positions = torch.arange(1, 1 + ids.shape[1], device=ids.device).expand_as(ids)
    width = ids.shape[1] if joint else length
    rows, row_mask, row_positions = (
        F.pad(x.reshape(-1, width), (1, 0), value=first)
        for x, first in ((ids, first_token_id), (full.long(), 1), (positions, 0))
    )
    states: list[LayerStates] = []
    with recorded(lambda record: states.append(_states(record, batch, length))):
        # a cache keeps transformers from taking a jump of positions for packed texts
        decoder.base_model(
            input_ids=rows, attention_mask=row_mask, position_ids=row_positions, **{CACHE_NAME: DynamicCache()}
        )
    return EncodedTexts(states, full.unflatten(1, (-1, length)), 1 + mask.sum(1), rotary, settings)


def _states(record: AttentionRecord, batch: int, length: int) -> LayerStates:
    def blocks(x: Tensor) -> Tensor:
        # one row for each text (joint) or for each chunk becomes blocks of `length` tokens for each text
        return x[:, :, 1:].unflatten(0, (batch, -1)).unflatten(3, (-1, length)).transpose(2, 3).flatten(1, 2)

    key, value = (x.unflatten(0, (batch, -1))[:, 0, :, :1] for x in (record.key, record.value))
    queries, keys, values = map(blocks, (record.query, record.key, record.value))
    return LayerStates(key, value, queries, keys, values, record.scaling, record.softcap, record.window)
