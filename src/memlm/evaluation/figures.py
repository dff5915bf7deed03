"""Scores become measurements: names, units, intervals, baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from jaxtyping import Float, Int
from torch import Tensor

from memlm.evaluation.reconstruction import ReconstructionScores, blank_memory_nats
from memlm.measurement import (
    Baseline,
    DocumentTally,
    Measurement,
    paper_nats,
    retention,
    uniform_nats,
    unigram_log_probabilities,
    unigram_nats,
)
from memlm.measurement.information import NATS_PER_BIT
from memlm.models import TextAutoencoder

PROTOCOL: Final = "one_pass"
"""All positions at once from the memory alone, the most likely token at each; no token is shown."""


@dataclass(frozen=True)
class Reference:
    """What scores are held against.

    Attributes:
        model: for its decoder's answer to a blank memory.
        unigram_counts: (vocabulary,), of the training half.
        token_bytes: (vocabulary,), UTF-8 bytes of each id.
        seed: of the intervals.
    """

    model: TextAutoencoder
    unigram_counts: Int[Tensor, " vocabulary"]
    token_bytes: Int[Tensor, " vocabulary"]
    seed: int

    def unigram(self, scores: ReconstructionScores) -> Float[Tensor, "rows tokens"]:
        """Cross-entropy of every asked token under training frequencies."""
        table = unigram_log_probabilities(self.unigram_counts)
        return unigram_nats(table, scores.labels.clamp(min=0)) * scores.asked

    def baselines(self, scores: ReconstructionScores) -> dict[str, Float[Tensor, "rows tokens"]]:
        """Cross-entropy of every asked token by the name of the baseline."""
        vocabulary = self.model.config.vocab_size
        everywhere = scores.asked.double()
        return {
            "uniform": everywhere * uniform_nats(vocabulary),
            "paper": everywhere * paper_nats(vocabulary),
            "unigram": self.unigram(scores),
            "blank_memory": blank_memory_nats(self.model, scores.labels).double(),
        }


def accuracy_measurement(scores: ReconstructionScores, split: str, *, name: str, seed: int) -> Measurement:
    """Token accuracy under a name of its own, e.g. of rounded memories."""
    return _measurement(name, "fraction", scores.token_accuracy(), split, seed)


def measure(
    scores: ReconstructionScores, split: str, reference: Reference, *, is_text: bool = True
) -> list[Measurement]:
    """Every figure of one split.

    Args:
        scores: of its rows.
        split: its name.
        reference: baselines and byte lengths.
        is_text: False leaves out bits per byte, which random tokens do not have.
    """
    seed = reference.seed
    figures = [
        accuracy_measurement(scores, split, name="token_accuracy", seed=seed),
        _measurement("exact_match", "fraction", scores.exact_match(), split, seed),
        _measurement("cross_entropy", "nats/token", scores.cross_entropy(), split, seed),
        *(_retention(scores, split, name, nats, seed) for name, nats in reference.baselines(scores).items()),
        _bits_per_dim(scores, split, reference),
    ]
    return [*figures, _bits_per_byte(scores, split, reference)] if is_text else figures


def _bits_per_byte(scores: ReconstructionScores, split: str, reference: Reference) -> Measurement:
    sizes = (reference.token_bytes[scores.labels.clamp(min=0)] * scores.asked).sum(1)
    tally = scores.tally(scores.nats.double().sum(1) / NATS_PER_BIT, sizes)
    return _measurement("bits_per_byte", "bits/byte", tally, split, reference.seed)


def _bits_per_dim(scores: ReconstructionScores, split: str, reference: Reference) -> Measurement:
    gained = (reference.unigram(scores) - scores.nats).sum(1) / NATS_PER_BIT
    numbers = scores.asked.any(1) * reference.model.config.memory_size
    tally = scores.tally(gained, numbers)
    return _measurement("bits_per_dim", "bits/number", tally, split, reference.seed)


def _retention(
    scores: ReconstructionScores, split: str, name: str, baseline: Tensor, seed: int
) -> Measurement:
    """1 - CE / CE_baseline over the same tokens; both sides are resampled together."""
    tally = scores.tally(scores.nats.double().sum(1), baseline.sum(1))
    tokens = int(scores.asked.sum())
    low, high = _interval(tally, seed)
    return Measurement(
        name=f"retention/{name}",
        value=retention(float(scores.nats.double().sum()), float(baseline.sum())),
        unit="fraction",
        low=None if high is None else 1 - high,
        high=None if low is None else 1 - low,
        count=tokens,
        baseline=Baseline(name=name, value=float(baseline.sum()) / tokens, unit="nats/token"),
        split=split,
        protocol=PROTOCOL,
    )


def _measurement(name: str, unit: str, tally: DocumentTally, split: str, seed: int) -> Measurement:
    low, high = _interval(tally, seed)
    return Measurement(
        name=name,
        value=tally.ratio(),
        unit=unit,
        low=low,
        high=high,
        count=int(tally.count),
        split=split,
        protocol=PROTOCOL,
    )


def _interval(tally: DocumentTally, seed: int) -> tuple[float | None, float | None]:
    """None where one document leaves nothing to resample."""
    return tally.interval(seed=seed) if (tally.counts > 0).sum() > 1 else (None, None)
