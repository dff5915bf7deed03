"""The time that a measurement will take, from a few timed passages and one timed product."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice

import torch

from memlm.data.words import words_of
from memlm.encoders import Encoder
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset
from memlm.evaluation.probe.settings import SIZES, ProbeSettings, ProbeTraining, Size

_TIMED_TEXTS, _TIMED_ROWS = 32, 1024
_OVERHEAD = 2.0
"""Seconds of a training beside those of its products alone: activations, softmax, optimizer, validation. A guess."""
_WORDS = 0.8
"""Content words that can be read, for each word that occurs in training passages."""


@dataclass(frozen=True)
class Estimate:
    """Seconds that a measurement of one length will take at most, where nothing is cached.

    Attributes:
        encoding: of all passages, by the encoder and by its untrained twin.
        linear: of the readings of words.
        training: of all decoders.
    """

    encoding: float
    linear: float
    training: float

    def __str__(self) -> str:
        parts = (("encoding", self.encoding), ("words", self.linear), ("decoders", self.training))
        said = ", ".join(f"{name} {_minutes(seconds)}" for name, seconds in parts)
        return f"at most about {_minutes(sum(seconds for _, seconds in parts))}: {said} (less for what is cached)"

    @classmethod
    def of(cls, dataset: ProbeDataset, encoder: Encoder | None, settings: ProbeSettings, numbers: int) -> Estimate:
        """Time a few passages and a product, and return what follows from them.

        Args:
            dataset: the passages.
            encoder: None where vectors exist already.
            settings: of the measurement.
            numbers: in a vector.
        """
        count = sum(len(dataset.passages[part]) for part in PARTS)
        twins = 1 + (settings.controls and hasattr(encoder, "untrained"))
        encoding = 0.0 if encoder is None else count * twins * _seconds_per_text(encoder, dataset)
        rate, train = _products_per_second(), len(dataset.passages["train"])
        words = _WORDS * len({word for text in dataset.passages["train"].texts for word in words_of(text)})
        readings = 1 + settings.controls * (twins if settings.one_pass_controls else twins - 1) + settings.controls
        linear = readings * 2 * _OVERHEAD * settings.word_passes * train * numbers * words / rate
        training = sum(_products(decoder, dataset, numbers) for decoder in trained_decoders(settings, twins == 2))
        return cls(encoding, linear, _OVERHEAD * training / rate)


def trained_decoders(settings: ProbeSettings, twin: bool) -> list[ProbeTraining]:
    """Return the settings of each decoder that is trained."""
    probe = settings.probe
    sizes: list[Size] = list(SIZES)
    found = [probe] * settings.seeds
    if settings.controls and settings.one_pass_controls:
        found += [probe] * (3 + twin)
        larger = sizes[sizes.index(probe.size) + 1 :][:1]
        found += [probe.model_copy(update={"size": size}) for size in larger]
    writers = 3 + settings.controls * (1 + (twin and settings.one_pass_controls))
    return found + [settings.writer] * (writers if settings.writer_steps else 0)


def _products(training: ProbeTraining, dataset: ProbeDataset, numbers: int) -> float:
    """Return the multiplications of a training: three for each weight and token."""
    width, layers = (SIZES[training.size][name] for name in ("hidden_size", "num_layers"))
    body, head = layers * 14 * width**2, len(dataset.vocabulary) * width
    prior = training.reads_tokens * len(dataset.vocabulary) * (1 + numbers / dataset.length)
    return 3 * training.steps * training.batch_size * dataset.length * (body + head + prior)


def _seconds_per_text(encoder: Encoder, dataset: ProbeDataset) -> float:
    texts = list(islice(dataset.passages["train"].texts, _TIMED_TEXTS))
    encoder.encode(texts[:2])  # the first call prepares what later ones have
    began = time.perf_counter()
    encoder.encode(texts)
    return (time.perf_counter() - began) / len(texts)


def _products_per_second() -> float:
    """Return multiplications (with an addition each) of a matrix product, in a second."""
    left, right = torch.rand(_TIMED_ROWS, _TIMED_ROWS), torch.rand(_TIMED_ROWS, _TIMED_ROWS)
    torch.mm(left, right)
    began = time.perf_counter()
    for _ in range(4):
        torch.mm(left, right)
    return 4 * _TIMED_ROWS**3 / (time.perf_counter() - began)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
