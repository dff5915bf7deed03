"""Shares of tokens and of chunks that are right."""

from __future__ import annotations

from jaxtyping import Bool, Int
from torch import Tensor

from memlm.shapes import IGNORE_INDEX, Labels, TokenIds


def asked(labels: Labels) -> Bool[Tensor, "batch tokens"]:
    """Where a token is asked for."""
    return labels != IGNORE_INDEX


def correct(predictions: TokenIds, labels: Labels) -> Bool[Tensor, "batch tokens"]:
    """Where the predicted token is the one asked for; False where none is."""
    return predictions == labels


def exact_rows(predictions: TokenIds, labels: Labels) -> Bool[Tensor, " batch"]:
    """Rows with every asked token right."""
    return (correct(predictions, labels) | ~asked(labels)).all(dim=1)


def asked_rows(labels: Labels) -> Int[Tensor, " batch"]:
    """1 for rows that ask for at least one token, else 0: the denominator of exact match."""
    return asked(labels).any(dim=1).long()
