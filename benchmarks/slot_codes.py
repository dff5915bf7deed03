"""Slots in fewer bits: what they keep, what they take, and how much of their text the decoder finds behind them.

OMP_NUM_THREADS=1 python -m benchmarks.slot_codes --decoder PATH_OR_HUB_ID

The share of the full-context gain is measured as in `benchmarks.context_gain`; "lost" is the difference to slots that
are not rounded, on the same rows. Bytes are those of keys, values, scales, biases and positions, as a store keeps them.
"Read again" is the share of the old text's tokens that the decoder ranks first where it reads the text once more behind
its memories, which shows how much of a text its memories give away.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import tyro
from jaxtyping import Float
from rich.progress import Progress
from torch import Tensor

from benchmarks.source import Source
from memlm.evaluation.memory.context_gain import ContextGainSettings, GainRows, gain_rows, token_nats_behind
from memlm.evaluation.memory.contexts import nothing
from memlm.measurement.intervals import Units, ratio_interval, sum_by
from memlm.models.slots import EncodedTexts, MemoryDecoder, SlotMemories
from memlm.models.slots.codes import bits_per_slot

_CUE = 8
"""First tokens of a text that are not counted where it is read again."""


@dataclass(frozen=True)
class Options(Source):
    """A decoder, text and sizes."""

    mode: Literal["joint", "chunks"] = "joint"
    """How texts are encoded."""
    bits: tuple[Literal[16, 8, 4], ...] = (16, 8, 4)
    """Bits of each number."""
    measure: ContextGainSettings = field(default_factory=lambda: ContextGainSettings(rows=100, ratios=(8,)))
    """Rows, contexts and ratios."""


Found = dict[tuple[str, int], list[Float[Tensor, " rows"]]]
"""For each kind of slots and ratio, numbers of the rows."""


def measured(model: MemoryDecoder, rows: GainRows, options: Options) -> Iterator[tuple[str, int, Tensor, Tensor]]:
    """Yield kind, ratio, mean loss of each row's scored tokens, and share of its old tokens that are ranked first."""
    settings = options.measure
    for ids in rows.ids.split(settings.batch_size):
        old = ids[:, : settings.context]
        encoded = model.encode(old.tolist(), mode=options.mode)
        for name, memories in (("alone", nothing(encoded)), ("full", encoded.keep_all())):
            yield name, 0, token_nats_behind(model, ids, memories, settings).mean(1), read_again(model, old, memories)
        for ratio in settings.ratios:
            for name, memories in of_bits(encoded, ratio, options):
                nats = token_nats_behind(model, ids, memories, settings).mean(1)
                yield name, ratio, nats, read_again(model, old, memories)


def of_bits(encoded: EncodedTexts, ratio: int, options: Options) -> Iterator[tuple[str, SlotMemories]]:
    """Yield memories of each number of bits, those that are not rounded first."""
    yield "not rounded", encoded.at(tokens_per_memory=ratio)
    for bits in options.bits:
        fit = replace(encoded.settings.fit, bits=bits)
        rounded = replace(encoded, settings=replace(encoded.settings, fit=fit))
        yield f"{bits} bits", rounded.at(tokens_per_memory=ratio)


@torch.no_grad()
def read_again(model: MemoryDecoder, old: Tensor, memories: SlotMemories) -> Float[Tensor, " rows"]:
    """Return the share of tokens that the decoder ranks first where it reads texts behind memories."""
    found = model.decoder(**model.inputs(old.tolist(), memories)).logits[:, _CUE - 1 : -1].argmax(-1)
    return (found.cpu() == old[:, _CUE:]).float().mean(1)


def slot_bytes(model: MemoryDecoder, bits: int) -> float:
    """Return the bytes of a slot of all layers and heads."""
    layers, heads, numbers = model.slot_sizes
    return layers * heads * bits_per_slot(numbers, bits) / 8


def cell(sums: Tensor, counts: Tensor, rows: GainRows) -> str:
    """Return a ratio in percent with its interval over documents."""
    size = int(rows.document.max()) + 1
    of_sums, of_counts = (sum_by(rows.document, x.double().numpy(), size) for x in (sums, counts))
    interval = ratio_interval(Units(of_sums, of_counts, f"{size} documents"))
    value = f"{100 * float(of_sums.sum() / of_counts.sum()):.1f}"
    return value if interval.low is None else f"{value} [{100 * interval.low:.1f}, {100 * (interval.high or 0):.1f}]"


def table(nats: dict[tuple[str, int], Tensor], again: dict[tuple[str, int], Tensor], rows: GainRows) -> Iterator[str]:
    """Yield lines of a Markdown table."""
    alone = nats["alone", 0]
    gain, ones = alone - nats["full", 0], torch.ones_like(alone)
    for name, ratio in nats:
        if ratio:
            known = nats["not rounded", ratio]
            lost = "" if name == "not rounded" else cell(nats[name, ratio] - known, gain, rows)
            share = cell(alone - nats[name, ratio], gain, rows)
            yield f"| {name} | {ratio} | {share} | {lost} | {cell(again[name, ratio], ones, rows)} |"
        else:
            yield f"| {name} | | | | {cell(again[name, ratio], ones, rows)} |"


def main(options: Options) -> None:
    """Measure and print."""
    model = options.load()
    documents = options.documents()
    rows = gain_rows(documents, model.tokenizer, options.measure)
    nats: Found = {}
    again: Found = {}
    began = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("reading rows", total=len(rows.ids))
        for name, ratio, loss, share in measured(model, rows, options):
            nats.setdefault((name, ratio), []).append(loss)
            again.setdefault((name, ratio), []).append(share)
            progress.advance(task, len(loss) if name == "alone" else 0)
    whole = slot_bytes(model, 16)
    for bits in options.bits:
        size = slot_bytes(model, bits)
        per_token = ", ".join(f"{size / ratio:.0f} at {ratio}" for ratio in options.measure.ratios)
        print(f"{bits} bits: {size:.0f} bytes a slot, {100 * size / whole:.1f} % of 16 bits; per token: {per_token}")
    print(f"{len(rows.ids)} rows of {options.measure.context} old tokens, {options.mode}, {options.split}")
    print("| | tokens per memory | share, % | lost, points | read again, % |\n|---|---|---|---|---|")
    losses, shares = ({key: torch.cat(parts) for key, parts in numbers.items()} for numbers in (nats, again))
    print("\n".join(table(losses, shares, rows)))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Options))
