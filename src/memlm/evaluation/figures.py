"""Sums per document become measurements with intervals."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memlm.data import PackedRows
from memlm.measurement import Baseline, DocumentTally, Measurement, bootstrap_interval, retention
from memlm.measurement.information import NATS_PER_BIT

PROTOCOL = "one_pass"
"""All positions are written at once from the memory; no token is shown, so teacher forcing does not arise."""


def ratio_of(name: str, unit: str, tally: DocumentTally, count: int, split: str) -> Measurement:
    """Sum over count."""
    return scaled(name, unit, tally.sums, tally.counts, count, split, bits=False)


def scaled(
    name: str,
    unit: str,
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    count: int,
    split: str,
    *,
    bits: bool = True,
) -> Measurement:
    """A ratio of sums over documents; nats become bits where asked."""
    top = sums / NATS_PER_BIT if bits else sums
    low, high = document_interval(top, counts)
    value = float(top.sum() / counts.sum())
    return Measurement(
        name=name, value=value, unit=unit, low=low, high=high, count=count, split=split, protocol=PROTOCOL
    )


def document_interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Over documents; none where there is only one, which says nothing about others."""
    return bootstrap_interval(sums, counts) if np.count_nonzero(counts) > 1 else (None, None)


def retained(name: str, nats: DocumentTally, baseline: DocumentTally, count: int, split: str) -> Measurement:
    """1 - CE / CE_baseline, resampled over documents with the same weights above and below."""
    value = retention(nats.ratio(), baseline.ratio())
    low, high = document_interval(baseline.sums - nats.sums, baseline.sums)
    return Measurement(
        name=f"retention/{name}",
        value=value,
        unit="fraction",
        low=low,
        high=high,
        count=count,
        baseline=Baseline(name=name, value=baseline.ratio(), unit="nats/token"),
        split=split,
        protocol=PROTOCOL,
    )


def per_document(rows: PackedRows, values: Tensor) -> DocumentTally:
    """Values of readable tokens summed by document."""
    tally = DocumentTally(len(rows.document_ids))
    readable = values * rows.attention_mask
    tally.add(rows.document_index, readable.sum(1), rows.attention_mask.sum(1))
    return tally


def constant(counted: DocumentTally, nats: float) -> DocumentTally:
    """The same cross-entropy for every token counted."""
    tally = DocumentTally(len(counted.counts))
    tally.counts = counted.counts
    tally.sums = counted.counts * nats
    return tally
