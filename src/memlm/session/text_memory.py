"""Strings to memories and back: a model and its tokenizer together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.chunking import chunk_texts
from memlm.data import decode_ids, encode_texts, eos_id, pad_id
from memlm.errors import TokenizerError, UserError
from memlm.models import TextAutoencoder
from memlm.models.loading import load_model

# texts have different numbers of chunks, so that one list must not bind one name to one of them
ChunkMemories = Float[Tensor, "_ memories numbers"]


class TextMemory:
    """Remembers strings of any length and gives them back.

    Example:
        >>> memory = memlm.load("runs/demo")
        >>> memories = memory.remember(["any text"])      # one tensor (chunks, memories, numbers) per text
        >>> memory.regenerate(memories)
        ['any text']
    """

    def __init__(self, model: TextAutoencoder, tokenizer: PreTrainedTokenizerBase) -> None:
        if len(tokenizer) != model.config.vocab_size:
            raise TokenizerError(
                f"the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}; "
                "use the tokenizer that the model was trained with."
            )
        self.model = model.eval()
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode(self, texts: str | Sequence[str], *, batch_size: int = 256) -> list[ChunkMemories]:
        """Memories of each text, (chunks, memories, numbers); an empty text has no chunks.

        Args:
            texts: one string or several.
            batch_size: chunks encoded at once, across texts.
        """
        if batch_size < 1:
            raise UserError(f"batch_size ({batch_size}) must be at least 1.")
        tokens = encode_texts(self.tokenizer, [texts] if isinstance(texts, str) else texts)
        config = self.model.config
        chunks, counts = chunk_texts(
            tokens,
            chunk_length=config.chunk_length,
            pad_token_id=pad_id(self.tokenizer),
            eos_token_id=eos_id(self.tokenizer),
        )
        device = self.model.device
        pairs = zip(
            chunks.input_ids[:, 0].split(batch_size),
            chunks.attention_mask[:, 0].split(batch_size),
            strict=True,
        )
        written = [self.model.encode(ids.to(device), mask.to(device)) for ids, mask in pairs if len(ids)]
        empty = torch.empty(0, config.memories_per_chunk, config.bottleneck_size, device=device)
        return list(torch.cat([empty, *written]).split(counts))

    @torch.inference_mode()
    def regenerate(self, memories: ChunkMemories | Sequence[ChunkMemories], *, batch_size: int = 256) -> list[str]:
        """The texts that memories stand for, one per tensor.

        Raises:
            MemoryShapeError: memories of another model, or values that are not finite.
        """
        given = [memories] if isinstance(memories, Tensor) else list(memories)
        if not given:
            return []
        for part in given:
            self.model.check_memories(part)
        ids = [self._tokens(part) for part in torch.cat(given).to(self.model.device).split(batch_size)]
        rows = torch.cat(ids).cpu()
        return [self._text(chunks) for chunks in rows.split([len(part) for part in given])]

    @torch.inference_mode()
    def fidelity(self, texts: str | Sequence[str]) -> list[float]:
        """Share of each text's tokens that come back at their place in their chunk, between 0 and 1."""
        wanted = [texts] if isinstance(texts, str) else list(texts)
        tokens = encode_texts(self.tokenizer, wanted)
        rows = [self._tokens(memories).cpu().flatten().tolist() for memories in self.encode(wanted)]
        return [_share_equal(before, after) for before, after in zip(tokens, rows, strict=True)]

    def _tokens(self, memories: Tensor) -> Tensor:
        if not len(memories):
            return torch.empty(0, self.model.config.chunk_length, dtype=torch.long)
        return self.model.decode(memories.to(self.model.dtype)).argmax(-1)

    def _joined(self, rows: Tensor) -> list[int]:
        """Each chunk up to its end-of-text token, one after the other."""
        end = eos_id(self.tokenizer)
        ids: list[int] = []
        for row in rows.tolist():
            ids += row[: row.index(end)] if end in row else row
        return ids

    def _text(self, rows: Tensor) -> str:
        return decode_ids(self.tokenizer, self._joined(rows))


def _share_equal(before: list[int], after: list[int]) -> float:
    if not before:
        return 1.0
    return sum(a == b for a, b in zip(before, after, strict=False)) / len(before)


def load(directory: str | Path) -> TextMemory:
    """A trained autoencoder with its tokenizer, from a run folder or any folder that save_pretrained wrote.

    Raises:
        CheckpointError: no model there, damaged, or of another kind.
        TokenizerError: no tokenizer, or one of another vocabulary.
    """
    return TextMemory(*load_model(directory, TextAutoencoder))
