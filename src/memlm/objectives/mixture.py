"""Several objectives at once, their weights named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from memlm.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Mixture:
    """A weighted mean of losses: weights need not sum to one, they are divided by their sum.

    Raises:
        ConfigError: a weight below zero or not finite, or all of them zero.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise ConfigError(f"weight of '{name}' ({weight}) must be a number of at least 0.")
        if not sum(self.weights.values()) > 0:
            raise ConfigError(f"the weights of {sorted(self.weights)} sum to 0; at least one must be above 0.")

    def combine(self, losses: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The weighted mean of the named losses in nats.

        Raises:
            ConfigError: a weight without a loss.
        """
        terms: list[Tensor] = []
        for name, weight in self.weights.items():
            if name not in losses:
                raise ConfigError(f"no loss named '{name}'. {did_you_mean(name, losses)}")
            terms.append(weight * losses[name])
        return sum(terms[1:], terms[0]) / sum(self.weights.values())
