"""The share of the full-context gain: how much of what a decoder gains from old text it gains from memories of it.

A row is old text, a window of recent tokens, and tokens that are scored. The decoder reads window and scored tokens
behind nothing, behind all old tokens, behind memories, and behind what a sceptic would take instead, always with
equally many entries in its cache:

    share = (loss alone - loss behind memories) / (loss alone - loss behind all old tokens)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from memlm.data import Document, encode_texts
from memlm.errors import DataError, did_you_mean
from memlm.evaluation.memory.contexts import BASELINES, SINKS, nothing
from memlm.evaluation.memory.kept_losses import KeptLosses, Losses, losses_key
from memlm.measurement import Measurement
from memlm.measurement.intervals import Units, ratio_interval, sum_by
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.models.slots.injection import Encoded, KeyValueInjection
from memlm.models.slots.saved import decoder_identity


@dataclass(frozen=True, kw_only=True)
class ContextGainSettings:
    """Settings of the measurement.

    Raises:
        DataError: a size below 1, or a ratio that leaves no entry for recent tokens.
    """

    rows: int = 200
    """Rows, taken from the documents in turn."""
    context: int = 512
    """Old tokens, which memories are made of."""
    window: int = 32
    """Recent tokens, which are read as tokens."""
    scored: int = 32
    """Tokens whose loss is measured, behind the window."""
    ratios: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Old tokens for each memory."""
    baselines: tuple[str, ...] = ("truncation", "sink and window", "observed attention")
    """Baselines, each with as many entries in the cache as there are memories."""
    fewer_from: int | None = None
    """Tokens for each memory of those that sparser ones are made of, without the text, and measured too."""
    untrained: bool = True
    """Measure chunks that are written without trained adapters, too."""
    distance: int = 0
    """Positions, without any text, between old text and window."""
    batch_size: int = 8
    """Rows that are read at once."""
    seed: int = 0
    """Seed of the rows' places in their documents."""

    def __post_init__(self) -> None:
        for name in ("rows", "window", "scored", "batch_size"):
            if getattr(self, name) < 1:
                raise DataError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.fewer_from is not None and not 1 <= self.fewer_from <= self.context:
            raise DataError(f"fewer_from ({self.fewer_from}) must lie between 1 and context ({self.context}).")
        if self.distance < 0:
            raise DataError(f"distance ({self.distance}) must be at least 0.")
        for name in self.baselines:
            if name not in BASELINES:
                raise DataError(f"unknown baseline '{name}'. {did_you_mean(name, BASELINES)}")
        most = self.context // (SINKS + 1)
        if not self.ratios or not all(1 <= ratio <= most for ratio in self.ratios):
            raise DataError(
                f"ratios {self.ratios} must lie between 1 and {most} for a context of {self.context} tokens."
            )

    @property
    def length(self) -> int:
        """The tokens of a row."""
        return self.context + self.window + self.scored


@dataclass(frozen=True, eq=False)
class GainRows:
    """Rows of tokens and the documents that they come from.

    Attributes:
        ids: (rows, tokens).
        document: (rows,), index of each row's document in `names`.
        names: ids of the documents that are long enough.
    """

    ids: Int[Tensor, "rows tokens"]
    document: NDArray[np.int64]
    names: tuple[str, ...]


def gain_rows(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, settings: ContextGainSettings
) -> GainRows:
    """Return rows from documents in turn, each from a place drawn at random.

    Raises:
        DataError: no document is long enough.
    """
    texts = encode_texts(tokenizer, [document.text for document in documents])
    names = tuple(d.id for d, text in zip(documents, texts, strict=True) if len(text) >= settings.length)
    longer = [text for text in texts if len(text) >= settings.length]
    if not longer:
        raise DataError(
            f"none of {len(texts)} documents has the {settings.length} tokens of a row; give longer documents or a "
            "shorter context."
        )
    drawn = random.Random(settings.seed)  # noqa: S311 (places, not secrets)
    index = np.arange(settings.rows) % len(longer)
    starts = [drawn.randrange(len(longer[i]) - settings.length + 1) for i in index]
    rows = [longer[i][start : start + settings.length] for i, start in zip(index, starts, strict=True)]
    return GainRows(torch.tensor(rows), index, names)


