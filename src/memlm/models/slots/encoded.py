"""Texts as a decoder read them, from which memories of any number of slots are made.

    text ── decoder ──▶ queries, keys, values of each layer ── fit ──▶ slots

`joint` encoding reads the whole text at once. `chunks` encoding reads each chunk by itself, behind the first token, so
that chunks can be encoded in parallel and kept one by one; its cost is linear in the length of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from memlm.errors import UserError
from memlm.models.base import CACHE_NAME
from memlm.models.memory.adapter import adapters_active
from memlm.models.slots.attention import AttentionRecord, recorded
from memlm.models.slots.memories import LayerSlots, SlotMemories, packed
from memlm.models.slots.rotary import Rotary
from memlm.models.slots.states import Blocks, EncodingSettings, LayerStates


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The number of slots of a text, without that of the token before the text, which is always kept.

    Raises:
        UserError: neither or both are given, or they are less than 1.
    """

    tokens_per_memory: int | float | None = None
    """Tokens for each slot; a block's last slot may stand for fewer."""
    slots: int | None = None
    """Slots of each text, shared among its blocks by their tokens."""

    def __post_init__(self) -> None:
        given = [x for x in (self.tokens_per_memory, self.slots) if x is not None]
        if len(given) != 1 or not 1 <= given[0] < math.inf:
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

    def _read(
        self,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
        on_layer: Callable[[LayerStates, Blocks], None],
        *,
        start: int = 0,
    ) -> Blocks:
        joint, tokens = settings.mode == "joint", ids.shape[1]
        length = min(settings.block_length, tokens if joint else tokens + -tokens % settings.chunk_length)
        pad = -tokens % length
        ids, full = F.pad(ids, (0, pad)), F.pad(mask, (0, pad))
        blocks = Blocks(full.unflatten(1, (-1, length)).sum(-1), 1 + start + mask.sum(1), length, 1 + start)
        positions = torch.arange(1 + start, 1 + start + ids.shape[1], device=ids.device).expand_as(ids)
        width = ids.shape[1] if joint else settings.chunk_length
        rows, row_mask, row_positions = (
            F.pad(x.reshape(-1, width), (1, 0), value=first)
            for x, first in ((ids, self.first_token_id), (full.long(), 1), (positions, 0))
        )

        def show(record: AttentionRecord) -> None:
            on_layer(LayerStates.of(record, len(ids), length), blocks)

        with recorded(show), adapters_active(self.decoder, self.adapted and not joint):
            # a cache keeps transformers from taking a jump of positions for packed texts
            self.decoder.base_model(
                input_ids=rows, attention_mask=row_mask, position_ids=row_positions, **{CACHE_NAME: DynamicCache()}
            )
        return blocks
