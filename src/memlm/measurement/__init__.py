"""Figures: accuracy, information, sums, intervals, records. Knows no models."""

from memlm.measurement.information import (
    bits_per_byte,
    bits_per_dim,
    bits_per_token,
    correct,
    exact_rows,
    paper_nats,
    retention,
    rows_with_targets,
    target_mask,
    uniform_nats,
    unigram_log_probabilities,
    unigram_nats,
)
from memlm.measurement.intervals import DocumentTally, bootstrap_interval, t_interval
from memlm.measurement.record import Baseline, Measurement

__all__ = [
    "Baseline",
    "DocumentTally",
    "Measurement",
    "bits_per_byte",
    "bits_per_dim",
    "bits_per_token",
    "bootstrap_interval",
    "correct",
    "exact_rows",
    "paper_nats",
    "retention",
    "rows_with_targets",
    "t_interval",
    "target_mask",
    "uniform_nats",
    "unigram_log_probabilities",
    "unigram_nats",
]
