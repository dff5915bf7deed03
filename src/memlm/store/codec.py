"""The codec of a store: a model that encodes chunks of tokens as memories and reads them back, and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.chunking import chunk_texts
from memlm.data import decode_ids, decode_piece, encode_texts, eos_id, pad_id
from memlm.encoders.interface import model_fingerprint, vocabulary_of
from memlm.errors import CheckpointError, TokenizerError
from memlm.models import MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import load_model
from memlm.models.runtime import weights_fingerprint
from memlm.store.corrections import stable_ranks, tokens_of
from memlm.store.format.header import StoreHeader
from memlm.store.quantize import Bits, QuantizedMemories, dequantize, quantize

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
    """

    memories: QuantizedMemories
    ranks: UInt8[Tensor, "chunks length"]
    num_correct: Int[Tensor, " chunks"]


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
        vocab_size = self.encoder.config.vocab_size
        own_tokens = isinstance(model, MemoryModelForCausalLM) and model.config.encoder_tokens == "own"
        if len(tokenizer) != vocab_size and not own_tokens:
            raise TokenizerError(
                f"the tokenizer has {len(tokenizer)} tokens and the model {vocab_size}; "
                "use the tokenizer that the model was trained with."
            )
        if model.dtype != torch.float32:
            raise CheckpointError(
                f"the model is in {model.dtype} and reading back must be in torch.float32, so that it is the same "
                "everywhere; load it without a dtype."
            )

    @classmethod
    def load(cls, directory: str | Path) -> ChunkCodec:
        """Load an autoencoder or a memory model from a run folder, or from a folder that `save_pretrained` wrote.

        Raises:
            CheckpointError: the folder holds no such model, or a damaged one.
            TokenizerError: the tokenizer is missing, or has another vocabulary than the model.
        """
        return cls(*load_model(directory, TextAutoencoder, MemoryModelForCausalLM))

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

    def text(self, tokens: list[int]) -> str:
        """Return the text of token ids."""
        return decode_ids(self.tokenizer, tokens)

    def piece(self, tokens: list[int]) -> str:
        """Return the text of token ids from the middle of a text."""
        return decode_piece(self.tokenizer, tokens)

    @torch.inference_mode()
    def encode(self, texts: list[list[int]]) -> Float[Tensor, "chunks memories numbers"]:
        """Return the memories of the chunks of all texts in fp32 on the CPU.

        A chunk that is not full ends with an end-of-text token.
        """
        ids, mask = self._chunks(texts)
        pairs = zip(ids.split(ROWS), mask.split(ROWS), strict=True)
        with _full_precision(self.model.device):
            written = [self._encoded(i, m).float().cpu() for i, m in pairs if len(i)]
        config = self.encoder.config
        return torch.cat([torch.empty(0, config.memories_per_chunk, config.bottleneck_size), *written])

    def _encoded(self, ids: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self.model, MemoryModelForCausalLM):
            return self.model.encode_chunks(ids[:, None], mask[:, None])[:, 0]
        return self.encoder(ids, mask)

    @torch.inference_mode()
    def write(self, texts: list[list[int]], bits: Bits) -> WrittenChunks:
        """Encode chunks, round their memories, and read the rounded memories back."""
        memories = quantize(self.encode(texts), bits)
        ids, mask = self._chunks(texts)
        # the end-of-text token behind a text is not one of its tokens
        mask = mask.bool().cpu() & _belongs(texts, self.chunk_length)
        # a padding token that was added to the tokenizer may have no logit
        ids = ids.cpu().masked_fill(~mask, 0)
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

        Args:
            memories: (chunks, memories, numbers), rounded.
            ranks: (chunks, length), 0 everywhere to read without corrections.
            explicit: (chunks, length), tokens where the rank is EXPLICIT.
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

    def _chunks(self, texts: list[list[int]]) -> tuple[Tensor, Tensor]:
        chunks, _ = chunk_texts(
            texts,
            chunk_length=self.chunk_length,
            pad_token_id=pad_id(self.tokenizer),
            eos_token_id=eos_id(self.tokenizer),
        )
        device = self.model.device
        return chunks.input_ids[:, 0].to(device), chunks.attention_mask[:, 0].to(device)


def _belongs(texts: list[list[int]], length: int) -> Tensor:
    """Return a mask (chunks, length), True where a position holds one of the text's tokens."""
    sizes = [size for tokens in texts for size in chunk_sizes(len(tokens), length)]
    return torch.arange(length) < torch.tensor(sizes, dtype=torch.long)[:, None]


def chunk_sizes(tokens: int, length: int) -> list[int]:
    """Return the number of tokens in each chunk of a text."""
    return [min(length, tokens - first) for first in range(0, tokens, length)]


def _full_precision(device: torch.device) -> torch.autocast:
    """Disable autocast, because recall must compute the same logits as encoding did."""
    return torch.autocast(device.type, enabled=False)
