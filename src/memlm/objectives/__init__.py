"""What a model is asked for: labels, losses, mixtures. Pure functions; no batch is changed in place."""

from memlm.objectives.by_objective import ObjectiveSums, asked_by_objective, sums_by_objective, weighted_loss
from memlm.objectives.contrastive import info_nce
from memlm.objectives.labels import Task, blank_copy, copy, next_token, reconstruction, token_dropout
from memlm.objectives.losses import mean_loss, token_nats
from memlm.objectives.mixture import OBJECTIVES, Mixture, Ramp

__all__ = [
    "OBJECTIVES",
    "Mixture",
    "ObjectiveSums",
    "Ramp",
    "Task",
    "asked_by_objective",
    "blank_copy",
    "copy",
    "info_nce",
    "mean_loss",
    "next_token",
    "reconstruction",
    "sums_by_objective",
    "token_dropout",
    "token_nats",
    "weighted_loss",
]
