"""Measurements of probes, and the privacy audit.

The audit counts tokens, names and numbers that a probe recovers from vectors rounded as databases store them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.evaluation.probe.content_words import ContentWords, guess_words, read_words
from memlm.evaluation.probe.dataset import ProbeDataset
from memlm.evaluation.probe.linear import read_positions
from memlm.evaluation.probe.settings import ProbeSettings
from memlm.evaluation.reconstruction import ReconstructionScores, per_document, reconstruction_measurements
from memlm.measurement import DocumentTally, Measurement, measure_ratio, unigram_log_probabilities, unigram_nats
from memlm.store import rounded

ROUNDINGS = ("fp16", "int8", "binary")
_SPANS = {"names": re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*"), "numbers": re.compile(r"\d[\d,.]*")}


@dataclass(frozen=True)
class CapacityPoint:
    """The figures of one length, as drawn in the capacity curve."""

    length: int
    token_accuracy: float
    exact_match: float
    retention: float
    controls: dict[str, float]


def capacity_measurements(
    dataset: ProbeDataset,
    runs: Sequence[ReconstructionScores],
    controls: dict[str, ReconstructionScores],
    *,
    numbers: int,
    split: str,
) -> list[Measurement]:
    """Return the measurements of one length: those of the encoder, followed by those of each control.

    Args:
        dataset: the passages that were probed.
        runs: the scores of the encoder's probes, one for each seed.
        controls: the scores of each control's probe, by name.
        numbers: the number of components of a vector.
        split: the name of the passages.
    """
    tokens, chunks, nats = (_mean(runs, name) for name in ("tokens", "chunks", "nats"))
    rows, counts = dataset.classes("held_out"), dataset.unigram_counts()
    commonest = per_document(rows, (rows.input_ids == int(counts.argmax())).double())
    known = [name for name in ("blank_memory", "shuffled_memory", "untrained") if name in controls]
    found = reconstruction_measurements(
        *(tokens, chunks, nats, split),
        numbers=chunks.with_rows(chunks.row_counts * float(numbers)),
        unigram=per_document(rows, unigram_nats(unigram_log_probabilities(counts), rows.input_ids)),
        vocabulary=len(dataset.vocabulary),
        baselines={name: controls[name].nats for name in known},
    )
    found.append(measure_ratio("token_accuracy/unigram", "fraction", commonest, split))
    for name, scores in controls.items():
        found.append(measure_ratio(f"token_accuracy/{name}", "fraction", scores.tokens, split))
        found.append(measure_ratio(f"cross_entropy/{name}", "nats/token", scores.nats, split))
    seeds = list(enumerate(runs)) if len(runs) > 1 else []
    return found + [measure_ratio(f"token_accuracy/seed_{i}", "fraction", run.tokens, split) for i, run in seeds]


def linear_measurements(
    dataset: ProbeDataset,
    vectors: dict[str, Float[Tensor, "_ numbers"]],
    others: dict[str, tuple[ProbeDataset, dict[str, Float[Tensor, "_ _"]]]],
    settings: ProbeSettings,
    *,
    split: str,
) -> list[Measurement]:
    """Measure linear readings of words and positions, with their controls.

    Args:
        dataset: the passages.
        vectors: of the encoder, by part.
        others: vectors of the same passages, in tokens of their own, by an untrained encoder and by the positive
            control.
        settings: of the measurement.
        split: the name of the passages.
    """
    tallies: dict[str, DocumentTally] = {}
    for name, (passages, own) in {"": (dataset, vectors), **others}.items():
        labels = {part: passages.labels(part) for part in passages.passages}
        right = read_positions(own, labels, len(passages.vocabulary))
        tallies[f"position_accuracy{name and '/' + name}"] = per_document(passages.classes("held_out"), right.double())
    words = ContentWords.of(dataset.passages["train"].texts)
    if words.words:
        tallies |= _word_tallies(
            dataset, {"": vectors} | {name: own for name, (_, own) in others.items()}, words, settings
        )
    return [measure_ratio(name, "fraction", tally, split) for name, tally in tallies.items() if tally.count]


def _word_tallies(
    dataset: ProbeDataset,
    vectors: dict[str, dict[str, Float[Tensor, "_ _"]]],
    words: ContentWords,
    settings: ProbeSettings,
) -> dict[str, DocumentTally]:
    """Return readings of words by name, and of vectors that hold words in the form that is read."""
    width = vectors[""]["train"].shape[1]
    sums = words.sums(dataset.passages, width=width, seed=settings.seed)
    positive = {part: rounded(rows, settings.bits) for part, rows in sums.items()} if settings.controls else None
    found = {f"{kind}/guess": tally for kind, tally in guess_words(dataset.passages, words).items()}
    for name, own in {**vectors, **({} if positive is None else {"word_sums": positive})}.items():
        tallies, another = read_words(own, dataset.passages, words, passes=settings.word_passes, seed=settings.seed)
        found |= {kind + (name and f"/{name}"): tally for kind, tally in tallies.items()}
        found |= {} if name else {f"{kind}/shuffled_memory": tally for kind, tally in another.items()}
    return found


def _mean(runs: Sequence[ReconstructionScores], name: str) -> DocumentTally:
    """Return the mean over seeds of each document's sum; the counts are the same for all seeds."""
    tallies = [cast(DocumentTally, getattr(run, name)) for run in runs]
    return tallies[0].with_rows(np.mean([t.row_sums for t in tallies], axis=0))


