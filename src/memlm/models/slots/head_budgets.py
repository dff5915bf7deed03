"""How many slots each head of each layer gets.

A few heads look up single tokens, such as those that copy, and lose most of their output where two tokens share a slot.
Most heads average over many tokens and lose next to nothing at sixteen. So slots go where they save the largest error:

    errors of a head      1 token for each slot: 0    2: 0.01    4: 0.05 ...
    budget of a block     slots for each head, times layers and heads
    slots of a head       as many as make the sum of all errors smallest

The errors are a property of the decoder, not of a text; `head_errors.py` measures them. Attention Matching
(arXiv 2602.16284) gives heads unequal budgets, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.errors import UserError

RATIOS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
"""Tokens for each slot at which errors are measured."""
_MOST_NUMBERS = 1 << 20


@dataclass(frozen=True)
class HeadErrors:
    """The loss of a decoder one of whose heads has fewer slots than tokens.

    Attributes:
        table: for each layer and each head of keys and values, an error for each of `RATIOS`.

    Raises:
        UserError: rows of unequal length, or numbers that are no errors.
    """

    table: tuple[tuple[tuple[float, ...], ...], ...]

    def __post_init__(self) -> None:
        heads = {len(layer) for layer in self.table}
        rows = [row for layer in self.table for row in layer]
        if len(heads) != 1 or not rows or len(rows) * len(RATIOS) > _MOST_NUMBERS:
            raise UserError(f"head errors must be given for equally many heads of each layer (given: {sorted(heads)}).")
        if not all(len(row) == len(RATIOS) and all(math.isfinite(x) and x >= 0 for x in row) for row in rows):
            raise UserError(f"each head needs {len(RATIOS)} finite errors of at least 0, one for each of {RATIOS}.")

    @classmethod
    def of(cls, values: Any) -> HeadErrors | None:
        """Return the errors in a mapping, such as `dataclasses.asdict` makes, or None where there are none.

        Raises:
            UserError: something else.
        """
        if values is None or isinstance(values, cls):
            return values
        try:
            return cls(tuple(tuple(tuple(map(float, row)) for row in layer) for layer in values["table"]))
        except (TypeError, ValueError, KeyError) as error:
            raise UserError(f"head errors cannot be read ({error}).") from None

    @property
    def sizes(self) -> tuple[int, int]:
        """The number of layers, and of heads of keys and values in each."""
        return len(self.table), len(self.table[0])

    def slots(self, tokens: int, mean: int) -> Int[Tensor, "layers heads"]:
        """Return the slots of each head for a block of tokens, `mean` of them for each head or slightly fewer.

        Args:
            tokens: tokens of the block.
            mean: slots for each head in the mean.
        """
        return _slots(self, tokens, mean).clone()


@lru_cache(maxsize=256)
def _slots(errors: HeadErrors, tokens: int, mean: int) -> Int[Tensor, "layers heads"]:
    layers, heads = errors.sizes
    counts = [math.ceil(tokens / ratio) for ratio in RATIOS]
    if mean >= tokens or mean < counts[-1]:
        return torch.full((layers, heads), mean)
    rows = [row for layer in errors.table for row in layer]
    chosen, left = [counts[-1]] * len(rows), (mean - counts[-1]) * len(rows)
    steps = [(gain, head, few, many) for head, row in enumerate(rows) for gain, few, many in _steps(row, counts)]
    # a head's later steps save less for each slot than its earlier ones, so that they come in order
    for _, head, few, many in sorted(steps, key=lambda step: -step[0]):
        if chosen[head] == few and many - few <= left:
            chosen[head], left = many, left - (many - few)
    return torch.tensor(chosen).view(layers, heads)


def _steps(row: tuple[float, ...], counts: list[int]) -> list[tuple[float, int, int]]:
    """Return steps to more slots, best first: the error that each saves for each slot, and the slots before and after.

    They are the edges of the lower convex hull of errors over slots.
    """
    least: dict[int, float] = {}
    for count, error in zip(counts, row, strict=True):
        least[count] = min(error, least.get(count, error))
    hull: list[tuple[int, float]] = []
    for point in sorted(least.items()):
        if hull and hull[-1][1] <= point[1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [(_slope(a, b), a[0], b[0]) for a, b in pairwise(hull)]


def _slope(few: tuple[int, float], many: tuple[int, float]) -> float:
    return (few[1] - many[1]) / (many[0] - few[0])
