"""Models with their tokenizers: texts to memories and back, and `load`, which opens every kind of run."""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import check_vocabulary, chunk_texts, decode_ids, encode_texts, eos_id
from memlm.data.given import finite_tensor, folder_of, list_of_texts, one_text
from memlm.errors import UserError, Within
from memlm.models import ChunkReader, MemoryModelForCausalLM, RecurrentMemoryForCausalLM, TextAutoencoder
from memlm.models.loading import load_model, summary_of
from memlm.models.memory.prompt import has_prompts
from memlm.models.slots import MemoryDecoder
from memlm.models.slots.saved import is_writer_folder
from memlm.session.session import MemorySession

# texts have different numbers of chunks, so one list must not bind one name to one of these numbers
ChunkMemories = Float[Tensor, "_ memories numbers"]


BATCH: Final = Within(1, 2**20)
"""The range of the number of chunks in a batch."""


class TextMemory:
    """A text autoencoder that encodes strings of any length as memories and gives them back.

    Example:
        >>> memory = memlm.load("runs/demo")
        >>> memories = memory.encode(["any text"])        # one tensor (chunks, memories, numbers) per text
        >>> memory.regenerate(memories)
        ['any text']

    Raises:
        TokenizerError: the tokenizer has another vocabulary than the model.
    """

    def __init__(self, model: TextAutoencoder, tokenizer: PreTrainedTokenizerBase) -> None:
        check_vocabulary(tokenizer, model.config.vocab_size)
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> TextMemory:
        """Load an autoencoder from a run folder, or from a folder that `save_pretrained` wrote.

        Raises:
            CheckpointError: the folder holds no autoencoder, or a damaged one.
            TokenizerError: the tokenizer is missing, or has another vocabulary than the model.
        """
        return cls(*load_model(directory, TextAutoencoder))

    def __repr__(self) -> str:
        return f"TextMemory({summary_of(self.model, self.tokenizer)})"

    @torch.inference_mode()
    def encode(self, texts: str | Sequence[str], *, batch_size: int = 256) -> list[ChunkMemories]:
        """Return the memories of each text, (chunks, memories, numbers); an empty text has no chunks.

        Batches hold `batch_size` chunks across texts.

        Raises:
            ConfigError: batch_size is out of its range.
            DataError: they are no texts.
        """
        BATCH.check("batch_size", batch_size, whole=True)
        tokens = encode_texts(self.tokenizer, texts)
        config = self.model.config
        ids, mask, counts = chunk_texts(tokens, self.tokenizer, chunk_length=config.chunk_length)
        device = self.model.device
        pairs = zip(ids.to(device).split(batch_size), mask.to(device).split(batch_size), strict=True)
        written = [self.model.encode(*pair) for pair in pairs if len(pair[0])]
        empty = torch.empty(0, config.memories_per_chunk, config.bottleneck_size, device=device)
        return list(torch.cat([empty, *written]).split(counts))

    @torch.inference_mode()
    def regenerate(self, memories: ChunkMemories | Sequence[ChunkMemories], *, batch_size: int = 256) -> list[str]:
        """Return the text that each tensor of memories, (chunks, memories, numbers), gives back.

        Batches hold `batch_size` chunks across texts.

        Raises:
            MemoryShapeError: the memories have another shape than the model's, or values that are not finite.
        """
        BATCH.check("batch_size", batch_size, whole=True)
        parts = [memories] if not isinstance(memories, list | tuple) else memories
        given = [finite_tensor(part, name="memories") for part in parts]
        if not given:
            return []
        for part in given:
            self.model.check_memories(part)
        ids = [self._tokens(part) for part in torch.cat(given).to(self.model.device).split(batch_size)]
        return [self._text(chunks) for chunks in torch.cat(ids).split([len(part) for part in given])]

    @torch.inference_mode()
    def fidelity(self, texts: str | Sequence[str]) -> list[float]:
        """Return the share of each text's tokens that come back at their position in their chunk, 0 to 1."""
        originals = list_of_texts(texts)
        tokens = encode_texts(self.tokenizer, originals)
        shares: list[float] = []
        for before, memories in zip(tokens, self.encode(originals), strict=True):
            after = self._tokens(memories).flatten().tolist()
            shares.append(sum(map(eq, before, after)) / len(before) if before else 1.0)
        return shares

    def _tokens(self, memories: Tensor) -> Tensor:
        if not len(memories):
            return torch.empty(0, self.model.config.chunk_length, dtype=torch.long)
        return self.model.decode(memories.to(self.model.dtype)).argmax(-1).cpu()

    def _text(self, rows: Tensor) -> str:
        """Return the text of chunks, each up to its end-of-text token."""
        end = eos_id(self.tokenizer)
        ids: list[int] = []
        for row in rows.tolist():
            ids += row[: row.index(end)] if end in row else row
        return decode_ids(self.tokenizer, ids)


class DocumentModel:
    """A model that reads documents chunk by chunk, for runs that have no sessions.

    These are recurrent memory models, and memory models whose layout has no prompts (`layout="fixed"` or `"oracle"`).

    Example:
        >>> model = memlm.load("runs/recurrent")
        >>> model.token_losses("any text")                # nats of each token after the first
    """

    def __init__(self, model: ChunkReader, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"DocumentModel({summary_of(self.model, self.tokenizer)})"

    @torch.inference_mode()
    def encode(self, text: str) -> Float[Tensor, "chunks memories numbers"]:
        """Return the memories of each chunk of a text; a recurrent model hands them on to the next chunk."""
        return self.model.encode(self._ids(text))[0]

    @torch.inference_mode()
    def token_losses(self, text: str) -> Float[Tensor, " predicted"]:
        """Return the negative log-likelihood in nats of each token after the first, given all tokens before it.

        Raises:
            UserError: the text has fewer than two tokens.
        """
        ids = self._ids(text)
        if ids.shape[1] < 2:
            raise UserError(f"a text of {ids.shape[1]} tokens predicts nothing; give at least two tokens.")
        logits = self.model(input_ids=ids).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none")[0]

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(encode_texts(self.tokenizer, [one_text(text)]), device=self.model.device)


def load(directory: str | Path) -> TextMemory | MemorySession | DocumentModel | MemoryDecoder:
    """Open the model of any run, with its tokenizer.

    Args:
        directory: a run folder, or a folder that `save_pretrained` wrote.

    Returns:
        A `TextMemory` for an autoencoder, a `MemorySession` for a memory model, a `DocumentModel` for a recurrent
        model or a memory model without prompts, and a `MemoryDecoder` for a decoder that was trained to write
        memories. Printing the others shows their kind, sizes and tokenizer.

    Raises:
        CheckpointError: the folder holds no model of a run (for instance an exported decoder), or a damaged one.
        TokenizerError: the tokenizer is missing, or has another vocabulary than the model.
    """
    directory = folder_of(directory)
    if is_writer_folder(directory):
        return MemoryDecoder.from_pretrained(str(directory))
    model, tokenizer = load_model(directory, TextAutoencoder, MemoryModelForCausalLM, RecurrentMemoryForCausalLM)
    if isinstance(model, TextAutoencoder):
        return TextMemory(model, tokenizer)
    if isinstance(model, MemoryModelForCausalLM) and has_prompts(model.config):
        return MemorySession((model, tokenizer))
    return DocumentModel(model, tokenizer)
