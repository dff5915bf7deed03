"""Few slots that act on attention as many keys and values do, found in closed form.

The method is Attention Matching (arXiv 2602.16284). For reference queries, attention over keys K and values V gives a
mass Z (the sum of the exponentials of the scores) and an output Y. Slots are found in three steps:

1. the keys of slots are the keys with the largest root mean square attention;
2. a bias per slot, fitted by least squares, lets the slots' mass equal Z;
3. the values of slots, fitted by least squares, let their output equal Y.

Attention over several sets of keys averages their outputs by mass. Sets that are fitted apart can therefore be read
together. `naive.py` is the slow version, one head at a time, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.errors import UserError, Within, check_numbers

_POWER_STEPS = 4
"""Steps of the power iteration that bounds the step of the descent."""

_LOWEST = -1e30
"""The score of a key that a query does not see."""

_LEAST_RIDGE = 1e-9
"""The smallest ridge at which float64 factorises any matrix."""


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of the fit."""

    bias_limit: Annotated[float, Within(0, 2**31)] = 3.0
    """Largest absolute bias of a slot, in nats."""
    ridge: Annotated[float, Within(0, 2**31)] = 1e-6
    """Weight of the squared solution in both least squares, relative to the largest squared norm of a column."""
    refinements: Annotated[int, Within(0, 2**31)] = 2
    """Steps of projected gradient descent on the masses after the clamp."""
    bits: Annotated[int | None, Within(4, 16)] = None
    """Bits of each number of keys and values: 16, 8 or 4; None to keep what was computed. Biases and values are fitted
    to rounded keys."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.bits not in (None, 16, 8, 4):
            raise UserError(f"slots cannot have numbers of {self.bits} bits; choose 16, 8 or 4.")


class FittedSlots(NamedTuple):
    """Slots of several heads.

    Attributes:
        indices: (heads, slots), the key that each slot takes.
        bias: (heads, slots).
        values: (heads, slots, numbers).
    """

    indices: Int[Tensor, "heads slots"]
    bias: Float[Tensor, "heads slots"]
    values: Float[Tensor, "heads slots numbers"]


def fit_slots(
    score: Float[Tensor, "heads queries keys"],
    values: Float[Tensor, "heads keys numbers"],
    slots: int,
    settings: FitSettings,
    *,
    visible: Bool[Tensor, "heads queries keys"] | None = None,
    rescored: Callable[[Int[Tensor, "heads slots"]], Float[Tensor, "heads queries slots"]] | None = None,
) -> FittedSlots:
    """Return the slots that act on the queries as all keys do.

    Args:
        score: (heads, queries, keys), scaled scores of the keys.
        values: (heads, keys, numbers).
        slots: number of slots of each head, at most the number of keys.
        settings: of the fit.
        visible: (heads, queries, keys), the keys that each query sees; all of them if None.
        rescored: returns the scores of the slots' keys, of which the indices are given; those in `score` if None.
    """
    attention = _attention(score, visible)
    peak = attention.amax(-1, keepdim=True)
    # relative to the largest exponential of each query; a query that sees no key counts for nothing
    mass = torch.where(peak > 0, 1 / peak, 0.0)
    importance = attention.square().sum(1)
    indices = importance.topk(slots, dim=-1).indices.sort(-1).values
    taken = attention.gather(2, indices[:, None].expand(-1, attention.shape[1], -1)) * mass
    if rescored is not None:
        taken = (rescored(indices) - _highest(score, visible)).exp() * (taken > 0)
    factors = _factors(taken, mass, settings)
    shares = taken * factors.mT
    shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-30)
    fitted = _solve(shares, attention @ values, settings.ridge)
    return FittedSlots(indices, factors.log()[..., 0], fitted)


def _attention(score: Tensor, visible: Tensor | None) -> Float[Tensor, "heads queries keys"]:
    if visible is None:
        return score.softmax(-1)
    return score.masked_fill(~visible, _LOWEST).softmax(-1) * visible


def _highest(score: Tensor, visible: Tensor | None) -> Float[Tensor, "heads queries 1"]:
    return (score if visible is None else score.masked_fill(~visible, _LOWEST)).amax(-1, keepdim=True)


def _factors(
    taken: Float[Tensor, "heads queries slots"], mass: Float[Tensor, "heads queries 1"], settings: FitSettings
) -> Float[Tensor, "heads slots 1"]:
    low, high = math.exp(-settings.bias_limit), math.exp(settings.bias_limit)
    factors = _solve(taken, mass, settings.ridge).clamp(low, high)
    step = 1 / _largest_eigenvalue(taken).clamp(min=1e-30)
    for _ in range(settings.refinements):
        factors = (factors - step * (taken.mT @ (taken @ factors - mass))).clamp(low, high)
    return factors


def _largest_eigenvalue(matrix: Float[Tensor, "heads queries slots"]) -> Float[Tensor, "heads 1 1"]:
    """Return the largest eigenvalue of the products of the columns, from below."""
    vector = torch.ones_like(matrix[:, :1]).mT
    for _ in range(_POWER_STEPS):
        vector = torch.nn.functional.normalize(matrix.mT @ (matrix @ vector), dim=1)
    return (matrix @ vector).square().sum(1, keepdim=True)


def _solve(matrix: Tensor, target: Tensor, ridge: float) -> Tensor:
    """Return the solution of a least squares problem, by its normal equations in float64."""
    factor, failed = _cholesky((matrix.mT @ matrix).double(), ridge)
    if bool(failed.any()):  # columns that are nearly alike need exact products
        factor, failed = _cholesky(matrix.double().mT @ matrix.double(), max(ridge, _LEAST_RIDGE))
    return torch.cholesky_solve((matrix.mT @ target).double(), factor).to(target.dtype)


def _cholesky(products: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    size = products.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None].clamp(min=1e-30)
    factor, failed = torch.linalg.cholesky_ex(products + ridge * size * torch.eye(products.shape[-1]).to(products))
    return factor, failed
