"""Losses: cross-entropy per token, its mean by objective, and InfoNCE for retrieval."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import UserError
from memlm.shapes import IGNORE_INDEX, Labels, Logits


def token_nats(logits: Logits, labels: Labels) -> Float[Tensor, "batch tokens"]:
    """Cross-entropy in nats at every position, zero where the label is IGNORE_INDEX.

    Args:
        logits: (batch, tokens, vocabulary), aligned with the labels; nothing is shifted here.
        labels: (batch, tokens).
    """
    # fp32: a bf16 log-sum-exp is off in the third digit
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return flat.view_as(labels)


def mean_loss(logits: Logits, labels: Labels, num_items: Tensor | int | None = None) -> Float[Tensor, ""]:
    """Sum of nats over the number of tokens asked for.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens).
        num_items: tokens asked for over all accumulated batches and devices; counted here where None.

    Raises:
        UserError: no label asks for anything.
    """
    num_targets = (
        (labels != IGNORE_INDEX).sum() if num_items is None else torch.as_tensor(num_items, device=labels.device)
    )
    if not bool(num_targets):
        raise UserError(f"all {labels.numel()} labels are {IGNORE_INDEX} (ignored); there is nothing to learn from.")
    return token_nats(logits, labels).sum() / num_targets


class ObjectiveSums(NamedTuple):
    """Sums over the tokens that each objective asked for; all (objectives,)."""

    nats: Float[Tensor, " objectives"]
    num_correct: Float[Tensor, " objectives"]
    num_targets: Float[Tensor, " objectives"]


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
    return ObjectiveSums(nats, hits, targets_by_objective(labels, objective, count=count))


def targets_by_objective(
    labels: Labels, objective: Int[Tensor, " batch"], *, count: int
) -> Float[Tensor, " objectives"]:
    """How many tokens each objective asks for."""
    num_targets = (labels != IGNORE_INDEX).sum(1).float()
    return num_targets.new_zeros(count).index_add(0, objective, num_targets)


def weighted_loss(
    nats: Float[Tensor, " objectives"], num_targets: Float[Tensor, " objectives"], weights: Float[Tensor, " objectives"]
) -> Float[Tensor, ""]:
    """Weighted mean over objectives of their mean nats per token.

    Args:
        nats: (objectives,), summed.
        num_targets: (objectives,), tokens over all accumulated batches and devices.
        weights: (objectives,); an objective that nothing was asked of counts for nothing.

    Raises:
        UserError: no objective with a weight asks for anything.
    """
    counted = weights * (num_targets > 0)
    if not bool(counted.sum() > 0):
        raise UserError(
            f"all labels are {IGNORE_INDEX} (ignored) or of objectives with no weight; there is nothing to learn from."
        )
    return (counted * nats / num_targets.clamp(min=1)).sum() / counted.sum()


def info_nce(
    queries: Float[Tensor, "batch width"], passages: Float[Tensor, "batch width"], *, temperature: float = 0.02
) -> Float[Tensor, " batch"]:
    """Cross-entropy in nats of picking each query's passage by cosine.

    Args:
        queries: (batch, width); row i belongs to passage i.
        passages: (batch, width); the other rows are the negatives.
        temperature: cosines are divided by it.

    Raises:
        UserError: a temperature that is not above zero.
    """
    if not temperature > 0:
        raise UserError(f"temperature ({temperature}) must be above 0; the paper uses 0.02.")
    # fp32: cosines divided by 0.02 leave bf16 one digit
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(passages.float(), dim=-1).T
    own = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(cosines / temperature, own, reduction="none")
