"""Measurements: accuracy, information, sums by document, intervals, records. Depends on no model."""

from memlm.measurement.information import (
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
from memlm.measurement.intervals import binomial_interval, bootstrap_interval, ratio_interval, t_interval, units_of
from memlm.measurement.record import Baseline, Cost, Measurement, Passage, append_journal, read_journal, to_json_lines
from memlm.measurement.tally import (
    GREEDY,
    PARALLEL,
    TEACHER_FORCED,
    DocumentTally,
    constant_nats,
    measure_bits,
    measure_ratio,
    measure_retention,
    sum_tallies,
)

__all__ = [
    "GREEDY",
    "PARALLEL",
    "TEACHER_FORCED",
    "Baseline",
    "Cost",
    "DocumentTally",
    "Measurement",
    "Passage",
    "append_journal",
    "binomial_interval",
    "bootstrap_interval",
    "constant_nats",
    "correct",
    "exact_rows",
    "measure_bits",
    "measure_ratio",
    "measure_retention",
    "paper_nats",
    "ratio_interval",
    "read_journal",
    "retention",
    "rows_with_targets",
    "sum_tallies",
    "t_interval",
    "target_mask",
    "to_json_lines",
    "uniform_nats",
    "unigram_log_probabilities",
    "unigram_nats",
    "units_of",
]
