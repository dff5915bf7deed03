"""Linear readings of a vector, in closed form: ridge regression, and the token at each position by discriminants.

Both read standardised vectors. Neither needs a training that could fail, and what they find on held-out documents is a
lower bound of what the vectors hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_SHRINKAGES, _LEAST_SPREAD = (1.0, 10.0), 1e-2
"""Vectors that pull a class's mean to that of all, and the least variance within classes beside 1 of all vectors."""
_ROWS = 256
"""Vectors that are read at once."""


class Ridge:
    """Ridge regressions of many targets on the same vectors.

    Args:
        vectors: (rows, numbers), of the training passages.
    """

    def __init__(self, vectors: Float[Tensor, "rows numbers"]) -> None:
        self.mean, spread = vectors.float().mean(0), vectors.float().std(0)
        # a number that is always the same says nothing, and would be divided by nothing
        self.scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0.0)
        self.vectors = self.standardised(vectors)
        self.products = self.vectors.T @ self.vectors

    def standardised(self, vectors: Float[Tensor, "rows numbers"]) -> Float[Tensor, "rows numbers"]:
        """Return vectors whose numbers have the mean 0 and the spread 1 over training passages."""
        return (vectors.float() - self.mean) * self.scale

    def weights(
        self, rows: Int[Tensor, " ones"], targets: Int[Tensor, " ones"], num_targets: int, ridge: float
    ) -> Float[Tensor, "numbers targets"]:
        """Return the weights that predict targets of which some are 1 and all others 0.

        Args:
            rows: the row of each 1.
            targets: the target of each 1.
            num_targets: number of targets.
            ridge: weight of the squared solution, relative to the number of rows.
        """
        sums = self.vectors.new_zeros(num_targets, self.vectors.shape[1]).index_add_(0, targets, self.vectors[rows])
        penalty = ridge * len(self.vectors) * torch.eye(len(self.products))
        return torch.linalg.solve((self.products + penalty).double(), sums.T.double()).float()


def read_positions(
    vectors: dict[str, Float[Tensor, "_ numbers"]], labels: dict[str, Int[Tensor, "_ tokens"]], num_classes: int
) -> Bool[Tensor, "passages tokens"]:
    """Return whether a linear reading of each position finds the held-out token; False for padding.

    Args:
        vectors: of the train, validation and held_out passages, by part.
        labels: the target class of each token by part, below 0 for padding.
        num_classes: number of classes.
    """
    ridge = Ridge(vectors["train"])
    found = [_position(ridge, vectors, column, num_classes) for column in _columns(labels)]
    return torch.stack(found, 1)


def _columns(labels: dict[str, Int[Tensor, "_ tokens"]]) -> Iterator[dict[str, Int[Tensor, " _"]]]:
    for position in range(labels["train"].shape[1]):
        yield {part: ids[:, position] for part, ids in labels.items()}


def _position(
    ridge: Ridge, vectors: dict[str, Tensor], labels: dict[str, Tensor], num_classes: int
) -> Bool[Tensor, " passages"]:
    [rows] = (labels["train"] >= 0).nonzero(as_tuple=True)
    best, found = -1.0, torch.zeros(len(labels["held_out"]), dtype=torch.bool)
    for shrinkage in _SHRINKAGES:
        classes = Discriminant.of(ridge.vectors[rows], labels["train"][rows], num_classes, shrinkage)
        right = {
            part: classes.predict(ridge.standardised(vectors[part])) == labels[part]
            for part in ("validation", "held_out")
        }
        share = float(right["validation"].float().mean())
        if share > best:
            best, found = share, right["held_out"]
    return found


class Discriminant(NamedTuple):
    """Linear discriminant analysis: classes with means of their own and one covariance.

    Attributes:
        weights: (numbers, classes).
        offsets: (classes,).
    """

    weights: Float[Tensor, "numbers classes"]
    offsets: Float[Tensor, " classes"]

    @classmethod
    def of(
        cls, vectors: Float[Tensor, "rows numbers"], targets: Int[Tensor, " rows"], num_classes: int, shrinkage: float
    ) -> Discriminant:
        """Fit classes to standardised vectors; each mean counts `shrinkage` vectors more, which are zero."""
        counts = torch.bincount(targets, minlength=num_classes).float()
        sums = vectors.new_zeros(num_classes, vectors.shape[1]).index_add_(0, targets, vectors)
        means = sums / (counts + shrinkage).clamp(min=1e-9)[:, None]
        within = vectors.T @ vectors - means.T @ sums
        within += _LEAST_SPREAD * len(vectors) * torch.eye(len(within))
        weights = torch.linalg.solve(within.double() / len(vectors), means.T.double()).float()
        offsets = (counts / len(targets)).clamp(min=1e-9).log() - (means * weights.T).sum(1) / 2
        # class 0 stands for tokens that no training passage has
        return cls(weights, offsets.masked_fill(torch.arange(num_classes) == 0, -torch.inf))

    def predict(self, vectors: Float[Tensor, "rows numbers"]) -> Int[Tensor, " rows"]:
        """Return the likeliest class of each standardised vector."""
        return torch.cat([(part @ self.weights + self.offsets).argmax(1) for part in vectors.split(_ROWS)])
