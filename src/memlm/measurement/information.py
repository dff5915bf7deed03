"""Accuracy and information per token. Nothing here depends on a model."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.errors import UserError
from memlm.shapes import IGNORE_INDEX, Labels, TokenIds

NATS_PER_BIT = math.log(2)


def target_mask(labels: Labels) -> Bool[Tensor, "batch tokens"]:
    """Return True where a label is a target."""
    return labels != IGNORE_INDEX


def correct(predictions: TokenIds, labels: Labels) -> Bool[Tensor, "batch tokens"]:
    """Return True where the predicted token is the target, False where there is no target."""
    return predictions == labels


def exact_rows(predictions: TokenIds, labels: Labels) -> Bool[Tensor, " batch"]:
    """Return True for rows in which every target is predicted."""
    return (correct(predictions, labels) | ~target_mask(labels)).all(dim=1)


def rows_with_targets(labels: Labels) -> Int[Tensor, " batch"]:
    """Return 1 for rows with at least one target, else 0: the denominator of exact match."""
    return target_mask(labels).any(dim=1).long()


def uniform_nats(vocab_size: int) -> float:
    """Return the cross-entropy in nats of a uniform guess, ln V.

    Raises:
        UserError: a vocabulary of fewer than two tokens.
    """
    if vocab_size < 2:
        raise UserError(f"a vocabulary of {vocab_size} leaves nothing to guess; it must hold at least 2 tokens.")
    return math.log(vocab_size)


def paper_nats(vocab_size: int) -> float:
    """Return the baseline CE_0 of arXiv 2602.13466 in nats: the softmax of logits drawn from U[0, 1).

    For a large vocabulary V it is ln V + ln(e - 1) - 1/2.

    Raises:
        UserError: a vocabulary of fewer than two tokens.
    """
    return uniform_nats(vocab_size) + math.log(math.e - 1) - 0.5


def unigram_log_probabilities(train_counts: Int[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
    """Return the log-probability in nats of each token by its frequency in training text, one added to each count."""
    smoothed = train_counts.double() + 1
    return (smoothed / smoothed.sum()).log()


def unigram_nats(log_probabilities: Float[Tensor, " vocabulary"], tokens: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return the cross-entropy in nats of each token under training frequencies."""
    return -log_probabilities[tokens].to(torch.float64)


def retention(cross_entropy: float, baseline: float) -> float:
    """Return 1 - CE / CE_baseline, a fraction: 1 for lossless, 0 at the baseline, negative below it.

    Raises:
        UserError: the baseline is not above zero.
    """
    if not baseline > 0:
        raise UserError(f"the baseline ({baseline} nats) must be above 0 to be compared with.")
    return 1 - cross_entropy / baseline
