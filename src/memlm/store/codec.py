"""The codec of a store: a model that encodes chunks of tokens as memories and reads them back, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import check_vocabulary, chunk_texts, encode_texts
from memlm.encoders.interface import model_fingerprint, vocabulary_of
from memlm.errors import CheckpointError
from memlm.models import MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import load_model
from memlm.models.runtime import weights_fingerprint
from memlm.store.corrections import stable_ranks, tokens_of
from memlm.store.format.document import SlotPlaces
from memlm.store.format.header import StoreHeader
from memlm.store.quantize import Bits, QuantizedMemories, dequantize, quantize, rows_of

ROWS = 64
"""Chunks that are encoded or read back at once. Small blocks are reused by the allocator between longer-lived memories,
so that the memory of the process does not grow with the text (LOG.md)."""


@dataclass(frozen=True)
class WrittenChunks:
    """Encoded chunks and what their memories give back.

    Attributes:
        memories: (chunks, memories, numbers), rounded.
        ranks: (chunks, length), see `memlm.store.corrections.stable_ranks`.
        num_correct: (chunks,), tokens that each memory gives back without corrections.
        places: of slots, where the memories are keys and values.
    """

    memories: QuantizedMemories
    ranks: UInt8[Tensor, "chunks length"]
    num_correct: Int[Tensor, " chunks"]
    places: SlotPlaces | None = None

    def rows(self, rows: slice) -> WrittenChunks:
        """Return some of the chunks."""
        places = None if self.places is None else self.places.rows(rows)
        return WrittenChunks(rows_of(self.memories, rows), self.ranks[rows], self.num_correct[rows], places)


@runtime_checkable
class Codec(Protocol):
    """A model and its tokenizer, as stores use them."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def chunk_length(self) -> int:
        """The number of tokens in a chunk."""
        ...

    @property
    def gives_back(self) -> bool:
        """True if memories give tokens back; otherwise a store keeps the text itself."""
        ...

    def header(self, bits: Bits) -> StoreHeader:
        """Return the header of a store that this model writes."""
        ...

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        ...

    def encode(self, texts: list[list[int]]) -> Float[Tensor, "chunks memories numbers"]:
        """Return the memories of chunks, which search compares."""
        ...

    def write(self, texts: list[list[int]], bits: Bits) -> WrittenChunks:
        """Encode chunks."""
        ...

    def read(
        self, memories: QuantizedMemories, ranks: UInt8[Tensor, "chunks length"], explicit: Int[Tensor, "chunks length"]
    ) -> Int[Tensor, "chunks length"]:
        """Return the tokens that memories and corrections give back."""
        ...


