"""Objectives of training: labels, cross-entropy per token, weighted mixtures, and InfoNCE for retrieval.

An objective turns tokens into inputs and labels, both (batch, tokens) and aligned by position. Labels are shifted here
and not later: where a model predicts token t+1 at position t, the label at position t is token t+1. No function changes
an argument in place.
"""

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

from memlm.errors import ConfigError, UserError, Within, check_numbers
from memlm.shapes import IGNORE_INDEX, Labels, Logits, TokenIds, TokenMask


class Task(NamedTuple):
    """The inputs and labels of a model, both (batch, tokens)."""

    input_ids: TokenIds
    labels: Labels


def reconstruction(input_ids: TokenIds, attention_mask: TokenMask) -> Task:
    """Return labels that equal the input; padding is no target."""
    return Task(input_ids, input_ids.masked_fill(~attention_mask.bool(), IGNORE_INDEX))


def next_token(input_ids: TokenIds, attention_mask: TokenMask) -> Task:
    """Return labels that are the next tokens; the last position of a text has no target."""
    return Task(input_ids, _following(input_ids.masked_fill(~attention_mask.bool(), IGNORE_INDEX)))


def copy(input_ids: TokenIds, attention_mask: TokenMask | None = None) -> Task:
    """Return inputs whose second half repeats the first, with its tokens as targets at the positions before them.

    Args:
        input_ids: (batch, tokens), an even number of tokens; the second half is not used.
        attention_mask: (batch, tokens); a row whose first half is not all text has no targets.

    Raises:
        UserError: an odd number of tokens, or fewer than four.
    """
    tokens = input_ids.shape[1]
    if tokens < 4 or tokens % 2:
        raise UserError(f"{tokens} tokens cannot be copied; give an even number of at least 4.")
    targets = first = input_ids[:, : tokens // 2]
    if attention_mask is not None:
        full = attention_mask[:, : tokens // 2].bool().all(1, keepdim=True)
        targets = targets.masked_fill(~full, IGNORE_INDEX)
    labels = torch.cat([torch.full_like(first, IGNORE_INDEX), targets], dim=1)
    return Task(torch.cat([first, first], dim=1), _following(labels))


def blank_copy(
    input_ids: TokenIds,
    attention_mask: TokenMask | None = None,
    *,
    blank_id: int,
    start: int | Int[Tensor, " batch"] | None = None,
) -> Task:
    """Replace all tokens from `start` on by blanks, whose targets are the tokens of the text from its beginning.

    The target of a blank is the token `start` positions before it, and the last token of the text has no target: before
    the first blank nothing tells a model that a copy begins. (arXiv 2602.13466 has a target there too.)

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens); a row that is not all text before its start has no targets.
        blank_id: the token id of a blank.
        start: the first blank of each row, or of all rows; the middle by default.

    Raises:
        UserError: there is no text or no blank.
    """
    tokens = input_ids.shape[1]
    starts = torch.as_tensor(tokens // 2 if start is None else start, device=input_ids.device).reshape(-1, 1)
    if bool(((starts < 1) | (starts >= tokens)).any()):
        raise UserError(
            f"a copy cannot start at {starts.flatten().tolist()} of {tokens} tokens; leave text and blanks."
        )
    positions = torch.arange(tokens, device=input_ids.device).expand(len(input_ids), -1)
    hidden, source = positions >= starts, positions - starts
    target_mask = hidden & (source < starts)
    if attention_mask is not None:
        target_mask = target_mask & (attention_mask.bool() | hidden).all(1, keepdim=True)
    targets = input_ids.gather(1, source.clamp(min=0))
    return Task(input_ids.masked_fill(hidden, blank_id), targets.masked_fill(~target_mask, IGNORE_INDEX))


def token_dropout(task: Task, *, blank_id: int, share: float, generator: torch.Generator) -> Task:
    """Replace a share of the second half's inputs by blanks: a copy at share 0, a blank copy at share 1.

    The target of a blank is the token that it replaces, the target of a token the next one, unless that is a blank.

    Args:
        task: the `copy` task.
        blank_id: the token id of a blank.
        share: the probability of each token to be replaced.
        generator: a random generator on the CPU.

    Raises:
        UserError: the share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of hidden tokens ({share}) must lie between 0 and 1.")
    ids = task.input_ids
    drawn = torch.rand(ids.shape, generator=generator) < share
    drawn[:, : ids.shape[1] // 2] = False
    hidden = drawn.to(ids.device)
    replaced, next_hidden = task.labels.roll(1, dims=1), hidden.roll(-1, dims=1)
    labels = torch.where(hidden, replaced, task.labels.masked_fill(next_hidden, IGNORE_INDEX))
    return Task(ids.masked_fill(hidden, blank_id), labels)


def _following(labels: Tensor) -> Tensor:
    """Move the label of each position to the position before it."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


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
    counted = (labels != IGNORE_INDEX).sum() if num_items is None else num_items
    num_targets = torch.as_tensor(counted, device=labels.device)
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


ObjectiveName = Literal["next_token", "copy", "token_dropout", "blank_copy", "reconstruction", "distillation"]
"""The name of an objective."""
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
"""The objectives of memory models, in the order of their losses."""


_MOST = 2**31 - 1


@dataclass(frozen=True)
class LinearSchedule:
    """A number that changes linearly from `start` to `end` over `steps` steps and stays constant afterwards."""

    # pydantic checks the numbers wherever settings hold a schedule
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, revalidate_instances="always")

    start: Annotated[float, Field(ge=0), Within(0, _MOST)]
    """Value at the first step."""
    end: Annotated[float, Field(ge=0), Within(0, _MOST)]
    """Value from `steps` on."""
    steps: Annotated[int, Field(ge=1), Within(1, _MOST)]
    """Number of steps from `start` to `end`."""

    def __post_init__(self) -> None:
        check_numbers(self)

    def at(self, step: int) -> float:
        """Return the number at a step; the first step is 0."""
        share = min(1.0, step / self.steps)
        return self.start + share * (self.end - self.start)


def value_at(value: float | LinearSchedule, step: int) -> float:
    """Return a number, or that of a schedule at a step."""
    return value.at(step) if isinstance(value, LinearSchedule) else value


def ends_of(value: float | LinearSchedule) -> tuple[float, float]:
    """Return the first and the last value of a number or a schedule."""
    return (value.start, value.end) if isinstance(value, LinearSchedule) else (value, value)


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
            for value in ends_of(weight):
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
        return value_at(self.weights[name], step)
