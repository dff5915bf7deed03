"""Shares of tokens and of chunks that are right."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.errors import UserError
from memlm.shapes import IGNORE_INDEX, Labels, TokenIds


def target_mask(labels: Labels) -> Bool[Tensor, "batch tokens"]:
    """Where a token is asked for."""
    return labels != IGNORE_INDEX


def correct(predictions: TokenIds, labels: Labels) -> Bool[Tensor, "batch tokens"]:
    """Where the predicted token is the one asked for; False where none is."""
    return predictions == labels


def exact_rows(predictions: TokenIds, labels: Labels) -> Bool[Tensor, " batch"]:
    """Rows with every asked token right."""
    return (correct(predictions, labels) | ~target_mask(labels)).all(dim=1)


def rows_with_targets(labels: Labels) -> Int[Tensor, " batch"]:
    """1 for rows that ask for at least one token, else 0: the denominator of exact match."""
    return target_mask(labels).any(dim=1).long()


NATS_PER_BIT = math.log(2)


def uniform_nats(vocab_size: int) -> float:
    """Cross-entropy in nats of guessing uniformly: ln V."""
    _require_vocabulary(vocab_size)
    return math.log(vocab_size)


def paper_nats(vocab_size: int) -> float:
    """The paper's CE_0 in nats: softmax of logits drawn from U[0, 1), which is ln V + ln(e - 1) - 1/2 for large V."""
    return uniform_nats(vocab_size) + math.log(math.e - 1) - 0.5


def unigram_log_probabilities(train_counts: Int[Tensor, " vocabulary"]) -> Float[Tensor, " vocabulary"]:
    """Log-probability in nats of each token by its frequency in training text, one added to each count."""
    smoothed = train_counts.double() + 1
    return (smoothed / smoothed.sum()).log()


def retention(cross_entropy: float, baseline: float) -> float:
    """1 - CE / CE_baseline, a fraction: 1 keeps everything, 0 nothing; below 0 where worse than the baseline.

    Raises:
        UserError: a baseline that is not above zero.
    """
    if not baseline > 0:
        raise UserError(f"the baseline ({baseline} nats) must be above 0 to be compared with.")
    return 1 - cross_entropy / baseline


def bits_per_token(nats: float) -> float:
    """Nats per token as bits per token."""
    return nats / NATS_PER_BIT


def bits_per_byte(total_nats: float, total_bytes: float) -> float:
    """Bits per byte of UTF-8 text from sums over the same tokens."""
    if not total_bytes > 0:
        raise UserError(f"{total_bytes} bytes of text; bits per byte need at least one.")
    return total_nats / NATS_PER_BIT / total_bytes


def bits_per_dim(unigram_nats: float, nats: float, numbers: float) -> float:
    """Usable bits per number of the memory: information gained over the unigram floor.

    Args:
        unigram_nats: summed cross-entropy of the text under training frequencies.
        nats: summed cross-entropy of the same tokens given the memory.
        numbers: numbers in all memories together.
    """
    if not numbers > 0:
        raise UserError(f"{numbers} numbers of memory; bits per number need at least one.")
    return (unigram_nats - nats) / NATS_PER_BIT / numbers


def _require_vocabulary(vocab_size: int) -> None:
    if vocab_size < 2:
        raise UserError(f"a vocabulary of {vocab_size} leaves nothing to guess; it must hold at least 2 tokens.")


def unigram_nats(log_probabilities: Float[Tensor, " vocabulary"], tokens: Int[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Cross-entropy in nats of each token under training frequencies."""
    return -log_probabilities[tokens].to(torch.float64)
