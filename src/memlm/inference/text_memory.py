"""Text -> memories -> text, with a trained autoencoder and its tokenizer.

Chunks of all texts are folded into one batch; a text becomes as many chunks as it needs, an empty one none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.chunking import Chunks, chunk_texts
from memlm.data import decode_ids, encode_texts, load_tokenizer
from memlm.errors import CheckpointError, DataError, MemoryShapeError, TokenizerError
from memlm.models import TextAutoencoder, TextAutoencoderConfig

BATCH_SIZE = 256
"""Chunks read or written at once."""


class TextMemory:
    """Remembers texts as memories, and writes them out again.

    Example:
        >>> memory = load("runs/demo")
        >>> kept = memory.remember(["Some text."])       # one tensor (chunks, memories, numbers) per text
        >>> texts = memory.regenerate(kept)

    The model is put in evaluation mode; everything stays on its device and in its precision.

    Raises:
        TokenizerError: tokenizer and model disagree about the size of the vocabulary.
    """

    def __init__(
        self, model: TextAutoencoder, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = BATCH_SIZE
    ) -> None:
        _require_same_vocabulary(model, tokenizer)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.batch_size = max(1, batch_size)

    @torch.inference_mode()
    def remember(self, texts: str | Sequence[str]) -> list[Float[Tensor, "chunks memories numbers"]]:
        """Memories of each text (chunks, memories, numbers); an empty text has zero chunks.

        Raises:
            DataError: something that is not text.
        """
        chunks, counts = self._chunks(self._tokens(texts))
        config = self.model.config
        empty = torch.zeros(0, config.memories_per_chunk, config.bottleneck_size, dtype=self.model.dtype)
        groups = [self.model.encode(ids, mask) for ids, mask in self._batches(chunks)]
        return list(torch.cat([empty.to(self.model.device), *groups]).split(counts))

    @torch.inference_mode()
    def regenerate(self, memories: Sequence[Tensor]) -> list[str]:
        """The text of each group of memories, every chunk up to its first end of text.

        Args:
            memories: one tensor (chunks, memories, numbers) per text, as `remember` returns them.

        Raises:
            MemoryShapeError: another shape than the model writes, or numbers that are not finite.
        """
        for group in memories:
            self._check(group)
        counts = [len(group) for group in memories]
        rows = iter(self._written([group for group in memories if len(group)]))
        return [
            decode_ids(self.tokenizer, [i for _ in range(count) for i in self._until_eos(next(rows))])
            for count in counts
        ]

    @torch.inference_mode()
    def fidelity(self, texts: str | Sequence[str]) -> list[float]:
        """Share of each text's tokens that come back in place, 0 to 1; an empty text loses nothing (1.0)."""
        tokens = self._tokens(texts)
        chunks, counts = self._chunks(tokens)
        groups = [
            self.model.decode(self.model.encode(ids, mask)).argmax(-1) for ids, mask in self._batches(chunks)
        ]
        returned = [i for group in groups for row in group.tolist() for i in row]
        shares: list[float] = []
        first = 0
        for ids, count in zip(tokens, counts, strict=True):
            right = sum(a == b for a, b in zip(ids, returned[first:], strict=False))
            shares.append(right / len(ids) if ids else 1.0)
            first += count * self.model.config.chunk_length
        return shares

    def _tokens(self, texts: str | Sequence[str]) -> list[list[int]]:
        listed = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(listed):
            _require_text(text, number)
        return encode_texts(self.tokenizer, listed)

    def _chunks(self, tokens: list[list[int]]) -> tuple[Chunks, list[int]]:
        return chunk_texts(
            tokens,
            chunk_length=self.model.config.chunk_length,
            pad_token_id=int(cast(int, self.tokenizer.pad_token_id)),
            eos_token_id=int(cast(int, self.tokenizer.eos_token_id)),
        )

    def _batches(self, chunks: Chunks) -> Iterator[tuple[Tensor, Tensor]]:
        if not len(chunks.input_ids):
            return
        pairs = zip(
            chunks.input_ids.split(self.batch_size), chunks.attention_mask.split(self.batch_size), strict=True
        )
        for ids, mask in pairs:
            yield ids[:, 0].to(self.model.device), mask[:, 0].to(self.model.device)

    def _written(self, groups: list[Tensor]) -> list[list[int]]:
        if not groups:
            return []
        together = torch.cat([group.to(self.model.device, self.model.dtype) for group in groups])
        return [
            row
            for part in together.split(self.batch_size)
            for row in self.model.decode(part).argmax(-1).tolist()
        ]

    def _until_eos(self, ids: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return ids[: ids.index(eos)] if eos in ids else ids

    def _check(self, memories: Tensor) -> None:
        config = self.model.config
        expected = (config.memories_per_chunk, config.bottleneck_size)
        if memories.dim() != 3 or tuple(memories.shape[1:]) != expected:
            raise MemoryShapeError(
                f"memories of shape {tuple(memories.shape)} do not fit this model, which writes "
                f"(chunks, {expected[0]}, {expected[1]}); give a list with one such tensor per text."
            )
        if not bool(torch.isfinite(memories).all()):
            bad = int((~torch.isfinite(memories)).sum())
            raise MemoryShapeError(
                f"{bad} of {memories.numel()} numbers are NaN or infinite; encode the text again."
            )


def load(directory: str | Path, *, batch_size: int = BATCH_SIZE) -> TextMemory:
    """A trained autoencoder with its tokenizer, from a run folder or any folder with both.

    Raises:
        CheckpointError: the folder or its model is missing, incomplete or damaged.
        TokenizerError: no tokenizer there, or one of another vocabulary size.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise CheckpointError(f"no folder at '{folder}'; give the folder that training wrote.")
    _require_autoencoder(folder)
    model = _load_model(folder)
    return TextMemory(model, load_tokenizer(folder), batch_size=batch_size)


def _require_autoencoder(folder: Path) -> None:
    path = folder / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"'{folder}' has no config.json; give the folder that training wrote."
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"cannot read '{path}' ({_first_line(error)}); copy the folder again."
        ) from error
    if kind != TextAutoencoderConfig.model_type:
        wanted = TextAutoencoderConfig.model_type
        raise CheckpointError(
            f"'{folder}' holds a model of type '{kind}', not '{wanted}'; give a folder of the latter."
        )


def _load_model(folder: Path) -> TextAutoencoder:
    try:
        loaded = TextAutoencoder.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    except Exception as error:
        raise CheckpointError(
            f"cannot load the model in '{folder}' ({_first_line(error)}); copy the folder again."
        ) from error
    model, report = cast("tuple[TextAutoencoder, dict[str, Any]]", loaded)
    wrong = sorted([*report["missing_keys"], *report["unexpected_keys"]])
    if wrong:
        raise CheckpointError(
            f"the weights in '{folder}' do not fit its config.json ({len(wrong)} names differ, "
            f"e.g. '{wrong[0]}'); copy the folder again."
        )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _require_same_vocabulary(model: TextAutoencoder, tokenizer: PreTrainedTokenizerBase) -> None:
    if len(tokenizer) != model.config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {model.config.vocab_size}; "
            "use the one it was trained with."
        )


def _require_text(text: Any, number: int) -> None:
    if not isinstance(text, str):
        raise DataError(f"text {number} is a {type(text).__name__}, not a string; pass text.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"text {number} holds half a surrogate pair at character {error.start}; decode it as UTF-8 first."
        ) from error
