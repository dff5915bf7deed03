"""The share of the full-context gain: how much of what a decoder gains from old text it gains from memories of it.

A row is old text, a window of recent tokens, and tokens that are scored. The decoder reads window and scored tokens
behind nothing, behind all old tokens, behind memories, and behind what a sceptic would take instead, always with
equally many entries in its cache:

    share = (loss alone - loss behind memories) / (loss alone - loss behind all old tokens)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from memlm.measurement import Measurement
from memlm.measurement.intervals import Units, ratio_interval, sum_by
from memlm.models.slots import EncodedTexts, MemoryDecoder, SlotMemories
from memlm.models.slots.injection import Encoded
from memlm.models.slots.states import LayerStates

_SINKS = 3
"""Tokens that streaming keeps from the beginning of the text, beside the token before it (arXiv 2309.17453)."""


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
        most = self.context // (_SINKS + 1)
        if not self.ratios or not all(1 <= ratio <= most for ratio in self.ratios):
            raise DataError(
                f"ratios {self.ratios} must lie between 1 and {most} for a context of {self.context} tokens."
            )

    @property
    def length(self) -> int:
        """The tokens of a row."""
        return self.context + self.window + self.scored


@dataclass(frozen=True, eq=False)
class Losses:
    """Mean loss of each row's scored tokens behind one kind of context.

    Attributes:
        name: the context, such as "memories" or "truncation".
        ratio: old tokens for each entry of the cache; None where there is no such number.
        nats: (rows,).
    """

    name: str
    ratio: int | None
    nats: Float[Tensor, " rows"]


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
) -> Iterator[Losses]:
    """Yield the losses of all contexts, one after the other for each batch of rows.

    Args:
        model: the decoder.
        rows: from `gain_rows`.
        settings: of the measurement.
        modes: ways of encoding to measure memories of.
        others: the same decoder with adapters of other seeds, which write chunks, too.
    """
    ways = encodings(model, modes, others, untrained=settings.untrained)
    for ids in rows.ids.split(settings.batch_size):
        old = ids[:, : settings.context].tolist()
        joint = model.encode(old, mode="joint")
        encoded = {name: joint if name == "joint" else encode(old) for name, encode in ways.items()}
        yield Losses("alone", None, _nats(model, ids, nothing(joint), settings))
        yield Losses("full", None, _nats(model, ids, joint.at(tokens_per_memory=1), settings))
        baselines = {name: BASELINES[name](model, joint, old) for name in settings.baselines}
        for ratio in settings.ratios:
            for name, read in baselines.items():
                yield Losses(name, ratio, _nats(model, ids, read(settings.context // ratio), settings))
            for name, texts in encoded.items():
                memories = texts.at(tokens_per_memory=ratio)
                yield Losses(name, ratio, _nats(model, ids, memories, settings))
                another = memories.rows(torch.arange(len(ids)).roll(1))
                yield Losses(f"{name}, another text's", ratio, _nats(model, ids, another, settings))
                if settings.fewer_from is not None:
                    dense = texts.at(tokens_per_memory=min(ratio, settings.fewer_from))
                    fewer = model.fewer(dense, tokens_per_memory=ratio)
                    yield Losses(f"{name}, made of {settings.fewer_from}", ratio, _nats(model, ids, fewer, settings))


def encodings(
    model: MemoryDecoder, modes: Sequence[str], others: Sequence[MemoryDecoder] = (), *, untrained: bool = True
) -> Mapping[str, Callable[[list[list[int]]], Encoded]]:
    """Return ways to encode texts; beside trained adapters, chunks are encoded without them too."""
    found = {mode: partial(model.encode, mode=mode) for mode in modes}
    found |= {f"chunks, run {number}": partial(other.encode, mode="chunks") for number, other in enumerate(others, 2)}
    if untrained and "chunks" in modes and model.config.lora is not None:
        found["chunks, untrained"] = partial(model.untrained().encode, mode="chunks")
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


def nothing(encoded: EncodedTexts) -> SlotMemories:
    """Return memories of no token; the decoder sees the token before the text only."""
    return encoded.keep(
        [
            states.keys.new_full((*states.keys.shape[:1], states.keys.shape[2], 1), -1).long()
            for states in encoded.layers
        ]
    )


Read = Callable[[int], SlotMemories]
"""Function from a number of entries in the cache to what the decoder reads."""


def truncation(model: MemoryDecoder, encoded: EncodedTexts, old: list[list[int]]) -> Read:
    """Read the last old tokens, without those before them."""
    return lambda count: model.encode([row[-count:] for row in old], mode="joint").keep_all()


def streaming(model: MemoryDecoder, encoded: EncodedTexts, old: list[list[int]]) -> Read:
    """Read the first tokens, as attention sinks, and the last ones (StreamingLLM, arXiv 2309.17453)."""
    tokens = len(old[0])

    def read(count: int) -> SlotMemories:
        kept = torch.cat([torch.arange(_SINKS), torch.arange(tokens - (count - _SINKS), tokens)])
        return encoded.keep([kept.expand(len(old), states.keys.shape[2], -1) for states in encoded.layers])

    return read


def observed_attention(model: MemoryDecoder, encoded: EncodedTexts, old: list[list[int]]) -> Read:
    """Read the tokens that got the most attention per later token while the text was read (H2O, arXiv 2306.14048)."""
    attended = [_attention(states, len(old[0])) for states in encoded.layers]
    return lambda count: encoded.keep([x.topk(count, dim=-1).indices.sort(-1).values for x in attended])


def _attention(states: LayerStates, tokens: int) -> Float[Tensor, "batch heads tokens"]:
    """Return the mean attention that each token got from those that see it, its own included."""
    # (batch, key heads, group, tokens, numbers) and (batch, key heads, 1 + tokens, numbers)
    queries = states.queries.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)[..., :tokens, :].float()
    keys = states.keys.transpose(1, 2).flatten(2, 3)[:, :, :tokens]
    keys = torch.cat([states.first_key, keys], dim=2).float()
    score = states.rule.scores(queries, keys[:, :, None])
    seen = torch.ones(tokens, tokens + 1, dtype=torch.bool).tril(1)
    attention = score.masked_fill(~seen, float("-inf")).softmax(-1)[..., 1:].sum(3)
    return (attention / torch.arange(tokens, 0, -1)).mean(2)


BASELINES: dict[str, Callable[[MemoryDecoder, EncodedTexts, list[list[int]]], Read]] = {
    "truncation": truncation,
    "sink and window": streaming,
    "observed attention": observed_attention,
}
"""The contexts that a sceptic would read instead of memories, with as many entries in the cache."""


def context_gain(
    model: MemoryDecoder,
    documents: Sequence[Document],
    settings: ContextGainSettings | None = None,
    *,
    split: str = "held_out",
    modes: Sequence[str] = ("joint", "chunks"),
    others: Sequence[MemoryDecoder] = (),
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
        on_batch: called with the number of rows that are done.

    Returns:
        `loss/NAME` in nats per token; `context_gain/NAME`, a share; and for memories `saved/NAME over BASELINE`, the
        paired difference in nats per token.

    Raises:
        DataError: too few documents are long enough.
    """
    settings = settings or ContextGainSettings()
    rows = gain_rows(documents, model.tokenizer, settings)
    parts: dict[tuple[str, int | None], list[Tensor]] = {}
    for found in losses_of(model, rows, settings, modes=modes, others=others):
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
