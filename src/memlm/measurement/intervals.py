"""Confidence intervals of 95 %: over documents or pieces of them, exact for counts, and over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

MIN_UNITS = 10
"""The smallest number of documents, or pieces of documents, that an interval is computed from."""
_PIECES = 20
"""The number of pieces that fewer than MIN_UNITS documents are cut into."""
_RESAMPLES = 1000
"""The number of resamples: it determines the ends to about a twentieth of the interval's width."""
_TAIL = 0.025


class Units(NamedTuple):
    """Sums and counts of the units that are resampled.

    Attributes:
        sums: (units,).
        counts: (units,), all above zero.
        name: the number and kind of the units, e.g. "12 documents" or "20 pieces of 3 documents".
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]
    name: str


class Interval(NamedTuple):
    """An interval over units, or the reason why there is none.

    Attributes:
        low, high: the ends, None where there are too few units.
        note: the units that were resampled, or the reason.
    """

    low: float | None
    high: float | None
    note: str


def units_of(
    document_index: NDArray[np.int64], sums: NDArray[np.float64], counts: NDArray[np.float64], num_documents: int
) -> Units:
    """Sum rows by document, or by piece of a document where fewer than MIN_UNITS documents count anything.

    A piece is a block of consecutive rows of one document, which makes neighbouring rows one unit: they are the most
    similar ones. Pieces of a document have equal numbers of rows, give or take one.

    Args:
        document_index: (rows,).
        sums: (rows,).
        counts: (rows,).
        num_documents: the number of documents.
    """
    counted = np.unique(document_index[counts > 0])
    if len(counted) >= MIN_UNITS or not len(counted):
        unit, name = document_index, f"{len(counted)} documents"
    else:
        pieces = -(-_PIECES // len(counted))
        unit = _pieces_of(document_index, pieces)
        name = f"{len(np.unique(unit[counts > 0]))} pieces of {len(counted)} document" + "s" * (len(counted) > 1)
    size = max(num_documents, int(unit.max(initial=-1)) + 1)
    unit_sums, unit_counts = sum_by(unit, sums, size), sum_by(unit, counts, size)
    counting = unit_counts > 0
    return Units(unit_sums[counting], unit_counts[counting], name)


def sum_by(index: NDArray[np.int64], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Return the sums (size,) of the values of each index."""
    return np.bincount(index, values, size).astype(np.float64)


def _pieces_of(document_index: NDArray[np.int64], pieces: int) -> NDArray[np.int64]:
    unit = np.empty_like(document_index)
    for document in np.unique(document_index):
        rows = np.flatnonzero(document_index == document)
        unit[rows] = document * pieces + np.arange(len(rows)) * pieces // len(rows)
    return unit


def ratio_interval(units: Units) -> Interval:
    """Return the percentile interval of sum(sums) / sum(counts) over at least MIN_UNITS units."""
    if len(units.sums) < MIN_UNITS:
        return Interval(None, None, f"no interval: {units.name}, fewer than {MIN_UNITS}")
    return Interval(*bootstrap_interval(units.sums, units.counts), f"bootstrap over {units.name}")


def bootstrap_interval(sums: NDArray[np.float64], counts: NDArray[np.float64], *, seed: int = 0) -> tuple[float, float]:
    """Return the percentile interval of sum(sums) / sum(counts), NaN where nothing is counted.

    Args:
        sums: (units,).
        counts: (units,); units with a count of zero are left out.
        seed: the seed of the resampling.
    """
    counted = counts > 0
    sums, counts = sums[counted], counts[counted]
    if not len(sums):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_RESAMPLES, len(sums)))
    ratios = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [_TAIL, 1 - _TAIL])
    return float(low), float(high)


def binomial_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the exact (Clopper-Pearson) interval of a share, which holds for independent trials.

    Tokens of one text are not independent: for them it is a lower bound of the uncertainty.

    Args:
        successes: the number of successes.
        trials: the number of trials, at least 1.
    """
    failures = trials - successes
    low = float(betaincinv(successes, failures + 1, _TAIL)) if successes else 0.0
    high = float(betaincinv(successes + 1, failures, 1 - _TAIL)) if failures else 1.0
    return low, high


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return Student's interval of the mean of independent values, such as one for each seed.

    For one value both ends are that value.
    """
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return mean, mean
    half = float(stdtrit(count - 1, 1 - _TAIL)) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half
