"""Several objectives at once, their weights named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.errors import ConfigError

OBJECTIVES = ("next_token", "copy", "token_dropout", "blank_copy", "reconstruction")
"""What a memory model can be asked for, in the order in which their losses stand."""


@dataclass(frozen=True)
class LinearSchedule:
    """A number that moves from `start` to `end` over `steps` steps, and stays."""

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The number at a step, the first being 0."""
        share = min(1.0, step / self.steps)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class Mixture:
    """A weighted mean of objectives: weights need not sum to one, they are divided by their sum.

    Raises:
        ConfigError: an unknown objective, a weight below zero or not finite, weights that sum to nothing at some step.
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
        """The objectives, in the order of OBJECTIVES."""
        return tuple(name for name in OBJECTIVES if name in self.weights)

    def at(self, step: int) -> Float[Tensor, " objectives"]:
        """Weights at a step, in the order of `names`."""
        return torch.tensor([self._at(name, step) for name in self.names])

    def _at(self, name: str, step: int) -> float:
        weight = self.weights[name]
        return weight.at(step) if isinstance(weight, LinearSchedule) else weight