def losses_of(
    model: MemoryDecoder,
    rows: GainRows,
    settings: ContextGainSettings,
    *,
    modes: Sequence[str] = ("joint", "chunks"),
    others: Sequence[MemoryDecoder] = (),
    kept: KeptLosses | None = None,
) -> Iterator[Losses]:
    """Yield the losses of all contexts, one after the other for each batch of rows.

    Args:
        model: the decoder.
        rows: from `gain_rows`.
        settings: of the measurement.
        modes: ways of encoding to measure memories of.
        others: the same decoder with adapters of other seeds, which write chunks, too.
        kept: losses that were computed before, which are not computed again.
    """
    kept = kept or KeptLosses()
    same = {name: value for name, value in asdict(settings).items() if name not in _OF_OTHERS}
    ways = encodings(model, modes, others, untrained=settings.untrained)
    marks = {name: {**way.mark(), **same} for name, way in ways.items()}
    plain = {**Way(model.untrained(), "none").mark(), **same, "baselines": settings.baselines}
    for ids in rows.ids.split(settings.batch_size):
        yield from kept.of(losses_key(ids, **plain), partial(_baseline_losses, model, ids, settings))
        for name, way in ways.items():
            compute = partial(_memory_losses, model, ids, settings, way)
            for found in kept.of(losses_key(ids, **marks[name]), compute):
                yield replace(found, name=name + found.name)


_OF_OTHERS = ("rows", "seed", "batch_size", "untrained", "baselines")
"""Settings that choose rows, or what is measured beside memories, but do not change a row's losses."""


