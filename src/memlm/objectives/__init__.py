"""What a model is asked for: labels and losses. Pure functions; no batch is changed in place."""

from memlm.objectives.losses import mean_loss, token_nats

__all__ = ["mean_loss", "token_nats"]
