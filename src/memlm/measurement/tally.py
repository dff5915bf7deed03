"""Sums and counts by document, and the measurements that are made from them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from memlm.measurement.information import NATS_PER_BIT, retention
from memlm.measurement.intervals import bootstrap_interval
from memlm.measurement.record import Baseline, Measurement

PARALLEL = "one_pass"
"""Protocol: all positions are predicted at once from the memory, and no token of the text is an input."""
TEACHER_FORCED = "teacher_forced"
"""Protocol: each token is predicted after the true tokens before it."""
GREEDY = "greedy"
"""Protocol: no true token of the answer is an input; each token is the likeliest one."""


class DocumentTally:
    """A ratio of sums, kept apart by document so that intervals can resample documents.

    The rows of a document may come in any number of batches: sums are divided once, at the end.

    Args:
        num_documents: the number of documents.
    """

    def __init__(self, num_documents: int) -> None:
        self.sums = np.zeros(num_documents)
        self.counts = np.zeros(num_documents)

    def add(
        self,
        document_index: Int[Tensor, " rows"],
        sums: Float[Tensor, " rows"] | Int[Tensor, " rows"],
        counts: Float[Tensor, " rows"] | Int[Tensor, " rows"],
    ) -> None:
        """Add each row's sum and count to its document."""
        index = document_index.cpu().numpy()
        np.add.at(self.sums, index, sums.detach().to("cpu", torch.float64).numpy())
        np.add.at(self.counts, index, counts.detach().to("cpu", torch.float64).numpy())

    @property
    def count(self) -> float:
        """The count over all documents."""
        return float(self.counts.sum())

    def ratio(self) -> float:
        """Return sum over count, NaN where the count is zero."""
        return float(self.sums.sum() / self.counts.sum()) if self.count else float("nan")


def measure_ratio(
    name: str, unit: str, tally: DocumentTally, split: str, *, protocol: str = PARALLEL, count: int | None = None
) -> Measurement:
    """Return a measurement of sum over count.

    Args:
        name: the measured quantity.
        unit: the unit of the ratio.
        tally: sums and counts by document.
        split: the text that was measured.
        protocol: how predictions were made.
        count: the denominator that the measurement reports; the tally's count by default.
    """
    low, high = document_interval(tally.sums, tally.counts)
    count = int(tally.count) if count is None else count
    value = float(tally.sums.sum() / tally.counts.sum())
    return Measurement(
        name=name, value=value, unit=unit, low=low, high=high, count=count, split=split, protocol=protocol
    )


def measure_bits(
    name: str,
    unit: str,
    nats: NDArray[np.float64],
    sizes: NDArray[np.float64],
    count: int,
    split: str,
    *,
    protocol: str = PARALLEL,
) -> Measurement:
    """Return a measurement of bits per unit of size.

    Args:
        name: the measured quantity.
        unit: e.g. "bits/byte".
        nats: (documents,), summed nats.
        sizes: (documents,), the denominators, such as bytes.
        count: the number of tokens, for the record.
        split: the text that was measured.
        protocol: how predictions were made.
    """
    tally = DocumentTally(len(nats))
    tally.sums, tally.counts = nats / NATS_PER_BIT, sizes
    return measure_ratio(name, unit, tally, split, protocol=protocol, count=count)


def measure_retention(name: str, nats: DocumentTally, baseline: DocumentTally, count: int, split: str) -> Measurement:
    """Return 1 - CE / CE_baseline; its interval resamples numerator and denominator together.

    Raises:
        UserError: the baseline is not above zero.
    """
    low, high = document_interval(baseline.sums - nats.sums, baseline.sums)
    return Measurement(
        name=f"retention/{name}",
        value=retention(nats.ratio(), baseline.ratio()),
        unit="fraction",
        low=low,
        high=high,
        count=count,
        baseline=Baseline(name=name, value=baseline.ratio(), unit="nats/token"),
        split=split,
        protocol=PARALLEL,
    )


def document_interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Return the bootstrap interval over documents, or (None, None) where fewer than two documents count anything."""
    return bootstrap_interval(sums, counts) if np.count_nonzero(counts) > 1 else (None, None)


def constant_nats(counted: DocumentTally, nats: float) -> DocumentTally:
    """Return a tally with the same cross-entropy for every token that another tally counts."""
    tally = DocumentTally(len(counted.counts))
    tally.counts = counted.counts
    tally.sums = counted.counts * nats
    return tally


def sum_tallies(tallies: list[DocumentTally]) -> DocumentTally:
    """Return the sums and counts of several tallies over the same documents together."""
    total = DocumentTally(len(tallies[0].sums))
    for tally in tallies:
        total.sums = total.sums + tally.sums
        total.counts = total.counts + tally.counts
    return total