def _baseline_losses(
    model: MemoryDecoder, ids: Int[Tensor, "rows tokens"], settings: ContextGainSettings
) -> Iterator[Losses]:
    old = ids[:, : settings.context].tolist()
    joint = model.encode(old, mode="joint")
    yield Losses("alone", None, _nats(model, ids, nothing(joint), settings))
    yield Losses("full", None, _nats(model, ids, joint.at(tokens_per_memory=1), settings))
    baselines = {name: BASELINES[name](model, joint, old) for name in settings.baselines}
    for ratio in settings.ratios:
        for name, read in baselines.items():
            yield Losses(name, ratio, _nats(model, ids, read(settings.context // ratio), settings))


def _memory_losses(
    model: MemoryDecoder, ids: Int[Tensor, "rows tokens"], settings: ContextGainSettings, way: Way
) -> Iterator[Losses]:
    """Yield losses behind memories, without the name of the way in which they were encoded."""
    texts = way.encode(ids[:, : settings.context].tolist())
    for ratio in settings.ratios:
        memories = texts.at(tokens_per_memory=ratio)
        yield Losses("", ratio, _nats(model, ids, memories, settings))
        another = memories.rows(torch.arange(len(ids)).roll(1))
        yield Losses(", another text's", ratio, _nats(model, ids, another, settings))
        if settings.fewer_from is not None:
            dense = texts.at(tokens_per_memory=min(ratio, settings.fewer_from))
            fewer = model.fewer(dense, tokens_per_memory=ratio)
            yield Losses(f", made of {settings.fewer_from}", ratio, _nats(model, ids, fewer, settings))


@dataclass(frozen=True)
class Way:
    """One way to make memories: a decoder with or without adapters, and a mode of encoding."""

    model: MemoryDecoder
    mode: str

    def encode(self, texts: list[list[int]]) -> Encoded:
        """Return encoded texts."""
        return self.model.encode(texts, mode=self.mode)

    @property
    def _trained(self) -> bool:
        return self.model.reader.adapted or not isinstance(self.model.injection, KeyValueInjection)

    def mark(self) -> dict[str, object]:
        """Return everything that the losses behind such memories depend on, beside rows and settings."""
        return {
            "weights": self.model.fingerprint() if self._trained else decoder_identity(self.model.decoder),
            "encoding": asdict(self.model.settings),
            "mode": self.mode,
            "dtype": str(self.model.decoder.dtype),
        }


def encodings(
    model: MemoryDecoder, modes: Sequence[str], others: Sequence[MemoryDecoder] = (), *, untrained: bool = True
) -> dict[str, Way]:
    """Return ways to encode texts; beside trained adapters, chunks are encoded without them too."""
    found = {mode: Way(model, mode) for mode in modes}
    found |= {f"chunks, run {number}": Way(other, "chunks") for number, other in enumerate(others, 2)}
    if untrained and "chunks" in modes and model.config.lora is not None:
        found["chunks, untrained"] = Way(model.untrained(), "chunks")
    return found


def _nats(
    model: MemoryDecoder, ids: Int[Tensor, "rows tokens"], memories: SlotMemories, settings: ContextGainSettings
) -> Float[Tensor, " rows"]:
    return token_nats_behind(model, ids, memories, settings).mean(1)


def token_nats_behind(
    model: MemoryDecoder, ids: Int[Tensor, "rows tokens"], memories: SlotMemories, settings: ContextGainSettings
) -> Float[Tensor, "rows scored"]:
    """Return the cross-entropy of each scored token, where window and scored tokens are read behind memories."""
    further = replace(memories, lengths=memories.lengths + settings.distance)
    inputs = model.inputs(ids[:, settings.context :].tolist(), further)
    with torch.no_grad():
        logits = model.decoder(**inputs, logits_to_keep=settings.scored + 1).logits[:, :-1].float()
    targets = ids[:, -settings.scored :].to(logits.device)
    return F.cross_entropy(logits.mT, targets, reduction="none").cpu()


def context_gain(
    model: MemoryDecoder,
    documents: Sequence[Document],
    settings: ContextGainSettings | None = None,
    *,
    split: str = "held_out",
    modes: Sequence[str] = ("joint", "chunks"),
    others: Sequence[MemoryDecoder] = (),
    kept: KeptLosses | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> list[Measurement]:
    """Measure the share of the full-context gain of memories and of their baselines.

    Args:
        model: the decoder.
        documents: of which at least one has the length of a row; for intervals, at least ten.
        settings: of the measurement.
        split: name of the documents, for the measurements.
        modes: ways of encoding.
        others: the same decoder with adapters of other seeds; the mean of all runs is measured, too.
        kept: losses that were computed before, which are not computed again.
        on_batch: called with the number of rows that are begun.

    Returns:
        `loss/NAME` in nats per token; `context_gain/NAME`, a share; and for memories `saved/NAME over BASELINE`, the
        paired difference in nats per token.

    Raises:
        DataError: too few documents are long enough.
    """
    settings = settings or ContextGainSettings()
    rows = gain_rows(documents, model.tokenizer, settings)
    parts: dict[tuple[str, int | None], list[Tensor]] = {}
    for found in losses_of(model, rows, settings, modes=modes, others=others, kept=kept):
        parts.setdefault((found.name, found.ratio), []).append(found.nats)
        if found.name == "alone":
            on_batch(sum(map(len, parts["alone", None])))
    nats = {key: torch.cat(values).double().numpy() for key, values in parts.items()}
    ways = list(encodings(model, modes, others, untrained=settings.untrained))
    if others:
        ways.append(_add_mean(nats, len(others) + 1, settings.ratios))
    return list(_measurements(nats, rows.document, settings, split, ways))


def _add_mean(nats: dict[tuple[str, int | None], NDArray[np.float64]], runs: int, ratios: Sequence[int]) -> str:
    """Add the mean loss of several runs, and return its name."""
    names, mean = (
        ["chunks", *(f"chunks, run {number}" for number in range(2, runs + 1))],
        f"chunks, mean of {runs} runs",
    )
    for ratio in ratios:
        for kind in ("", ", another text's"):
            nats[f"{mean}{kind}", ratio] = np.mean([nats[f"{name}{kind}", ratio] for name in names], axis=0)
    return mean


def _measurements(
    nats: dict[tuple[str, int | None], NDArray[np.float64]],
    document: NDArray[np.int64],
    settings: ContextGainSettings,
    split: str,
    modes: Sequence[str],
) -> Iterator[Measurement]:
    alone, gain = nats["alone", None], nats["alone", None] - nats["full", None]
    ones = np.ones_like(gain)
    count = len(gain) * settings.scored
    measure = _Measure(document, count, split, settings)
    for (name, ratio), values in nats.items():
        label = name if ratio is None else f"{name}/{ratio}"
        yield measure(f"loss/{label}", "nats/token", values, ones)
        if ratio is not None:
            yield measure(f"context_gain/{label}", "fraction", alone - values, gain)
    for mode in modes:
        for ratio in settings.ratios:
            kind = mode.split(",")[0]
            untrained = [f"{kind}, untrained"] if f"{kind}, untrained" in modes and "untrained" not in mode else []
            for other in (*settings.baselines, f"{mode}, another text's", *untrained):
                saved = nats[other, ratio] - nats[mode, ratio]
                yield measure(f"saved/{mode}/{ratio} over {other}", "nats/token", saved, ones)


@dataclass(frozen=True, eq=False)
class _Measure:
    document: NDArray[np.int64]
    count: int
    split: str
    settings: ContextGainSettings

    def __call__(self, name: str, unit: str, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> Measurement:
        size = int(self.document.max()) + 1
        of_sums, of_counts = (sum_by(self.document, values, size) for values in (sums, counts))
        interval = ratio_interval(Units(of_sums, of_counts, f"{size} documents"))
        settings = self.settings
        between = f"{settings.distance} positions between, " if settings.distance else ""
        return Measurement(
            name=name,
            value=float(sums.sum() / counts.sum()),
            unit=unit,
            low=interval.low,
            high=interval.high,
            interval_note=interval.note,
            count=self.count,
            split=self.split,
            protocol=f"{settings.context} old tokens, {between}window {settings.window}, {settings.scored} scored",
        )