class ChunkCodec:
    """A model and its tokenizer that encode and read chunks; a chunk's memory depends only on its own tokens.

    Raises:
        TokenizerError: the tokenizer has another vocabulary than the model.
        CheckpointError: the model is not in float32.
    """

    def __init__(self, model: TextAutoencoder | MemoryModelForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.encoder = encoder_of(model) if isinstance(model, TextAutoencoder) else model.encoder
        if isinstance(model, TextAutoencoder) or model.config.encoder_tokens != "own":
            check_vocabulary(tokenizer, self.encoder.config.vocab_size)
        if model.dtype != torch.float32:
            # the same logits must be computed everywhere
            raise CheckpointError(f"the model is in {model.dtype} and must be in torch.float32; load it plainly.")

    @classmethod
    def load(cls, directory: str | Path) -> ChunkCodec:
        """Load an autoencoder or a memory model from a run folder, or from a folder that `save_pretrained` wrote.

        Raises:
            CheckpointError: the folder holds no such model, or a damaged one.
            TokenizerError: the tokenizer is missing, or has another vocabulary than the model.
        """
        return cls(*load_model(directory, TextAutoencoder, MemoryModelForCausalLM))

    gives_back = True

    @property
    def chunk_length(self) -> int:
        """The number of tokens in a chunk."""
        return self.model.config.chunk_length

    def header(self, bits: Bits) -> StoreHeader:
        """Return the header of a store that this model writes."""
        config = self.encoder.config
        return StoreHeader(
            encoder=weights_fingerprint(self.encoder),
            decoder=model_fingerprint(self.model, self.tokenizer),
            tokenizer=hashlib.sha256(vocabulary_of(self.tokenizer).encode()).hexdigest(),
            chunk_length=self.chunk_length,
            memories_per_chunk=config.memories_per_chunk,
            numbers=config.bottleneck_size,
            bits=bits,
        )

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text."""
        return encode_texts(self.tokenizer, texts)

    @torch.inference_mode()
    def encode(self, texts: list[list[int]]) -> Float[Tensor, "chunks memories numbers"]:
        """Return the memories of the chunks of all texts in fp32 on the CPU.

        A chunk that is not full ends with an end-of-text token.
        """
        ids, mask, _ = chunk_texts(texts, self.tokenizer, chunk_length=self.chunk_length)
        device, config = self.model.device, self.encoder.config
        pairs = zip(ids.to(device).split(ROWS), mask.to(device).split(ROWS), strict=True)
        with _full_precision(device):
            written = [self._encoded(*pair).float().cpu() for pair in pairs if len(pair[0])]
        return torch.cat([torch.empty(0, config.memories_per_chunk, config.bottleneck_size), *written])

    def _encoded(self, ids: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self.model, MemoryModelForCausalLM):
            return self.model.encode_chunks(ids[:, None], mask[:, None])[:, 0]
        return self.encoder(ids, mask)

    @torch.inference_mode()
    def write(self, texts: list[list[int]], bits: Bits) -> WrittenChunks:
        """Encode chunks, round their memories, and read the rounded memories back."""
        memories = quantize(self.encode(texts), bits)
        ids, _, _ = chunk_texts(texts, self.tokenizer, chunk_length=self.chunk_length)
        # the end-of-text token behind a text is not one of its tokens
        sizes = [size for tokens in texts for size in chunk_sizes(len(tokens), self.chunk_length)]
        mask = torch.arange(self.chunk_length) < torch.tensor(sizes, dtype=torch.long)[:, None]
        # a padding token that was added to the tokenizer may have no logit
        ids = ids.masked_fill(~mask, 0)
        ranks = torch.zeros(ids.shape, dtype=torch.uint8)
        num_correct = torch.zeros(len(ids), dtype=torch.int32)
        for rows, logits in self._read(dequantize(memories)):
            ranks[rows] = stable_ranks(logits, ids[rows]).masked_fill(~mask[rows], 0)
            num_correct[rows] = ((logits.argmax(-1) == ids[rows]) & mask[rows]).sum(-1).int()
        return WrittenChunks(memories, ranks, num_correct)

    @torch.inference_mode()
    def read(
        self, memories: QuantizedMemories, ranks: UInt8[Tensor, "chunks length"], explicit: Int[Tensor, "chunks length"]
    ) -> Int[Tensor, "chunks length"]:
        """Return the corrected tokens of chunks, (chunks, length); positions behind a chunk's text have no meaning.

        See `memlm.store.corrections.tokens_of`; ranks of 0 everywhere read without corrections.
        """
        found = torch.zeros(ranks.shape, dtype=torch.long)
        for rows, logits in self._read(dequantize(memories)):
            found[rows] = tokens_of(logits, ranks[rows], explicit[rows])
        return found

    def _read(self, memories: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices of chunks with the logits that their memories give."""
        for rows in torch.arange(len(memories)).split(ROWS) if len(memories) else ():
            with _full_precision(self.model.device):
                logits = self.model.decode(memories[rows].to(self.model.device)).float().cpu()
            yield rows, logits


def chunk_sizes(tokens: int, length: int) -> list[int]:
    """Return the number of tokens in each chunk of a text."""
    return [min(length, tokens - first) for first in range(0, tokens, length)]


def _full_precision(device: torch.device) -> torch.autocast:
    """Disable autocast, because recall must compute the same logits as encoding did."""
    return torch.autocast(device.type, enabled=False)
