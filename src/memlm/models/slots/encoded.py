"""Texts as a decoder read them, from which memories of any number of slots are made.

    text ── decoder ──▶ queries, keys, values of each layer ── fit ──▶ slots

`joint` encoding reads the whole text at once. `chunks` encoding reads each chunk by itself, behind the first token, so
that chunks can be encoded in parallel and kept one by one; its cost is linear in the length of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from memlm.errors import UserError, Within, check_numbers
from memlm.models.base import CACHE_NAME
from memlm.models.memory.adapter import adapters_active
from memlm.models.slots.attention import AttentionRecord, recorded
from memlm.models.slots.entering import entering
from memlm.models.slots.memories import LayerSlots, SlotMemories, packed
from memlm.models.slots.rotary import Rotary
from memlm.models.slots.states import Blocks, EncodingSettings, LayerStates


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The number of slots of a text, without that of the token before the text, which is always kept.

    Raises:
        UserError: neither or both are given, or they are less than 1.
    """

    tokens_per_memory: Annotated[int | float | None, Within(1, 2**31 - 1)] = None
    """Tokens for each slot; a block's last slot may stand for fewer."""
    slots: Annotated[int | None, Within(1, 2**31 - 1)] = None
    """Slots of each text, shared among its blocks by their tokens."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if (self.tokens_per_memory is None) == (self.slots is None):
            raise UserError(
                f"give either tokens_per_memory ({self.tokens_per_memory}) or slots ({self.slots}), of at least 1."
            )

    def counts(self, tokens: Int[Tensor, "batch blocks"]) -> Int[Tensor, "batch blocks"]:
        """Return the slots of each block."""
        if self.slots is None:
            return (tokens / (self.tokens_per_memory or 1)).ceil().long()
        share = (self.slots / tokens.sum(1, keepdim=True)).clamp(max=1.0)
        return (tokens.cumsum(1) * share).round().long().diff(dim=1, prepend=torch.zeros_like(tokens[:, :1]))


@dataclass(frozen=True, eq=False)
class EncodedTexts:
    """Texts as a decoder read them; `at` makes memories of any number of slots.

    Attributes:
        layers: states of each layer.
        blocks: sizes of the texts' blocks.
        rotary: moves queries and keys.
        settings: of the encoding.
    """

    layers: Sequence[LayerStates]
    blocks: Blocks
    rotary: Rotary
    settings: EncodingSettings

    def at(self, *, tokens_per_memory: int | float | None = None, slots: int | None = None) -> SlotMemories:
        """Return memories with one slot for `tokens_per_memory` tokens, or with `slots` slots for each text.

        Where there are as many slots as tokens, the keys and values of the tokens are kept as they are.

        Raises:
            UserError: neither or both are given, or they are less than 1.
        """
        counts = Budget(tokens_per_memory=tokens_per_memory, slots=slots).counts(self.blocks.tokens)
        layers = [states.fitted(self.blocks, counts, self.rotary, self.settings) for states in self.layers]
        return packed(layers, self.blocks.lengths, counts.sum(1) + 1)

    def keep_all(self) -> SlotMemories:
        """Return memories that are the keys and values of all tokens."""
        tokens = self.blocks.tokens
        every = torch.arange(tokens.shape[1] * self.blocks.length, device=tokens.device)
        kept = every.masked_fill(every % self.blocks.length >= tokens.repeat_interleave(self.blocks.length, 1), -1)
        return self.keep([kept[:, None].expand(-1, states.keys.shape[2], -1) for states in self.layers])

    def beginnings(self, ends: Int[Tensor, " beginnings"], ratio: int) -> SlotMemories:
        """Return memories of the first `ends` tokens of each text, one row for each end: every so many-th token.

        Args:
            ends: numbers of tokens.
            ratio: tokens for each memory, of which the last is kept.
        """
        tokens = self.blocks.tokens.sum(1, keepdim=True)
        kept = torch.arange(ratio - 1, self.blocks.tokens.shape[1] * self.blocks.length, ratio, device=tokens.device)
        kept = kept.expand(len(tokens), -1)
        kept = kept.masked_fill(kept >= tokens, -1)
        found = self.keep([kept[:, None].expand(-1, states.keys.shape[2], -1) for states in self.layers])
        return found.beginnings(ends)

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
            layers.append(
                states.behind_first(keys.gather(2, wide), values.gather(2, wide), bias, self.blocks.first + index)
            )
        return packed(layers, self.blocks.lengths, (indices[0] >= 0).sum(-1).amax(1) + 1)


class HiddenStates(NamedTuple):
    """Hidden states of tokens whose chunks a decoder read, each by itself.

    Attributes:
        ids: (batch, tokens), whole blocks.
        entered: (batch, tokens, width), what entered a layer.
        last: (batch, tokens, width), the last hidden states.
        blocks: sizes of the texts' blocks.
    """

    ids: Int[Tensor, "batch tokens"]
    entered: Float[Tensor, "batch tokens width"]
    last: Float[Tensor, "batch tokens width"]
    blocks: Blocks


@dataclass(frozen=True, eq=False)
class Reader:
    """A decoder that reads texts and shows what its layers compute.

    Adapters are trained to write chunks by themselves, and only then are they active.

    Attributes:
        decoder: with `use_slot_attention`.
        first_token_id: token before the text, or before each chunk.
        rotary: of the decoder.
        adapted: False to leave adapters out.
    """

    decoder: PreTrainedModel
    first_token_id: int
    rotary: Rotary
    adapted: bool = True

    def encode(
        self, ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], settings: EncodingSettings
    ) -> EncodedTexts:
        """Read texts, keeping the states of all layers.

        Args:
            ids: (batch, tokens), text first.
            mask: (batch, tokens), True for text.
            settings: of the encoding.
        """
        states: list[LayerStates] = []
        blocks = self._read(ids, mask, settings, lambda layer, _: states.append(layer))
        return EncodedTexts(states, blocks, self.rotary, settings)

    def memories(
        self,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
        budget: Budget,
        *,
        start: int = 0,
    ) -> SlotMemories:
        """Read texts and make memories of them layer by layer, so that the states of one layer are held at a time.

        Args:
            ids: (batch, tokens), text first.
            mask: (batch, tokens), True for text.
            settings: of the encoding.
            budget: slots of the texts.
            start: number of positions between the token before the texts and the texts.
        """
        layers: list[LayerSlots] = []

        def fit(states: LayerStates, blocks: Blocks) -> None:
            layers.append(states.fitted(blocks, budget.counts(blocks.tokens), self.rotary, settings))

        blocks = self._read(ids, mask, settings, fit, start=start)
        return packed(layers, blocks.lengths, budget.counts(blocks.tokens).sum(1) + 1)

    def hidden(
        self,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
        layer: int,
    ) -> HiddenStates:
        """Read chunks, each by itself at the first positions, and return hidden states of their tokens.

        Args:
            ids: (batch, tokens), text first.
            mask: (batch, tokens), True for text.
            settings: of the encoding.
            layer: the layer of which the inputs are kept.
        """
        width = _width(ids.shape[1], settings)
        ids, mask, blocks = _blocks(ids, mask, settings)
        rows = self._behind_first(ids, width)
        entered: list[Tensor] = []

        def show(hidden: Tensor) -> Tensor:
            entered.append(hidden)
            return hidden

        with entering(self.decoder, {layer: show}), adapters_active(self.decoder, self.adapted):
            last = self.decoder.base_model(input_ids=rows, use_cache=False).last_hidden_state
        tokens = [x[:, 1:].unflatten(0, (len(ids), -1)).flatten(1, 2) for x in (entered[0], last)]
        return HiddenStates(ids, tokens[0], tokens[1], blocks)

    def embed(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens width"]:
        """Return what the decoder reads in place of tokens."""
        return self.decoder.get_input_embeddings()(ids)

    def _read(
        self,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
        on_layer: Callable[[LayerStates, Blocks], None],
        *,
        start: int = 0,
    ) -> Blocks:
        tokens = ids.shape[1]
        ids, mask, blocks = _blocks(ids, mask, settings, start)
        joint = settings.mode == "joint"
        width = ids.shape[1] if joint else _width(tokens, settings)
        rows = self._behind_first(ids, width)
        # padding may lie beyond the positions that the decoder has
        positions = torch.arange(ids.shape[1], device=ids.device).clamp(max=tokens - 1).expand_as(ids) + (1 + start)
        row_positions = F.pad(positions.reshape(-1, width), (1, 0))

        def show(record: AttentionRecord) -> None:
            on_layer(LayerStates.of(record, len(ids), blocks.length), blocks)

        with recorded(show), adapters_active(self.decoder, self.adapted and not joint):
            # a cache keeps transformers from taking a jump of positions for packed texts
            self.decoder.base_model(input_ids=rows, position_ids=row_positions, **{CACHE_NAME: DynamicCache()})
        return blocks

    def _behind_first(self, ids: Int[Tensor, "batch tokens"], width: int) -> Int[Tensor, "rows positions"]:
        """Return rows of so many tokens, each behind the first token.

        No mask goes with them: padding stands behind all text, where causal attention does not see it, and without a
        mask attention leaves out the scores of later tokens instead of computing and hiding them.
        """
        return F.pad(ids.reshape(-1, width), (1, 0), value=self.first_token_id)


def _width(tokens: int, settings: EncodingSettings) -> int:
    """Return the tokens of a row: a text, or a chunk where there are several."""
    return tokens if settings.mode == "joint" else min(settings.chunk_length, tokens)


def _blocks(
    ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], settings: EncodingSettings, start: int = 0
) -> tuple[Int[Tensor, "batch padded"], Bool[Tensor, "batch padded"], Blocks]:
    """Return texts that are padded to whole blocks, and the sizes of these, `start` positions further on."""
    tokens = ids.shape[1]
    rows = tokens + -tokens % _width(tokens, settings)
    length = min(settings.block_length, rows)
    pad = -tokens % length
    full = F.pad(mask, (0, pad))
    sizes, first = full.unflatten(1, (-1, length)).sum(-1), 1 + start
    return F.pad(ids, (0, pad)), full, Blocks(sizes, first + mask.sum(1), length, first)
