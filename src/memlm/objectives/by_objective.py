"""Losses of several objectives in one batch, each row asked by one of them."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from memlm.errors import UserError
from memlm.objectives.losses import token_nats
from memlm.shapes import IGNORE_INDEX, Labels, Logits


class ObjectiveSums(NamedTuple):
    """Sums over the tokens that each objective asked for; all (objectives,)."""

    nats: Float[Tensor, " objectives"]
    right: Float[Tensor, " objectives"]
    asked: Float[Tensor, " objectives"]


def sums_by_objective(logits: Logits, labels: Labels, objective: Int[Tensor, " batch"], *, count: int) -> ObjectiveSums:
    """Nats, right tokens and asked tokens of each of `count` objectives.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens), aligned with the logits.
        objective: (batch,), whose row it is.
        count: objectives in all; one without rows has zeros.
    """
    right = (logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)
    nats, hits = (
        row.new_zeros(count).index_add(0, objective, row)
        for row in (token_nats(logits, labels).sum(1), right.sum(1).float())
    )
    return ObjectiveSums(nats, hits, asked_by_objective(labels, objective, count=count))


def asked_by_objective(labels: Labels, objective: Int[Tensor, " batch"], *, count: int) -> Float[Tensor, " objectives"]:
    """How many tokens each objective asks for."""
    asked = (labels != IGNORE_INDEX).sum(1).float()
    return asked.new_zeros(count).index_add(0, objective, asked)


def weighted_loss(
    nats: Float[Tensor, " objectives"], asked: Float[Tensor, " objectives"], weights: Float[Tensor, " objectives"]
) -> Float[Tensor, ""]:
    """Weighted mean over objectives of their mean nats per token.

    Args:
        nats: (objectives,), summed.
        asked: (objectives,), tokens over all accumulated batches and devices.
        weights: (objectives,); an objective that nothing was asked of counts for nothing.

    Raises:
        UserError: no objective with a weight asks for anything.
    """
    counted = weights * (asked > 0)
    if not bool(counted.sum() > 0):
        raise UserError(
            f"all labels are {IGNORE_INDEX} (ignored) or of objectives with no weight; there is nothing to learn from."
        )
    return (counted * nats / asked.clamp(min=1)).sum() / counted.sum()
