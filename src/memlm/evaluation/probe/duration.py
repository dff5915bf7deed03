"""The time that a measurement will take, from a few timed passages, updates and products."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from memlm.data.words import words_of
from memlm.encoders import Encoder
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset
from memlm.evaluation.probe.settings import SIZES, ProbeSettings, ProbeTraining, Size
from memlm.evaluation.probe.training import ProbeData, untrained_probe
from memlm.models.runtime import wants_bf16
from memlm.training import OptimizerConfig
from memlm.training.loop.optimizer import build_optimizer

_TIMED_TEXTS, _TIMED_ROWS = 32, 1024
_START, _DISCRIMINANTS, _REGRESSION = 6.5, 1.5, 2.0
"""Seconds of the start of a probe, of a reading of positions and of a pass of the regression of words, beside those of
their largest products alone (LOG.md)."""
_WORDS = 0.8
"""Content words that can be read, for each word that occurs in training passages."""


@dataclass(frozen=True)
class Estimate:
    """Seconds that a measurement of one length will take at most, where nothing is cached.

    Attributes:
        encoding: of all passages, by the encoder and by its untrained twin.
        linear: of the readings of words and positions.
        training: of all decoders.
    """

    encoding: float
    linear: float
    training: float

    def __str__(self) -> str:
        parts = (("encoding", self.encoding), ("linear readings", self.linear), ("decoders", self.training))
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
        readings = 1 + settings.controls * (twins if settings.one_pass_controls else twins - 1)
        linear = _linear_seconds(dataset, settings, numbers, readings)
        trained = Counter(training.model_dump_json() for training in trained_decoders(settings, twins == 2))
        kinds = {text: ProbeTraining.model_validate_json(text) for text in trained}
        seconds = {text: _training_seconds(dataset, training, numbers) for text, training in kinds.items()}
        return cls(encoding, linear, sum(trained[text] * seconds[text] for text in trained))


def trained_decoders(settings: ProbeSettings, twin: bool) -> list[ProbeTraining]:
    """Return the settings of each decoder that is trained."""
    probe = settings.probe
    sizes: list[Size] = list(SIZES)
    found = [probe] * settings.seeds
    if settings.controls and settings.one_pass_controls:
        found += [probe] * (3 + twin)
        larger = sizes[sizes.index(probe.size) + 1 :][:1]
        found += [probe.model_copy(update={"size": size}) for size in larger]
    if settings.audit:
        found += [settings.writer if settings.writer_steps else probe] * len(settings.roundings)
    if settings.audit and not settings.writer_steps and not (settings.controls and settings.one_pass_controls):
        found.append(probe)  # the floor
    # the language, the floor and the encoder's vectors
    writers = 3 + settings.controls * (1 + (twin and settings.one_pass_controls))
    return found + [settings.writer] * (writers if settings.writer_steps else 0)


def _linear_seconds(dataset: ProbeDataset, settings: ProbeSettings, numbers: int, readings: int) -> float:
    """Return the seconds of so many readings of positions and words, and of the positive control of words."""
    train, scored = (sum(len(dataset.passages[part]) for part in parts) for parts in (PARTS[:1], PARTS[1:]))
    words = _WORDS * len({word for text in dataset.passages["train"].texts for word in words_of(text)})
    # a discriminant is fitted by two products and a system in double precision, and read by a product
    products = (scored + 3 * numbers) * numbers * len(dataset.vocabulary)
    positions = _DISCRIMINANTS * readings * 2 * dataset.length * products
    passes = _REGRESSION * (readings + settings.controls) * 2 * settings.word_passes * train * numbers * words
    return (positions + passes) / _products_per_second()


def _training_seconds(dataset: ProbeDataset, training: ProbeTraining, numbers: int) -> float:
    """Return the seconds of a training that is not stopped early, from a timed update and a timed evaluation."""
    labels = dataset.labels("train")[: training.batch_size]
    vectors, classes = torch.randn(len(labels), numbers), len(dataset.vocabulary)
    model = untrained_probe(ProbeData(vectors, labels, vectors, labels, classes), training)
    optimizer = build_optimizer(model, OptimizerConfig())
    precision = partial(torch.autocast, "cpu", torch.bfloat16, enabled=wants_bf16("auto"))

    def update() -> None:
        with precision():
            loss = model.train()(vectors, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def evaluate() -> None:
        with precision():
            model.eval().teacher_forced(vectors, labels)

    update()  # the first one also makes the optimizer's state
    batches = (1 + training.steps / training.evaluate_every) * len(dataset.passages["validation"]) / len(labels)
    # a decoder that reads tokens starts from one that has learnt the language
    start = 0.0 if training.reads_tokens else _START * dataset.length * classes * numbers**2 / _products_per_second()
    return start + training.steps * _seconds_of(update) + batches * _seconds_of(evaluate)


def _seconds_of(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


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
