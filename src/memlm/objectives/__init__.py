"""Objectives: labels, losses and their mixtures, as pure functions that change no batch in place."""

from memlm.objectives.labels import Task, blank_copy, copy, next_token, reconstruction, token_dropout
from memlm.objectives.losses import (
    OBJECTIVES,
    LinearSchedule,
    Mixture,
    ObjectiveName,
    ObjectiveSums,
    info_nce,
    mean_loss,
    sums_by_objective,
    targets_by_objective,
    token_nats,
    weighted_loss,
)

__all__ = [
    "OBJECTIVES",
    "LinearSchedule",
    "Mixture",
    "ObjectiveName",
    "ObjectiveSums",
    "Task",
    "blank_copy",
    "copy",
    "info_nce",
    "mean_loss",
    "next_token",
    "reconstruction",
    "sums_by_objective",
    "targets_by_objective",
    "token_dropout",
    "token_nats",
    "weighted_loss",
]
