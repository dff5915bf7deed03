"""Passages: stretches of so many tokens cut from documents as text, and the tokens a probe is asked to give back.

What is asked for is a function of the passage's text alone (its first tokens in a vocabulary), so that vectors which
came from a file are asked exactly what the encoder that wrote them would be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data.corpus import Document
from memlm.data.packing import PackedRows
from memlm.data.tokenizer import encode_texts, pad_id
from memlm.errors import DataError, TokenizerError

UNSEEN = 0
"""The class of every token that training passages do not hold; it is never predicted."""
_SHINGLE = 8


@dataclass(frozen=True)
class Passages:
    """Texts, and which document each comes from.

    Attributes:
        texts: the passages.
        document_index: (passages,), into document_ids.
        document_ids: names of the documents.
    """

    texts: tuple[str, ...]
    document_index: Int[Tensor, " passages"]
    document_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def sample(self, count: int, *, seed: int) -> Passages:
        """At most `count` passages at random, in their order."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(self), generator=generator)[:count].sort().values
        texts = tuple(self.texts[i] for i in chosen.tolist())
        return Passages(texts, self.document_index[chosen], self.document_ids)


def cut_passages(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, length: int, limit: int, seed: int
) -> Passages:
    """At most `limit` stretches of `length` tokens, none overlapping, at random over all documents.

    Args:
        documents: texts with names.
        tokenizer: counts the tokens; a fast one, since it must say where in the text each token lies.
        length: tokens per passage.
        limit: passages at most.
        seed: of the choice.

    Raises:
        DataError: no document has `length` tokens.
        TokenizerError: the tokenizer does not say where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"{type(tokenizer).__name__} is not a fast tokenizer and does not say where its tokens lie; use a fast one."
        )
    texts: list[str] = []
    owners: list[int] = []
    for index, document in enumerate(documents):
        for start, end in _stretches(document.text, tokenizer, length):
            texts.append(document.text[start:end])
            owners.append(index)
    if not texts:
        raise DataError(
            f"no document of {len(documents)} has {length} tokens; give longer texts, or a smaller --lengths."
        )
    return Passages(tuple(texts), torch.tensor(owners), tuple(d.id for d in documents)).sample(limit, seed=seed)


def _stretches(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> list[tuple[int, int]]:
    """First and last character of each run of `length` tokens."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    places: list[tuple[int, int]] = encoded["offset_mapping"]
    firsts = range(0, len(places) - length + 1, length)
    return [(places[i][0], places[i + length - 1][1]) for i in firsts]


def passage_rows(passages: Passages, tokenizer: PreTrainedTokenizerBase, *, length: int) -> PackedRows:
    """The first `length` tokens of each passage, shorter ones padded."""
    encoded = encode_texts(tokenizer, passages.texts)
    ids = torch.full((len(encoded), length), pad_id(tokenizer), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(encoded):
        kept = tokens[:length]
        ids[row, : len(kept)] = torch.tensor(kept, dtype=torch.long)
        mask[row, : len(kept)] = 1
    return PackedRows(ids, mask, passages.document_index, passages.document_ids)


@dataclass(frozen=True)
class SeenVocabulary:
    """The tokens that occur in training passages, as classes 1, 2, ...; class 0 is everything else.

    Attributes:
        ids: (classes - 1,), token ids in rising order.
    """

    ids: Int[Tensor, " seen"]

    @classmethod
    def of(cls, rows: PackedRows) -> SeenVocabulary:
        """The tokens of these rows, padding left out."""
        return cls(rows.input_ids[rows.attention_mask.bool()].unique())

    def __len__(self) -> int:
        return len(self.ids) + 1

    def classes(self, token_ids: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Token ids as classes."""
        place = torch.searchsorted(self.ids, token_ids.contiguous()).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[place] == token_ids, place + 1, UNSEEN)

    def token_ids(self, classes: Int[Tensor, "*any"]) -> Int[Tensor, "*any"]:
        """Classes as token ids; class 0 has none and must not occur."""
        return self.ids[classes - 1]


def near_duplicates(train: PackedRows, held_out: PackedRows) -> int:
    """Held-out passages of which at least half the runs of eight tokens stand in training passages too."""
    seen = {shingle for row in _token_lists(train) for shingle in _shingles(row)}
    shares = [_share_in(_shingles(row), seen) for row in _token_lists(held_out)]
    return sum(share >= 0.5 for share in shares)


def _token_lists(rows: PackedRows) -> list[tuple[int, ...]]:
    pairs = zip(rows.input_ids, rows.attention_mask.bool(), strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in pairs]


def _shingles(tokens: tuple[int, ...]) -> list[tuple[int, ...]]:
    width = min(_SHINGLE, len(tokens))
    return [tokens[i : i + width] for i in range(len(tokens) - width + 1)] if width else []


def _share_in(shingles: list[tuple[int, ...]], seen: set[tuple[int, ...]]) -> float:
    return sum(s in seen for s in shingles) / len(shingles) if shingles else 0.0


def texts_fingerprint(texts: Sequence[str]) -> str:
    """SHA-256 over the texts in order, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


Vectors = Float[Tensor, "texts numbers"]
"""One vector per text."""
