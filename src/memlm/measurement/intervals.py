"""Confidence intervals over documents and over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def bootstrap_interval(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts) over documents drawn with replacement.

    Args:
        sums: (documents,).
        counts: (documents,); documents that count nothing are left out.
        confidence: share of resamples inside.
        resamples: how many; 1000 settle the ends to about a twentieth of the interval's width.
        seed: of the resampling; the same seed gives the same interval.
    """
    counted = counts > 0
    sums, counts = sums[counted], counts[counted]
    if not len(sums):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    ratios = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t at 97.5 %, by degrees of freedom from 1; beyond them the normal's is near enough."""
_NORMAL = 1.96


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent values, such as one of each seed; of one value, that value alone."""
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return mean, mean
    quantile = _T[count - 2] if count - 2 < len(_T) else _NORMAL
    half = quantile * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half
