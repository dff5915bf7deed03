"""Measurements of probes, and the points of the capacity curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np

from memlm.evaluation.probe.dataset import ProbeDataset
from memlm.evaluation.reconstruction import ReconstructionScores, per_document, reconstruction_measurements
from memlm.measurement import DocumentTally, Measurement, measure_ratio, unigram_log_probabilities, unigram_nats


@dataclass(frozen=True)
class CapacityPoint:
    """The figures of one length, as drawn in the capacity curve."""

    length: int
    token_accuracy: float
    exact_match: float
    retention: float
    controls: dict[str, float]


class CapacityFigures:
    """Makes the measurements of one length.

    Args:
        dataset: the passages that were probed.
        split: the name of the passages.
    """

    def __init__(self, dataset: ProbeDataset, *, split: str) -> None:
        self.dataset = dataset
        self.split = split
        rows = dataset.classes("held_out")
        logs = unigram_log_probabilities(dataset.unigram_counts())
        self.unigram = per_document(rows, unigram_nats(logs, rows.input_ids))
        commonest = int(dataset.unigram_counts().argmax())
        self.commonest = per_document(rows, (rows.input_ids == commonest).double())

    def measurements(
        self, runs: list[ReconstructionScores], controls: dict[str, ReconstructionScores], *, numbers: int
    ) -> list[Measurement]:
        """Return the measurements of the encoder, followed by those of each control.

        Args:
            runs: the scores of the encoder's probes, one for each seed.
            controls: the scores of each control's probe, by name.
            numbers: the number of components of a vector.
        """
        tokens, chunks, nats = (_mean(runs, name) for name in ("tokens", "chunks", "nats"))
        split = self.split
        known = [name for name in ("blank_memory", "shuffled_memory", "untrained") if name in controls]
        found = reconstruction_measurements(
            *(tokens, chunks, nats, split),
            numbers=chunks.with_rows(chunks.row_counts * float(numbers)),
            unigram=self.unigram,
            vocabulary=len(self.dataset.vocabulary),
            baselines={name: controls[name].nats for name in known},
        )
        found.append(measure_ratio("token_accuracy/unigram", "fraction", self.commonest, split))
        for name, scores in controls.items():
            found.append(measure_ratio(f"token_accuracy/{name}", "fraction", scores.tokens, split))
            found.append(measure_ratio(f"cross_entropy/{name}", "nats/token", scores.nats, split))
        if len(runs) > 1:
            found += [
                measure_ratio(f"token_accuracy/seed_{i}", "fraction", run.tokens, split) for i, run in enumerate(runs)
            ]
        return found

    def point(self, runs: list[ReconstructionScores], controls: dict[str, ReconstructionScores]) -> CapacityPoint:
        """Return the point of the capacity curve."""
        return CapacityPoint(
            length=self.dataset.length,
            token_accuracy=_mean(runs, "tokens").ratio(),
            exact_match=_mean(runs, "chunks").ratio(),
            retention=1 - _mean(runs, "nats").ratio() / self.unigram.ratio(),
            controls={
                "unigram": self.commonest.ratio(),
                **{name: scores.tokens.ratio() for name, scores in controls.items()},
            },
        )


def _mean(runs: list[ReconstructionScores], name: str) -> DocumentTally:
    """Return the mean over seeds of each document's sum; the counts are the same for all seeds."""
    tallies = [cast(DocumentTally, getattr(run, name)) for run in runs]
    return tallies[0].with_rows(np.mean([t.row_sums for t in tallies], axis=0))
