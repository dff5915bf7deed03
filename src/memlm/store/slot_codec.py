"""The codec of a store of slots: keys and values that a pretrained decoder reads, with the text itself beside them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from memlm.data import encode_texts
from memlm.encoders.interface import vocabulary_of
from memlm.errors import DamagedStoreError, StoreError
from memlm.models.slots import EncodingSettings, MemoryDecoder, SlotMemories
from memlm.models.slots.codes import rotated
from memlm.models.slots.memories import LayerSlots, packed
from memlm.store.codec import WrittenChunks
from memlm.store.corrections import EXPLICIT
from memlm.store.format.document import SlotPlaces, StoredDocument, no_places
from memlm.store.format.header import SlotFormat, StoreHeader
from memlm.store.quantize import Bits, QuantizedMemories, dequantize, quantize, rows_of

_AT_ONCE = 8
"""Chunks that are encoded at once."""
_ROUNDING = 0.01
"""Nats by which rounding to fp16 may lift a bias above its limit."""


class SlotCodec:
    """A pretrained decoder that encodes chunks as slots; a chunk's slots depend only on its own tokens.

    Slots give no tokens back, so a store keeps the text itself, deflated.

    Args:
        model: the decoder.
        tokens_per_memory: tokens for each slot.
        encoding: how chunks are encoded; by default as the model's settings say. Each chunk is a block of its own.

    Raises:
        StoreError: settings with which chunks are not encoded by themselves, or a ratio out of range.
    """

    gives_back = False

    def __init__(
        self, model: MemoryDecoder, *, tokens_per_memory: int | float = 8, encoding: EncodingSettings | None = None
    ) -> None:
        length = model.settings.chunk_length
        self.model, self.tokenizer = model, model.tokenizer
        self.encoding = encoding or replace(model.settings, mode="chunks", block_length=length)
        if self.encoding.mode != "chunks" or self.encoding.block_length != self.encoding.chunk_length:
            raise StoreError("a store holds chunks that are encoded by themselves; its settings say something else.")
        config = model.decoder.config
        if not 1 <= tokens_per_memory <= self.encoding.chunk_length:
            raise StoreError(
                f"tokens_per_memory ({tokens_per_memory:g}) must lie between 1 and the {self.encoding.chunk_length} "
                "tokens of a chunk."
            )
        self.numbers = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.slots = SlotFormat(
            layers=int(config.num_hidden_layers),
            heads=int(getattr(config, "num_key_value_heads", config.num_attention_heads)),
            slots=math.ceil(self.encoding.chunk_length / tokens_per_memory),
            tokens_per_memory=tokens_per_memory,
            encoding=asdict(self.encoding),
        )

    @classmethod
    def of(cls, model: MemoryDecoder, slots: SlotFormat) -> SlotCodec:
        """Return the codec with the settings of a store."""
        encoding = EncodingSettings.of(slots.encoding)
        return cls(model, tokens_per_memory=slots.tokens_per_memory, encoding=encoding)

    @property
    def chunk_length(self) -> int:
        """The number of tokens in a chunk."""
        return self.encoding.chunk_length

    def header(self, bits: Bits) -> StoreHeader:
        """Return the header of a store that this decoder writes."""
        identity, slots = self.model.fingerprint(), self.slots
        return StoreHeader(
            format=2,
            encoder=identity,
            decoder=identity,
            tokenizer=hashlib.sha256(vocabulary_of(self.tokenizer).encode()).hexdigest(),
            chunk_length=self.chunk_length,
            memories_per_chunk=slots.layers * slots.heads * 2 * slots.slots,
            numbers=self.numbers,
            bits=bits,
            slots=slots,
        )

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        return encode_texts(self.tokenizer, texts)

    def encode(self, texts: list[list[int]]) -> Float[Tensor, "chunks memories numbers"]:
        """Raise an error, since keys and values say nothing of which texts are alike.

        Raises:
            StoreError: always.
        """
        raise StoreError("keys and values are not searched; make the store with a retrieval encoder (--retrieval).")

    def write(self, texts: list[list[int]], bits: Bits) -> WrittenChunks:
        """Encode chunks as slots whose biases and values fit the rounded keys."""
        length = self.chunk_length
        chunks = [ids[first : first + length] for ids in texts for first in range(0, len(ids), length)]
        fit = replace(self.encoding.fit, bits=bits)
        settings: dict[str, Any] = {**vars(self.encoding), "fit": fit}
        groups = [chunks[first : first + _AT_ONCE] for first in range(0, len(chunks), _AT_ONCE)]
        folded = [self._nothing()]
        for group in groups:
            memories = self.model.memories(group, tokens_per_memory=self.slots.tokens_per_memory, **settings)
            folded.append(self._folded(memories.to(device=torch.device("cpu"))))
        vectors, bias, positions = (torch.cat(parts) for parts in zip(*folded, strict=True))
        return WrittenChunks(
            memories=quantize(vectors if bits == 16 else rotated(vectors), bits),
            ranks=torch.full((len(chunks), length), EXPLICIT, dtype=torch.uint8),
            num_correct=torch.zeros(len(chunks), dtype=torch.int32),
            places=SlotPlaces(bias, positions),
        )

    def read(
        self, memories: QuantizedMemories, ranks: UInt8[Tensor, "chunks length"], explicit: Int[Tensor, "chunks length"]
    ) -> Int[Tensor, "chunks length"]:
        """Raise an error, since slots give no tokens back.

        Raises:
            StoreError: always.
        """
        raise StoreError("keys and values give no text back by themselves; recall the exact text.")

    def memories(self, document: StoredDocument, *, chunks: Sequence[int] | None = None) -> SlotMemories:
        """Return the memories of a document or part, as if its text began behind the first token.

        Args:
            document: with at least one chunk.
            chunks: the chunks to read, in order; all by default. What is read next stands behind the last of them.

        Raises:
            DamagedStoreError: numbers that no decoder wrote.
        """
        rows = torch.arange(len(document.tokens)) if chunks is None else torch.tensor(list(chunks), dtype=torch.long)
        starts = (document.tokens.cumsum(0) - document.tokens)[rows].long()[:, None, None]
        found: list[LayerSlots] = []
        for number, (first, layer) in enumerate(zip(self._first_slot(), self._unfolded(document, rows), strict=True)):
            keys = self.model.reader.rotary.move(layer.keys, starts.expand_as(layer.positions), layer=number)
            moved = replace(layer, keys=keys, positions=layer.positions + starts)
            # the chunks of one text stand side by side in one row
            text = moved.map(lambda x: x.transpose(0, 1).flatten(1, 2)[None])
            columns = zip(vars(first).values(), vars(text).values(), strict=True)
            found.append(LayerSlots(*(torch.cat(pair, dim=2) for pair in columns)))
        lengths = 1 + document.tokens.cumsum(0)[rows[-1:]].long()
        return packed(found, lengths, (~found[0].bias[:, 0].isinf()).sum(-1))

    def _nothing(self) -> tuple[Tensor, Tensor, Tensor]:
        places, slots = no_places(self.slots), self.slots
        return torch.zeros(0, slots.layers * slots.heads * 2 * slots.slots, self.numbers), places.bias, places.positions

    def _folded(self, memories: SlotMemories) -> tuple[Tensor, Tensor, Tensor]:
        """Return vectors, biases and positions of chunks, without the token before each."""
        width, most = self.slots.slots, memories.num_slots
        # empty slots stand at the beginning, and the token before the text follows them
        held = torch.arange(most) > most - memories.counts[:, None]

        def of(name: str, empty: int | float) -> Tensor:
            stacked = torch.stack([getattr(layer, name) for layer in memories.layers], 1)
            mask = held[:, None, None].reshape(len(held), 1, 1, most, *[1] * (stacked.ndim - 4))
            kept = stacked.where(mask, torch.full_like(stacked, empty)).movedim(3, -1)
            return F.pad(kept[..., -width:], (max(0, width - most), 0), value=empty)

        pairs = torch.stack([of("keys", 0.0), of("values", 0.0)], 3).movedim(-1, -2)
        bias, positions = of("bias", -math.inf).half(), of("positions", 0).to(torch.int16)
        return pairs.flatten(1, 4).float(), bias.flatten(1), positions.flatten(1)

    def _unfolded(self, document: StoredDocument, rows: Int[Tensor, " chunks"]) -> list[LayerSlots]:
        """Return the slots (chunks, heads, slots) of each layer."""
        places = document.places
        if places is None:
            raise _damaged(document)
        vectors = dequantize(rows_of(document.memories, rows))
        vectors = vectors if document.memories.bits == 16 else rotated(vectors)
        slots = self.slots
        shape = (slots.layers, slots.heads, slots.slots)
        pairs = vectors.view(len(rows), slots.layers, slots.heads, 2, slots.slots, self.numbers)
        bias, positions = places.bias[rows].float().view(-1, *shape), places.positions[rows].long().view(-1, *shape)
        known = (bias <= self.encoding.fit.bias_limit + _ROUNDING) & ~bias.isnan()
        within = (positions >= 0) & (positions <= self.chunk_length)
        if not bool(known.all() and within.all() and vectors.isfinite().all()):
            raise _damaged(document)
        return [
            LayerSlots(pairs[:, i, :, 0], pairs[:, i, :, 1], bias[:, i], positions[:, i]) for i in range(slots.layers)
        ]

    def _first_slot(self) -> list[LayerSlots]:
        """Return the slot of the token before every text, which depends on the decoder alone."""
        memories = self.model.memories([[0]], slots=1, mode="joint").to(torch.float, torch.device("cpu"))
        return [layer.map(lambda x: x[:, :, :1]) for layer in memories.layers]


def _damaged(document: StoredDocument) -> DamagedStoreError:
    name = f"document {ascii(document.id)[:80]}"
    return DamagedStoreError(f"{name} holds no slots of this decoder; restore the store from a copy.")
