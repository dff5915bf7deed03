"""Passages: texts of a fixed number of tokens cut from documents, and the tokens that a probe reconstructs.

The target tokens depend only on the passage's text (its first tokens in a vocabulary), so a probe of vectors from a
file has the same targets as a probe of the encoder that wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data.corpus import Document
from memlm.data.packing import PackedRows
from memlm.data.tokenizer import encode_texts, pad_id
from memlm.errors import DataError, TokenizerError

UNSEEN = 0
"""The class of every token that does not occur in training passages; it is never predicted."""
_SHINGLE = 8
"""Tokens in a shingle."""


@dataclass(frozen=True)
class Passages:
    """Texts cut from documents.

    Attributes:
        texts: the passages.
        document_index: (passages,), the document of each passage.
        document_ids: ids of the documents.
    """

    texts: tuple[str, ...]
    document_index: Int[Tensor, " passages"]
    document_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def cut_passages(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limit: int,
    seed: int,
    ends: bool = False,
) -> Passages:
    """Cut at most `limit` random passages of `length` tokens that do not overlap; with `ends` also shorter ends.

    Raises:
        DataError: no document has `length` tokens.
        TokenizerError: the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise TokenizerError(f"{type(tokenizer).__name__} gives no offsets of its tokens; use a fast tokenizer.")
    texts: list[str] = []
    owners: list[int] = []
    for index, document in enumerate(documents):
        spans = _spans(document.text, tokenizer, length, ends=ends)
        texts += [document.text[start:end] for start, end in spans]
        owners += [index] * len(spans)
    if not texts:
        raise DataError(f"no document of {len(documents)} has {length} tokens; give longer texts or smaller --lengths.")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(texts), generator=generator)[:limit].sort().values.tolist()
    owner = torch.tensor([owners[i] for i in chosen])
    return Passages(tuple(texts[i] for i in chosen), owner, tuple(d.id for d in documents))


def _spans(text: str, tokenizer: PreTrainedTokenizerBase, length: int, *, ends: bool) -> list[tuple[int, int]]:
    """Return the first character and the end of each run of `length` tokens, with `ends` also of the rest."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    firsts = range(0, len(offsets) - (0 if ends else length - 1), length)
    return [(offsets[i][0], offsets[min(i + length, len(offsets)) - 1][1]) for i in firsts]


def passage_rows(passages: Passages, tokenizer: PreTrainedTokenizerBase, *, length: int) -> PackedRows:
    """Return the first `length` tokens of each passage, padded at the end."""
    ids = torch.full((len(passages), length), pad_id(tokenizer), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encode_texts(tokenizer, passages.texts)):
        size = min(length, len(tokens))
        ids[row, :size] = torch.tensor(tokens[:size], dtype=torch.long)
        mask[row, :size] = 1
    return PackedRows(ids, mask, passages.document_index, passages.document_ids)


@dataclass(frozen=True)
class SeenVocabulary:
    """A mapping of the tokens in training passages to classes 1, 2, ...; class 0 stands for all other tokens.

    Attributes:
        ids: (classes - 1,), token ids in ascending order.
    """

    ids: Int[Tensor, " seen"]

    @classmethod
    def of(cls, rows: PackedRows) -> SeenVocabulary:
        """Collect the tokens of rows, without padding."""
        return cls(rows.input_ids[rows.attention_mask.bool()].unique())

    def __len__(self) -> int:
        return len(self.ids) + 1

    def classes(self, token_ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Return the classes of token ids, in the same shape."""
        index = torch.searchsorted(self.ids, token_ids.contiguous()).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[index] == token_ids, index + 1, UNSEEN)

    def token_ids(self, classes: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Return the token ids of classes, in the same shape; class 0 has none and must not occur."""
        return self.ids[classes - 1]


def near_duplicates(train: PackedRows, held_out: PackedRows) -> int:
    """Count held-out passages that share at least half of their runs of eight tokens with training passages."""
    seen = {shingle for shingles in _shingles(train) for shingle in shingles}
    return sum(bool(own) and 2 * sum(s in seen for s in own) >= len(own) for own in _shingles(held_out))


def _shingles(rows: PackedRows) -> Iterator[list[tuple[int, ...]]]:
    """Yield each passage's runs of eight tokens; a shorter passage is one run."""
    for ids, mask in zip(rows.input_ids, rows.attention_mask.bool(), strict=True):
        tokens: list[int] = ids[mask].tolist()
        width = min(_SHINGLE, len(tokens))
        yield [tuple(tokens[i : i + width]) for i in range(len(tokens) - width + 1)] if width else []
