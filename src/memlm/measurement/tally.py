"""Sums and counts over rows of documents, and the measurements that are made from them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from memlm.measurement.information import NATS_PER_BIT, retention
from memlm.measurement.intervals import Interval, binomial_interval, ratio_interval, sum_by, units_of
from memlm.measurement.record import Baseline, Measurement

PARALLEL = "one_pass"
"""Protocol: all positions are predicted at once from the memory, and no token of the text is an input."""
TEACHER_FORCED = "teacher_forced"
"""Protocol: each token is predicted after the true tokens before it."""
GREEDY = "greedy"
"""Protocol: no true token of the answer is an input; each token is the likeliest one."""
BEAM_SEARCH = "beam_search"
"""Protocol, before the number of beams: no true token is an input; several likely beginnings are followed at once."""


class DocumentTally:
    """A ratio of sums over the rows of documents, kept by row so that intervals can resample documents or pieces.

    Rows may be added in any number of batches, in the order of the text: sums are divided once, at the end.

    Args:
        num_documents: the number of documents.
    """

    def __init__(self, num_documents: int) -> None:
        self.num_documents = num_documents
        self.document_index: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.row_sums = np.zeros(0)
        self.row_counts = np.zeros(0)

    def add(
        self,
        document_index: Int[Tensor, " rows"],
        sums: Float[Tensor, " rows"] | Int[Tensor, " rows"],
        counts: Float[Tensor, " rows"] | Int[Tensor, " rows"],
    ) -> None:
        """Add the sum and count of each row."""
        self.document_index = np.concatenate([self.document_index, document_index.cpu().numpy()])
        self.row_sums = np.concatenate([self.row_sums, sums.detach().to("cpu", torch.float64).numpy()])
        self.row_counts = np.concatenate([self.row_counts, counts.detach().to("cpu", torch.float64).numpy()])

    def with_rows(self, sums: NDArray[np.float64], counts: NDArray[np.float64] | None = None) -> DocumentTally:
        """Return a tally of the same rows with other sums, and other counts where they are given."""
        tally = DocumentTally(self.num_documents)
        tally.document_index = self.document_index
        tally.row_sums, tally.row_counts = sums, self.row_counts if counts is None else counts
        return tally

    def minus(self, other: DocumentTally) -> DocumentTally:
        """Return a tally of the differences of the sums over the same rows."""
        return self.with_rows(self.row_sums - other.row_sums)

    @property
    def sums(self) -> NDArray[np.float64]:
        """The sum of each document."""
        return sum_by(self.document_index, self.row_sums, self.num_documents)

    @property
    def counts(self) -> NDArray[np.float64]:
        """The count of each document."""
        return sum_by(self.document_index, self.row_counts, self.num_documents)

    @property
    def count(self) -> float:
        """The count over all documents."""
        return float(self.counts.sum())

    def ratio(self) -> float:
        """Return sum over count, NaN where the count is zero."""
        return float(self.sums.sum() / self.counts.sum()) if self.count else float("nan")

    def interval(self) -> Interval:
        """Return the interval of the ratio over documents, or over pieces of few documents."""
        return ratio_interval(units_of(self.document_index, self.row_sums, self.row_counts, self.num_documents))

    def exact_interval(self) -> tuple[float, float] | tuple[None, None]:
        """Return the exact binomial interval, or (None, None) where the sums are no numbers of successes."""
        successes, trials = self.sums.sum(), self.counts.sum()
        if not trials or successes != np.floor(successes) or not 0 <= successes <= trials:
            return None, None
        return binomial_interval(int(successes), int(trials))


def measure_ratio(name: str, unit: str, tally: DocumentTally, split: str, *, protocol: str = PARALLEL) -> Measurement:
    """Return a measurement of sum over count; the other arguments are its fields."""
    interval = tally.interval()
    exact_low, exact_high = tally.exact_interval() if unit == "fraction" else (None, None)
    return Measurement(
        name=name,
        value=tally.ratio(),
        unit=unit,
        low=interval.low,
        high=interval.high,
        exact_low=exact_low,
        exact_high=exact_high,
        interval_note=interval.note,
        count=int(tally.count),
        split=split,
        protocol=protocol,
    )


def measure_bits(
    name: str, unit: str, nats: DocumentTally, sizes: DocumentTally, split: str, *, protocol: str = PARALLEL
) -> Measurement:
    """Return a measurement of bits per unit of size, whose count is that of the nats.

    Args:
        name: the measured quantity.
        unit: e.g. "bits/byte".
        nats: summed nats.
        sizes: sums over the same rows that are the denominators, such as bytes.
        split: the text that was measured.
        protocol: how predictions were made.
    """
    tally = nats.with_rows(nats.row_sums / NATS_PER_BIT, sizes.row_sums)
    found = measure_ratio(name, unit, tally, split, protocol=protocol)
    return found.model_copy(update={"count": int(nats.count)})


def measure_retention(name: str, nats: DocumentTally, baseline: DocumentTally, split: str) -> Measurement:
    """Return 1 - CE / CE_baseline; its interval resamples numerator and denominator together.

    Raises:
        UserError: the baseline is not above zero.
    """
    interval = baseline.with_rows(baseline.row_sums - nats.row_sums, baseline.row_sums).interval()
    return Measurement(
        name=f"retention/{name}",
        value=retention(nats.ratio(), baseline.ratio()),
        unit="fraction",
        low=interval.low,
        high=interval.high,
        interval_note=interval.note,
        count=int(nats.count),
        baseline=Baseline(name=name, value=baseline.ratio(), unit="nats/token"),
        split=split,
        protocol=PARALLEL,
    )


def constant_nats(counted: DocumentTally, nats: float) -> DocumentTally:
    """Return a tally with the same cross-entropy for every token that another tally counts."""
    return counted.with_rows(counted.row_counts * nats)


def sum_tallies(tallies: list[DocumentTally]) -> DocumentTally:
    """Return the sums and counts of several tallies over the same rows together."""
    sums, counts = (np.sum(rows, axis=0) for rows in zip(*((t.row_sums, t.row_counts) for t in tallies), strict=True))
    return tallies[0].with_rows(sums, counts)
