"""Passages of one length with their targets, which all probes of that length share.

Whole documents are split three ways first: probes train on the first part, stop early by the second, and are scored on
the third, which neither the tokenizer nor the probe has seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, Passages, SeenVocabulary, TrainValTestSplit, cut_passages, decode_piece, passage_rows
from memlm.errors import DataError
from memlm.evaluation.probe.training import ProbeData
from memlm.objectives import reconstruction

PARTS = ("train", "validation", "held_out")
LANGUAGE = "language"
"""Rows of more passages of the training documents, without vectors, from which a decoder learns to write."""
_LANGUAGE_ROWS = 65536


@dataclass(frozen=True)
class ProbeDataset:
    """Passages of one length and their targets.

    Attributes:
        passages: the passages of each part, by name.
        rows: their tokens, by name of the part.
        vocabulary: the tokens of the training passages.
        tokenizer: the tokenizer of the passages.
        length: tokens per passage.
        table: the encoder's own vector of each token, where the tokens are the encoder's.
        more: all passages of the training documents, where `passages` holds a part of them.
    """

    passages: dict[str, Passages]
    rows: dict[str, PackedRows]
    vocabulary: SeenVocabulary
    tokenizer: PreTrainedTokenizerBase
    length: int
    table: Float[Tensor, "tokens _"] | None = None
    more: Passages | None = None

    def classes(self, part: str) -> PackedRows:
        """Return the rows of a part, also of LANGUAGE where it exists, with classes in place of token ids."""
        rows = self.rows[part]
        ids = self.vocabulary.classes(rows.input_ids)
        return PackedRows(ids, rows.attention_mask, rows.document_index, rows.document_ids)

    def labels(self, part: str) -> Int[Tensor, "passages tokens"]:
        """Return the target classes of a part, IGNORE_INDEX at padding."""
        rows = self.classes(part)
        return reconstruction(rows.input_ids, rows.attention_mask).labels

    def unigram_counts(self) -> Int[Tensor, " classes"]:
        """Return the number of occurrences of each class in the training passages."""
        rows = self.classes("train")
        return torch.bincount(rows.input_ids[rows.attention_mask.bool()], minlength=len(self.vocabulary))

    def unseen_share(self) -> float:
        """Return the share of held-out tokens that occur in no training passage, so that no probe can predict them."""
        rows = self.classes("held_out")
        return float((rows.input_ids[rows.attention_mask.bool()] == 0).double().mean())

    def readable(self, part: str) -> Passages:
        """Return the passages of a part as far as their first `length` tokens reach, which is what a probe predicts."""
        passages = self.passages[part]
        return replace(passages, texts=tuple(text[: self._end(text)] for text in passages.texts))

    def _end(self, text: str) -> int:
        offsets = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
        )["offset_mapping"]
        ends = [end for _, end in cast("list[tuple[int, int]]", offsets)]
        return ends[self.length - 1] if len(ends) > self.length else len(text)

    def decoded(self, classes: Int[Tensor, "passages tokens"], part: str) -> list[str]:
        """Return the texts of classes that were predicted for the passages of a part, each as long as its passage."""
        ids, lengths = self.vocabulary.token_ids(classes.clamp(min=1)), self.rows[part].attention_mask.sum(1)
        pairs = zip(ids.tolist(), lengths.tolist(), strict=True)
        return [decode_piece(self.tokenizer, row[:length]) for row, length in pairs]

    def probe_data(self, vectors: dict[str, Float[Tensor, "_ numbers"]]) -> ProbeData:
        """Return vectors and targets of the training and validation passages."""
        return ProbeData(
            vectors["train"],
            self.labels("train"),
            vectors["validation"],
            self.labels("validation"),
            len(self.vocabulary),
        )

    def language_data(self, width: int) -> ProbeData:
        """Return targets of all training passages that there are, with blank vectors of `width` numbers."""
        labels = {"train": self.labels(LANGUAGE if LANGUAGE in self.rows else "train")}
        labels["validation"] = self.labels("validation")
        train, validation = (torch.zeros(1, width).expand(len(labels[part]), -1) for part in ("train", "validation"))
        return ProbeData(train, labels["train"], validation, labels["validation"], len(self.vocabulary), self._table())

    def _table(self) -> Float[Tensor, "classes _"] | None:
        """Return the encoder's own vector of each class, zeros for unseen tokens."""
        if self.table is None or int(self.vocabulary.ids.max()) >= len(self.table):
            return None
        return torch.cat([torch.zeros(1, self.table.shape[1]), self.table[self.vocabulary.ids].float()])


def dataset_of_documents(
    documents: TrainValTestSplit,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limits: dict[str, int],
    seed: int,
    ends: bool = False,
    table: Float[Tensor, "tokens _"] | None = None,
) -> ProbeDataset:
    """Cut passages of `length` tokens from documents.

    Args:
        documents: the three parts.
        tokenizer: the tokenizer of the passages.
        length: tokens per passage.
        limits: the maximum number of passages of each part, by name.
        seed: the seed of the choice of passages.
        ends: also take the end of each document, though it is shorter than `length`.
        table: the encoder's own vector of each token, where the tokens are the encoder's.

    Raises:
        DataError: a part has no document of `length` tokens.
    """
    passages = {
        name: cut_passages(getattr(documents, name), tokenizer, length=length, limit=limits[name], seed=seed, ends=ends)
        for name in PARTS
    }
    found = replace(dataset_of_passages(passages, tokenizer, length=length), table=table)
    if len(passages["train"]) == limits["train"] < _LANGUAGE_ROWS:
        more = cut_passages(documents.train, tokenizer, length=length, limit=_LANGUAGE_ROWS, seed=seed, ends=ends)
        found.rows[LANGUAGE] = passage_rows(more, tokenizer, length=length)
        return replace(found, more=more)
    return found


def dataset_of_passages(
    passages: dict[str, Passages], tokenizer: PreTrainedTokenizerBase, *, length: int
) -> ProbeDataset:
    """Make a dataset of passages that exist already.

    Raises:
        DataError: the passages of a part hold no token.
    """
    rows = {name: passage_rows(part, tokenizer, length=length) for name, part in passages.items()}
    for name, part in rows.items():
        if not bool(part.attention_mask.any()):
            raise DataError(f"the {len(part)} {name} texts hold no token at all; give texts that are not empty.")
    return ProbeDataset(passages, rows, SeenVocabulary.of(rows["train"]), tokenizer, length)
