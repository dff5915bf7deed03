"""The encoder of an autoencoder or memory model as a thing to probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from memlm.chunking import chunk_texts
from memlm.data import encode_texts, eos_id, pad_id
from memlm.encoders.base import TextVectors
from memlm.encoders.fingerprint import model_fingerprint
from memlm.models import ChunkEncoder

_ROWS = 256


class MemoryEncoder:
    """The first chunk of a text as its memories, one after the other in one vector; what goes beyond is not read."""

    def __init__(self, encoder: ChunkEncoder, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.model = encoder.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.width = encoder.config.memories_per_chunk * encoder.config.bottleneck_size
        self.fingerprint = model_fingerprint(self.model, self.tokenizer, "memories")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> TextVectors:
        """One vector per text."""
        config, device = self.model.config, self.model.device
        tokens = [ids[: config.chunk_length] for ids in encode_texts(self.tokenizer, texts)]
        # an empty text still needs a vector: that of an end of text alone
        rows = [ids or [eos_id(self.tokenizer)] for ids in tokens]
        chunks, _ = chunk_texts(
            rows,
            chunk_length=config.chunk_length,
            pad_token_id=pad_id(self.tokenizer),
            eos_token_id=eos_id(self.tokenizer),
        )
        pairs = zip(chunks.input_ids[:, 0].split(_ROWS), chunks.attention_mask[:, 0].split(_ROWS), strict=True)
        written = [self.model(ids.to(device), mask.to(device)).flatten(1) for ids, mask in pairs]
        return torch.cat([part.float().cpu() for part in written])

    def untrained(self, seed: int) -> MemoryEncoder:
        """The same architecture with fresh weights."""
        torch.manual_seed(seed)
        return MemoryEncoder(ChunkEncoder(self.model.config), self.tokenizer, name=f"{self.name} (untrained)")
