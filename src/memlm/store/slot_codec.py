"""The codec of a store of memories that a pretrained decoder reads, with the text itself beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from memlm.data import encode_texts
from memlm.encoders.interface import vocabulary_of
from memlm.errors import StoreError
from memlm.models.slots import EncodingSettings, MemoryDecoder, SlotMemories
from memlm.store.codec import WrittenChunks
from memlm.store.corrections import EXPLICIT
from memlm.store.format.document import StoredDocument
from memlm.store.format.header import SlotFormat, StoreHeader
from memlm.store.quantize import Bits, QuantizedMemories
from memlm.store.slot_layout import KeyValueLayout, SlotLayout, VectorLayout


class SlotCodec:
    """A pretrained decoder that encodes chunks as memories, which depend only on a chunk's own tokens.

    Memories give no tokens back, so a store keeps the text itself, deflated.

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
        if not 1 <= tokens_per_memory <= self.encoding.chunk_length:
            raise StoreError(
                f"tokens_per_memory ({tokens_per_memory:g}) must lie between 1 and the {self.encoding.chunk_length} "
                "tokens of a chunk."
            )
        injection, (layers, heads, _) = model.config.injection, model.slot_sizes
        budgets = self.encoding.heads
        if budgets is not None and budgets.sizes != (layers, heads):
            raise StoreError(
                f"the head errors are of {budgets.sizes[0]} layers of {budgets.sizes[1]} heads and the decoder has "
                f"{layers} of {heads}; measure those of this decoder (memlm measure-heads)."
            )
        self.slots = SlotFormat(
            injection=injection,
            layers=layers,
            heads=heads,
            slots=math.ceil(self.encoding.chunk_length / tokens_per_memory),
            tokens_per_memory=tokens_per_memory,
            # as a header is read: with lists in place of tuples
            encoding=json.loads(json.dumps(asdict(self.encoding))),
        )
        layout = KeyValueLayout if injection == "kv" else VectorLayout
        self.layout: SlotLayout = layout(model, self.slots, self.encoding)

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
        identity = self.model.fingerprint()
        return StoreHeader(
            format=2,
            encoder=identity,
            decoder=identity,
            tokenizer=hashlib.sha256(vocabulary_of(self.tokenizer).encode()).hexdigest(),
            chunk_length=self.chunk_length,
            memories_per_chunk=self.layout.shape[0],
            numbers=self.layout.shape[1],
            bits=bits,
            slots=self.slots,
        )

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        return encode_texts(self.tokenizer, texts)

    def encode(self, texts: list[list[int]]) -> Float[Tensor, "chunks memories numbers"]:
        """Raise an error, since a decoder's memories say nothing of which texts are alike.

        Raises:
            StoreError: always.
        """
        raise StoreError("a decoder's memories are not searched; make the store with an encoder (--retrieval).")

    def write(self, texts: list[list[int]], bits: Bits) -> WrittenChunks:
        """Encode chunks."""
        length = self.chunk_length
        chunks = [ids[first : first + length] for ids in texts for first in range(0, len(ids), length)]
        memories, places = self.layout.write(chunks, bits)
        return WrittenChunks(
            memories=memories,
            ranks=torch.full((len(chunks), length), EXPLICIT, dtype=torch.uint8),
            num_correct=torch.zeros(len(chunks), dtype=torch.int32),
            places=places,
        )

    def read(
        self, memories: QuantizedMemories, ranks: UInt8[Tensor, "chunks length"], explicit: Int[Tensor, "chunks length"]
    ) -> Int[Tensor, "chunks length"]:
        """Raise an error, since a decoder's memories give no tokens back.

        Raises:
            StoreError: always.
        """
        raise StoreError("a decoder's memories give no text back by themselves; recall the exact text.")

    def memories(self, document: StoredDocument, *, chunks: Sequence[int] | None = None) -> SlotMemories:
        """Return the memories of a document or part, as if its text began behind the first token.

        Args:
            document: with at least one chunk.
            chunks: the chunks to read, in order; all by default. What is read next stands behind the last of them.

        Raises:
            DamagedStoreError: numbers that no decoder wrote.
        """
        every = range(len(document.tokens))
        return self.layout.read(document, torch.tensor(list(every if chunks is None else chunks), dtype=torch.long))
