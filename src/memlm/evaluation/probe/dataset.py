"""Passages of one length, split and asked for: what every probe of that length shares.

Documents are split whole, three ways, before anything else: probes train on the first part, stop by the second, and are
scored on the third, which neither tokenizer nor probe has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import (
    Document,
    PackedRows,
    Passages,
    SeenVocabulary,
    cut_passages,
    near_duplicates,
    passage_rows,
    split_documents,
)
from memlm.errors import DataError
from memlm.evaluation.probe.training import ProbeData
from memlm.objectives import reconstruction

PARTS = ("train", "validation", "held_out")


@dataclass(frozen=True)
class TrainValTestSplit:
    """Whole documents, or passages of them, on three sides; the sides share no document."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    held_out: tuple[Document, ...]


def split_train_val_test(documents: Sequence[Document], *, held_out: float, seed: int) -> TrainValTestSplit:
    """Held-out documents as `split_documents` chooses them, validation documents likewise from the others.

    Raises:
        DataError: fewer than three documents.
    """
    if len(documents) < 3:
        raise DataError(
            f"{len(documents)} documents cannot be split three ways; give at least 3 (a file or a JSONL line each)."
        )
    first = split_documents(documents, held_out=held_out, seed=seed)
    second = split_documents(first.train, held_out=held_out, seed=seed + 1)
    return TrainValTestSplit(second.train, second.held_out, first.held_out)


@dataclass(frozen=True)
class ProbeDataset:
    """Passages of one length and the tokens they ask for.

    Attributes:
        passages: of the three parts, by name.
        rows: their tokens.
        vocabulary: the tokens of the training passages.
        tokenizer: what made the tokens.
        length: tokens asked for.
    """

    passages: dict[str, Passages]
    rows: dict[str, PackedRows]
    vocabulary: SeenVocabulary
    tokenizer: PreTrainedTokenizerBase
    length: int

    def classes(self, part: str) -> PackedRows:
        """Rows of a part with classes in place of token ids."""
        rows = self.rows[part]
        ids = self.vocabulary.classes(rows.input_ids)
        return PackedRows(ids, rows.attention_mask, rows.document_index, rows.document_ids)

    def labels(self, part: str) -> Int[Tensor, "passages tokens"]:
        """Classes, IGNORE_INDEX at padding."""
        rows = self.classes(part)
        return reconstruction(rows.input_ids, rows.attention_mask).labels

    def unigram_counts(self) -> Int[Tensor, " classes"]:
        """How often each class occurs in the training passages."""
        rows = self.classes("train")
        return torch.bincount(rows.input_ids[rows.attention_mask.bool()], minlength=len(self.vocabulary))

    def unseen_share(self) -> float:
        """Share of held-out tokens that no training passage holds; no probe can give them back."""
        rows = self.classes("held_out")
        asked = rows.input_ids[rows.attention_mask.bool()]
        return float((asked == 0).double().mean())

    def duplicates(self) -> int:
        """Held-out passages that nearly stand in the training passages too."""
        return near_duplicates(self.rows["train"], self.rows["held_out"])

    def probe_data(self, vectors: dict[str, Float[Tensor, "_ numbers"]]) -> ProbeData:
        """What a probe is trained on."""
        return ProbeData(
            vectors["train"],
            self.labels("train"),
            vectors["validation"],
            self.labels("validation"),
            len(self.vocabulary),
        )


def dataset_of_documents(
    documents: TrainValTestSplit,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    limits: dict[str, int],
    seed: int,
) -> ProbeDataset:
    """Passages cut from documents.

    Raises:
        DataError: a part has no document of `length` tokens.
    """
    parts = {name: getattr(documents, name) for name in PARTS}
    passages = {
        name: cut_passages(part, tokenizer, length=length, limit=limits[name], seed=seed)
        for name, part in parts.items()
    }
    return dataset_of_passages(passages, tokenizer, length=length)


def dataset_of_passages(
    passages: dict[str, Passages], tokenizer: PreTrainedTokenizerBase, *, length: int
) -> ProbeDataset:
    """Passages that are there already."""
    rows = {name: passage_rows(part, tokenizer, length=length) for name, part in passages.items()}
    for name, part in rows.items():
        if not bool(part.attention_mask.any()):
            raise DataError(f"the {len(part)} {name} texts hold no token at all; give texts that are not empty.")
    return ProbeDataset(passages, rows, SeenVocabulary.of(rows["train"]), tokenizer, length)
