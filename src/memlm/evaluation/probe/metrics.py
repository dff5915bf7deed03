"""Measurements of probes and of linear readings, with their controls, and of retrieval beside them.

In retrieval a query is a sentence of a held-out passage, and all held-out passages are searched for the one that it
comes from. Passages are rounded as a database stores them; queries are not stored and stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from memlm.data import Passages
from memlm.data.words import words_of
from memlm.encoders import Encoder
from memlm.evaluation.probe.content_words import ContentWords, guess_words, read_words
from memlm.evaluation.probe.dataset import ProbeDataset
from memlm.evaluation.probe.linear import read_positions
from memlm.evaluation.probe.settings import ProbeSettings
from memlm.evaluation.reconstruction import ReconstructionScores, per_document, reconstruction_measurements
from memlm.measurement import DocumentTally, Measurement, measure_ratio, unigram_log_probabilities, unigram_nats
from memlm.store import rounded

NDCG = "ndcg@10"
_FOUND = 10
"""Passages that a search returns."""
_LEAST = 4
"""Words of the shortest query."""
_ROWS = 256
"""Queries that are searched for at once."""
_END = re.compile(r"(?<=[.!?;])\s+")


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


def queries(passages: Passages) -> tuple[list[str], Int[Tensor, " queries"]]:
    """Return the longest sentence of each passage that has several, and the rows of those passages.

    Sentences that the passage cuts count; those of fewer than four words are not asked for.
    """
    found: list[tuple[str, int]] = []
    for row, text in enumerate(passages.texts):
        sentences = _END.split(text.strip())
        longest = max(sentences, key=len)
        if len(sentences) > 1 and len(words_of(longest)) >= _LEAST:
            found.append((longest, row))
    return [text for text, _ in found], torch.tensor([row for _, row in found], dtype=torch.long)


def ndcg(
    asked: Float[Tensor, "queries numbers"], stored: Float[Tensor, "passages numbers"], own: Int[Tensor, " queries"]
) -> Float[Tensor, " queries"]:
    """Return nDCG@10 of each query, whose one relevant passage is its own: 1 / log2(1 + rank) among the first ten.

    Passages as near as the own one stand before it.
    """
    given, kept = F.normalize(asked, dim=1), F.normalize(stored, dim=1)
    ranks = [
        (scores >= scores.gather(1, rows[:, None])).sum(1)
        for part, rows in zip(given.split(_ROWS), own.split(_ROWS), strict=True)
        for scores in [part @ kept.T]
    ]
    rank = torch.cat([torch.empty(0, dtype=torch.long), *ranks])
    return torch.where(rank <= _FOUND, 1 / (1 + rank.clamp(min=1)).float().log2(), 0.0)


def retrieval_measurements(
    encoder: Encoder, passages: Passages, stored: Float[Tensor, "passages numbers"], split: str
) -> list[Measurement]:
    """Measure how well sentences find the passages that they come from; nothing where no passage has two sentences.

    Args:
        encoder: of the queries; where it has a way of its own to encode them, that is used.
        passages: that are searched.
        stored: their vectors, rounded as they are stored.
        split: the name of the passages.
    """
    texts, own = queries(passages)
    if not texts:
        return []
    encode = getattr(encoder, "encode_query", encoder.encode)
    tally = DocumentTally(len(passages.document_ids))
    found = ndcg(encode(texts), stored, own)
    tally.add(passages.document_index[own], found, torch.ones(len(found)))
    return [measure_ratio(NDCG, "fraction", tally, split, protocol="search")]
