"""Memories that are one vector each: made of hidden states, and read by the decoder's own layers.

    chunk ── decoder, adapters active ──▶ hidden states ── learned map ──▶ one vector for each group of tokens
    first token, vectors ── decoder as it is ──▶ keys and values ──▶ slots at positions 0, 1, 2, ...

A vector has as many numbers as a hidden state. Slots stand at consecutive positions, whatever positions their tokens
had, so that long texts stay within the positions that the decoder knows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from memlm.models.slots.attention import AttentionRecord, recorded
from memlm.models.slots.encoded import Budget, HiddenStates, Reader
from memlm.models.slots.entering import Change, entering
from memlm.models.slots.injection import Injection
from memlm.models.slots.memories import LayerSlots, SlotMemories, packed
from memlm.models.slots.states import Blocks, EncodingSettings


@dataclass(frozen=True, eq=False)
class MemoryVectors:
    """Memories of a batch of texts, one vector each; this is what needs to be stored of the texts.

    Attributes:
        vectors: (batch, memories, width), those of a text first.
        counts: (batch,), the number of memories of each text.
    """

    vectors: Float[Tensor, "batch memories width"]
    counts: Int[Tensor, " batch"]

    def to(self, device: torch.device) -> MemoryVectors:
        """Return the vectors on another device."""
        return MemoryVectors(self.vectors.to(device), self.counts.to(device))


class VectorInjection(Injection):
    """Base class of injections that store one vector for each memory.

    A vector is what a subclass starts from, plus a linear map of the last hidden state of the memory's last token. The
    map is zero at first, and is measured by the size of what it is added to.

    Args:
        width: numbers of a hidden state.
        source: the layer whose inputs vectors start from.
        lowest: the lowest layer that reads memories.
    """

    def __init__(self, width: int, source: int = 0, lowest: int = 0) -> None:
        super().__init__()
        self.source, self.lowest = source, lowest
        self.correction = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.correction.weight)

    def start(
        self, reader: Reader, states: HiddenStates, ends: Int[Tensor, "batch memories"]
    ) -> Float[Tensor, "batch memories width"]:
        """Return vectors before any training: what entered the source layer at the last token of each group.

        Args:
            reader: of the decoder.
            states: of the texts.
            ends: last token of each memory's group, which begins behind that of the memory before it.
        """
        return at_tokens(states.entered, ends)

    def changes(self, vectors: Float[Tensor, "batch memories width"]) -> Mapping[int, Change]:
        """Return how vectors enter layers, where they do not stand in place of tokens."""
        return {self.lowest: behind_first(vectors)}

    def inputs(
        self, reader: Reader, vectors: Float[Tensor, "batch memories width"]
    ) -> Float[Tensor, "batch memories width"]:
        """Return what stands in place of tokens; layers below the vectors' read the first token again and again."""
        return reader.embed(torch.full(vectors.shape[:2], reader.first_token_id, device=vectors.device))

    def bias(self, layer: int) -> Tensor | float:
        """Return what is added to the scores of a layer's slots: minus infinity where it does not read memories."""
        return 0.0 if layer >= self.lowest else -math.inf

    def encode(
        self,
        reader: Reader,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
        settings: EncodingSettings,
    ) -> EncodedVectors:
        """Read texts chunk by chunk, keeping hidden states."""
        return EncodedVectors(self, reader, reader.hidden(ids, mask, settings, self.source), mask)

    def write(
        self, reader: Reader, states: HiddenStates, ends: Int[Tensor, "batch memories"]
    ) -> Float[Tensor, "batch memories width"]:
        """Return the vectors of groups of tokens, in fp32."""
        start = self.start(reader, states, ends).float()
        return start + size_of(start) * self.correction(normalized(at_tokens(states.last, ends)))

    def read(self, reader: Reader, memories: MemoryVectors) -> SlotMemories:
        """Let the decoder as it is read vectors behind its first token, and return the keys and values of its layers.

        Args:
            reader: of the decoder.
            memories: one row for each text.
        """
        records: list[AttentionRecord] = []
        vectors = memories.vectors.to(reader.decoder.dtype)
        first = reader.embed(torch.full((len(vectors), 1), reader.first_token_id, device=vectors.device))
        with recorded(records.append), entering(reader.decoder, self.changes(vectors)):
            reader.decoder.base_model(
                inputs_embeds=torch.cat([first, self.inputs(reader, vectors)], dim=1), use_cache=False
            )
        layers = [self._slots(record, memories.counts) for record in records]
        return packed(layers, 1 + memories.counts, 1 + memories.counts)

    def _slots(self, record: AttentionRecord, counts: Int[Tensor, " batch"]) -> LayerSlots:
        places = torch.arange(record.key.shape[2], device=counts.device)
        bias = torch.where(places == 0, 0.0, self.bias(record.layer))
        bias = torch.where(places > counts[:, None], -math.inf, bias)[:, None].expand(record.key.shape[:3])
        return LayerSlots(record.key, record.value, bias, places.expand(*bias.shape))


