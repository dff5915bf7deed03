"""Losses: cross-entropy per token, weighted mixtures of objectives, and InfoNCE for retrieval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import ConfigError, UserError
from memlm.shapes import IGNORE_INDEX, Labels, Logits


def token_nats(logits: Logits, labels: Labels) -> Float[Tensor, "batch tokens"]:
    """Return the cross-entropy in nats at every position, zero where the label is IGNORE_INDEX.

    Args:
        logits: (batch, tokens, vocabulary), aligned with the labels; nothing is shifted here.
        labels: (batch, tokens).
    """
    # fp32: a bf16 log-sum-exp is off in the third digit
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return flat.view_as(labels)


def mean_loss(logits: Logits, labels: Labels, num_items: Tensor | int | None = None) -> Float[Tensor, ""]:
    """Return the summed cross-entropy over the number of targets.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens).
        num_items: the number of targets over all accumulated batches and devices; counted here where None.

    Raises:
        UserError: no label is a target.
    """
    num_targets = (
        (labels != IGNORE_INDEX).sum() if num_items is None else torch.as_tensor(num_items, device=labels.device)
    )
    if not bool(num_targets):
        raise UserError(f"all {labels.numel()} labels are {IGNORE_INDEX} (ignored); there is nothing to learn from.")
    return token_nats(logits, labels).sum() / num_targets


class ObjectiveSums(NamedTuple):
    """Sums over the targets of each objective, all (objectives,)."""

    nats: Float[Tensor, " objectives"]
    num_correct: Float[Tensor, " objectives"]
    num_targets: Float[Tensor, " objectives"]


def sums_by_objective(logits: Logits, labels: Labels, objective: Int[Tensor, " batch"], *, count: int) -> ObjectiveSums:
    """Return the nats, correct tokens and targets of each of `count` objectives.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens), aligned with the logits.
        objective: (batch,), the objective of each row.
        count: the number of objectives; one without rows has zeros.
    """
    num_correct = ((logits.argmax(-1) == labels) & (labels != IGNORE_INDEX)).sum(1).float()
    nats, hits = (
        row.new_zeros(count).index_add(0, objective, row) for row in (token_nats(logits, labels).sum(1), num_correct)
    )
    return ObjectiveSums(nats, hits, targets_by_objective(labels, objective, count=count))


def targets_by_objective(
    labels: Labels, objective: Int[Tensor, " batch"], *, count: int
) -> Float[Tensor, " objectives"]:
    """Return the number of targets of each objective."""
    num_targets = (labels != IGNORE_INDEX).sum(1).float()
    return num_targets.new_zeros(count).index_add(0, objective, num_targets)


def weighted_loss(
    nats: Float[Tensor, " objectives"], num_targets: Float[Tensor, " objectives"], weights: Float[Tensor, " objectives"]
) -> Float[Tensor, ""]:
    """Return the weighted mean over objectives of their mean nats per target.

    Args:
        nats: (objectives,), summed cross-entropy.
        num_targets: (objectives,), the targets over all accumulated batches and devices.
        weights: (objectives,); objectives without targets are left out.

    Raises:
        UserError: no objective with a weight has a target.
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
    """Return the cross-entropy in nats of choosing each query's passage by cosine similarity.

    Args:
        queries: (batch, width); query i belongs to passage i.
        passages: (batch, width); the other passages of the batch are the negatives.
        temperature: the divisor of the similarities; 0.02 in arXiv 2602.13466.

    Raises:
        UserError: the temperature is not above zero.
    """
    if not temperature > 0:
        raise UserError(f"temperature ({temperature}) must be above 0; the paper uses 0.02.")
    # fp32: cosines divided by 0.02 leave bf16 one digit
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(passages.float(), dim=-1).T
    own = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(cosines / temperature, own, reduction="none")


ObjectiveName = Literal["next_token", "copy", "token_dropout", "blank_copy", "reconstruction"]
"""The name of an objective."""
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
"""The objectives of memory models, in the order of their losses."""


@dataclass(frozen=True)
class LinearSchedule:
    """A number that changes linearly from `start` to `end` over `steps` steps and stays constant afterwards."""

    # pydantic checks the numbers wherever settings hold a schedule
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, revalidate_instances="always")

    start: Annotated[float, Field(ge=0)]
    """Value at the first step."""
    end: Annotated[float, Field(ge=0)]
    """Value from `steps` on."""
    steps: Annotated[int, Field(ge=1)]
    """Number of steps from `start` to `end`."""

    def at(self, step: int) -> float:
        """Return the number at a step; the first step is 0."""
        share = min(1.0, step / self.steps)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Mixture:
    """A weighted mean of objectives; weights are divided by their sum.

    Raises:
        ConfigError: an unknown objective, a weight that is negative or not finite, or weights that sum to 0 at a step.
    """

    weights: Mapping[str, float | LinearSchedule]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if name not in OBJECTIVES:
                raise ConfigError(f"unknown objective '{name}'. Choose from: {', '.join(OBJECTIVES)}.")
            for value in (weight.start, weight.end) if isinstance(weight, LinearSchedule) else (weight,):
                if not math.isfinite(value) or value < 0:
                    raise ConfigError(f"weight of '{name}' ({value}) must be a number of at least 0.")
            if isinstance(weight, LinearSchedule) and weight.steps < 1:
                raise ConfigError(f"steps of the weight of '{name}' ({weight.steps}) must be at least 1.")
        ends = {0} | {w.steps for w in self.weights.values() if isinstance(w, LinearSchedule)}
        for step in sorted(ends):
            if not sum(self._at(name, step) for name in self.weights) > 0:
                raise ConfigError(
                    f"the weights of {sorted(self.weights)} sum to 0 at step {step}; at least one must be above 0."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the objectives, in the order of OBJECTIVES."""
        return tuple(name for name in OBJECTIVES if name in self.weights)

    def at(self, step: int) -> Float[Tensor, " objectives"]:
        """Return the weights at a step, in the order of `names`."""
        return torch.tensor([self._at(name, step) for name in self.names])

    def _at(self, name: str, step: int) -> float:
        weight = self.weights[name]
        return weight.at(step) if isinstance(weight, LinearSchedule) else weight
