"""An autoencoder through every measurement: held-out text, training text, other text, random tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import (
    Document,
    PackedRows,
    pack,
    random_rows,
    token_byte_lengths,
)
from memlm.evaluation.figures import Reference, accuracy_measurement, measure
from memlm.evaluation.memory_cost import MemoryCost, memory_costs
from memlm.evaluation.passages import Passage, passages
from memlm.evaluation.reconstruction import Progress, reconstruct
from memlm.measurement import Measurement
from memlm.models import TextAutoencoder

RANDOM_ROWS: Final = 512
PASSAGES: Final = 8
ROUNDED: Final = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Evaluation:
    """Everything that was measured.

    Attributes:
        measurements: every figure of every split.
        accuracy_by_position: share right at each place in a chunk, on the first split.
        passages: some chunks beside what came back.
        costs: bytes of memories and of compressors on the first split's text.
    """

    measurements: list[Measurement]
    accuracy_by_position: list[float]
    passages: list[Passage]
    costs: list[MemoryCost]


def python_topics() -> list[Document]:
    """The help texts that Python ships (`pydoc_data.topics`): technical English, nothing to install."""
    from pydoc_data.topics import topics

    return [Document(f"python/{name}", text) for name, text in sorted(topics.items())]


def evaluate_reconstruction(
    model: TextAutoencoder,
    tokenizer: PreTrainedTokenizerBase,
    *,
    held_out: PackedRows,
    unigram_counts: Int[Tensor, " vocabulary"],
    train: PackedRows | None = None,
    out_of_distribution: Sequence[Document] | None = None,
    seed: int = 0,
    split: str = "held_out",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a model on held-out rows and on whatever else is given; random tokens always join.

    Args:
        model: an autoencoder.
        tokenizer: its own.
        held_out: rows of one document each; passages, positions, rounding and costs are taken on these.
        unigram_counts: (vocabulary,), of the training half.
        train: rows it was trained on.
        out_of_distribution: texts of another kind; Python's help texts where None, nothing where empty.
        seed: of intervals, random tokens and the choice of passages.
        split: the name of `held_out`, where it is another text.
        progress: called with rows done and rows in all, over all passes.

    Raises:
        DataError: too little text.
        UserError: rows longer than a chunk.
    """
    reference = Reference(model, unigram_counts, token_byte_lengths(tokenizer), seed)
    others = _others(tokenizer, held_out, train, out_of_distribution, seed)
    steps = _Steps(len(held_out) * (1 + len(ROUNDED)) + sum(map(len, others.values())), progress)
    scores = reconstruct(model, held_out, progress=steps.advance)
    figures = measure(scores, split, reference)
    for name, bits in ROUNDED.items():
        rounded = reconstruct(model, held_out, bits=bits, progress=steps.advance)
        figures.append(accuracy_measurement(rounded, split, name=f"token_accuracy/{name}", seed=seed))
    for other, rows in others.items():
        found = reconstruct(model, rows, progress=steps.advance)
        figures += measure(found, other, reference, is_text=other != "random_tokens")
    shown = passages(scores, tokenizer, count=PASSAGES, seed=seed)
    return Evaluation(
        figures, scores.accuracy_by_position(), shown, memory_costs(held_out, model.config, tokenizer)
    )


def _others(
    tokenizer: PreTrainedTokenizerBase,
    held_out: PackedRows,
    train: PackedRows | None,
    documents: Sequence[Document] | None,
    seed: int,
) -> dict[str, PackedRows]:
    length = held_out.input_ids.shape[1]
    foreign = python_topics() if documents is None else documents
    rows: dict[str, PackedRows] = {} if train is None else {"train": train}
    if foreign:
        rows["out_of_distribution"] = pack(foreign, tokenizer, row_length=length, across_documents=False)
    special: list[int] = list(tokenizer.all_special_ids)
    count = min(len(held_out), RANDOM_ROWS)
    rows["random_tokens"] = random_rows(count, length, len(tokenizer), seed=seed, exclude=special)
    return rows


class _Steps:
    """Rows done over several passes, each of which counts from zero."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.progress = progress
        self.finished = 0

    def advance(self, done: int, rows: int) -> None:
        if self.progress is not None:
            self.progress(self.finished + done, self.total)
        if done == rows:
            self.finished += rows