@dataclass(frozen=True, eq=False)
class EncodedVectors:
    """Texts as a decoder read them; `at` makes memories of any number of vectors.

    Attributes:
        injection: makes vectors and reads them.
        reader: of the decoder.
        states: hidden states of the texts' tokens.
        mask: (batch, tokens), True for text.
    """

    injection: VectorInjection
    reader: Reader
    states: HiddenStates
    mask: Bool[Tensor, "batch tokens"]

    def vectors(self, *, tokens_per_memory: int | float | None = None, slots: int | None = None) -> MemoryVectors:
        """Return one vector for `tokens_per_memory` tokens, or `slots` vectors for each text.

        Raises:
            UserError: neither or both are given, or they are less than 1.
        """
        budget = Budget(tokens_per_memory=tokens_per_memory, slots=slots)
        blocks = self.states.blocks
        return self._of_groups(group_ends(blocks, budget.counts(blocks.tokens)))

    def at(self, *, tokens_per_memory: int | float | None = None, slots: int | None = None) -> SlotMemories:
        """Return memories with one slot for `tokens_per_memory` tokens, or with `slots` slots for each text.

        Raises:
            UserError: neither or both are given, or they are less than 1.
        """
        return self.injection.read(self.reader, self.vectors(tokens_per_memory=tokens_per_memory, slots=slots))

    def beginnings(self, ends: Int[Tensor, " beginnings"], ratio: int) -> SlotMemories:
        """Return memories of the first `ends` tokens of each text, one row for each end.

        A memory sees those before it only, so the decoder reads the memories of the whole text once.
        """
        groups = torch.arange(ratio - 1, self.mask.shape[1], ratio, device=ends.device).expand(len(self.mask), -1)
        vectors = self._of_groups(groups.masked_fill(~self.mask.gather(1, groups), -1))
        return self.injection.read(self.reader, vectors).beginnings(ends // ratio)

    def _of_groups(self, ends: Int[Tensor, "batch memories"]) -> MemoryVectors:
        return MemoryVectors(self.injection.write(self.reader, self.states, ends), (ends >= 0).sum(1))


def group_ends(blocks: Blocks, counts: Int[Tensor, "batch blocks"]) -> Int[Tensor, "batch memories"]:
    """Return the last token of each group where blocks are cut into groups of nearly equal length; -1 for no group.

    Args:
        blocks: sizes of the blocks.
        counts: (batch, blocks), groups of each block.
    """
    group = torch.arange(1, 1 + int(counts.max()), device=counts.device)
    parts = counts.clamp(min=1)[..., None]
    ends = (group * blocks.tokens[..., None] + parts - 1) // parts - 1
    ends += blocks.length * torch.arange(counts.shape[1], device=counts.device)[:, None]
    beyond = blocks.length * counts.shape[1]
    ends = ends.masked_fill(group > counts[..., None], beyond).flatten(1).sort(1).values
    ends = ends[:, : int(counts.sum(1).max())]
    return ends.masked_fill(ends == beyond, -1)


def behind_first(vectors: Float[Tensor, "batch memories width"]) -> Change:
    """Return the function that puts vectors behind the first token's hidden state."""
    return lambda hidden: torch.cat([hidden[:, :1], vectors.to(hidden.dtype)], dim=1)


def at_tokens(
    states: Float[Tensor, "batch tokens width"], indices: Int[Tensor, "batch memories"]
) -> Float[Tensor, "batch memories width"]:
    """Return the states of some tokens, and any for those below 0."""
    wide = indices.clamp(min=0)[..., None].expand(*indices.shape, states.shape[-1])
    return states.gather(1, wide)


def normalized(vectors: Float[Tensor, "batch memories width"]) -> Float[Tensor, "batch memories width"]:
    """Return vectors in fp32 whose numbers have mean 0 and variance 1."""
    return F.layer_norm(vectors.float(), vectors.shape[-1:])


def size_of(vectors: Float[Tensor, "batch memories width"]) -> Float[Tensor, "batch memories 1"]:
    """Return the root mean square of each vector's numbers, without gradients."""
    return vectors.detach().square().mean(-1, keepdim=True).sqrt()
