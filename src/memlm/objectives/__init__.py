"""What a model is asked for: labels, losses, mixtures. Pure functions; no batch is changed in place."""

from memlm.objectives.contrastive import info_nce
from memlm.objectives.labels import Task, blank_copy, copy, next_token, reconstruction
from memlm.objectives.losses import mean_loss, token_nats
from memlm.objectives.mixture import Mixture

__all__ = [
    "Mixture",
    "Task",
    "blank_copy",
    "copy",
    "info_nce",
    "mean_loss",
    "next_token",
    "reconstruction",
    "token_nats",
]