def audit_measurements(
    dataset: ProbeDataset, scores: ReconstructionScores, *, rounding: str, split: str
) -> list[Measurement]:
    """Measure the shares of tokens and of spans that a probe recovered; kinds of spans that do not occur are left out.

    Args:
        dataset: the passages that the probe was trained on.
        scores: the probe's scores on held-out passages.
        rounding: one of ROUNDINGS, for the names of the measurements.
        split: the name of the passages.
    """
    found = [measure_ratio(f"token_accuracy/{rounding}", "fraction", scores.tokens, split)]
    return found + [
        measure_ratio(f"{kind}_recovered/{rounding}", "fraction", tally, split)
        for kind, tally in recovered_spans(dataset, scores.predictions).items()
        if tally.count
    ]


def recovered_spans(dataset: ProbeDataset, predictions: Int[Tensor, "passages tokens"]) -> dict[str, DocumentTally]:
    """Count recovered spans over spans, by kind and document.

    Args:
        dataset: the passages that the probe was trained on.
        predictions: (passages, tokens), classes for each held-out passage.
    """
    passages, rows = dataset.passages["held_out"], dataset.classes("held_out")
    correct = (predictions == rows.input_ids) & rows.attention_mask.bool()
    tallies = {kind: DocumentTally(len(passages.document_ids)) for kind in _SPANS}
    for row, text in enumerate(passages.texts):
        offsets = _offsets(dataset, text)
        for kind, pattern in _SPANS.items():
            spans = [_recovered(correct[row], offsets, match.span()) for match in pattern.finditer(text)]
            known = [recovered for recovered in spans if recovered is not None]
            counts = torch.tensor([float(sum(known))]), torch.tensor([float(len(known))])
            tallies[kind].add(passages.document_index[row : row + 1], *counts)
    return tallies


def audit_sentences(measurements: Sequence[Measurement]) -> list[str]:
    """Return a sentence for each rounding and length that says what an attacker with the vectors can read."""
    found: list[str] = []
    for rounding in ROUNDINGS:
        figures = {(m.split, m.name.split("/")[0]): m for m in measurements if m.name.endswith(f"/{rounding}")}
        for split in dict.fromkeys(split for split, _ in figures):
            spans = [
                f"{100 * m.value:.1f} % of the {kind} ({m.count} in all)"
                for kind in _SPANS
                if (m := figures.get((split, f"{kind}_recovered"))) is not None
            ]
            shares = ", ".join([f"{100 * figures[split, 'token_accuracy'].value:.1f} % of the tokens", *spans])
            found.append(f"An attacker with the {rounding} vectors of {split} can read at least {shares}.")
    return found


def _offsets(dataset: ProbeDataset, text: str) -> list[tuple[int, int]]:
    encoded = dataset.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    return cast("list[tuple[int, int]]", encoded["offset_mapping"])[: dataset.length]


def _recovered(correct: Bool[Tensor, " tokens"], offsets: list[tuple[int, int]], span: tuple[int, int]) -> bool | None:
    """Return True where all tokens of a span are correct, None where the passage's tokens end before the span does."""
    touching = [i for i, (start, end) in enumerate(offsets) if start < span[1] and end > span[0]]
    if not touching or offsets[-1][1] < span[1]:
        return None
    return bool(correct[touching].all())
