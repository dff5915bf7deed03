"""The fit of one head's slots in float64, step by step: the oracle of `fit.py`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


def fit_head(
    queries: Float[Tensor, "queries numbers"],
    keys: Float[Tensor, "keys numbers"],
    values: Float[Tensor, "keys numbers"],
    *,
    slots: int,
    scaling: float,
    bias_limit: float,
    refinements: int,
    rounded: Callable[[Tensor], Tensor] = lambda keys: keys,
) -> tuple[Int[Tensor, " slots"], Float[Tensor, " slots"], Float[Tensor, "slots numbers"]]:
    """Return the kept keys' indices, the biases and the values of one head's slots.

    Args:
        queries: (queries, numbers), reference queries, all of which see all keys.
        keys: (keys, numbers).
        values: (keys, numbers).
        slots: number of slots.
        scaling: factor of the scores.
        bias_limit: largest absolute bias.
        refinements: steps of projected gradient descent after the clamp.
        rounded: rounds the keys that are kept, to which biases and values are fitted.
    """
    queries, keys, values = queries.double(), keys.double(), values.double()
    score = queries @ keys.T * scaling
    attention = score.softmax(-1)
    kept = attention.square().mean(0).sqrt().topk(slots).indices.sort().values
    # each query's mass is measured relative to its largest score
    weights = (score - score.amax(1, keepdim=True)).exp()
    kept_score = queries @ rounded(keys[kept]).double().T * scaling
    matrix, mass = (kept_score - score.amax(1, keepdim=True)).exp(), weights.sum(1)
    factors = torch.linalg.lstsq(matrix, mass[:, None], driver="gelsd").solution[:, 0]
    factors = factors.clamp(math.exp(-bias_limit), math.exp(bias_limit))
    curvature = torch.linalg.matrix_norm(matrix, 2) ** 2
    for _ in range(refinements):
        factors = factors - matrix.T @ (matrix @ factors - mass) / curvature
        factors = factors.clamp(math.exp(-bias_limit), math.exp(bias_limit))
    bias = factors.log()
    shares = (kept_score + bias).softmax(-1)
    fitted = torch.linalg.lstsq(shares, attention @ values, driver="gelsd").solution
    return kept, bias, fitted
