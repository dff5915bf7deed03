"""Tables of measurements for a terminal of 80 columns, for Markdown and for HTML; passages for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memlm.measurement import Measurement, Passage

HEADINGS = ("measurement", "value", "95 % interval", "count", "baseline")
Cells = tuple[str, str, str, str, str]


def with_interval(m: Measurement) -> str:
    """Return a share in percent with its 95 % interval, as tables in documents show it."""
    interval = "" if m.low is None or m.high is None else f" [{percent(m.low)}, {percent(m.high)}]"
    return f"{percent(m.value)} %{interval}"


def cells(m: Measurement) -> Cells:
    """Return the texts of a row: name, value with unit, interval, denominator, baseline."""
    interval = "" if m.low is None or m.high is None else f"{_number(m.low, m.unit)} – {_number(m.high, m.unit)}"
    baseline = "" if m.baseline is None else f"{m.baseline.name} {m.baseline.value:.3f} {m.baseline.unit}"
    return m.name, f"{_number(m.value, m.unit)} {_unit(m.unit)}".strip(), interval, f"{m.count:,}", baseline


def by_split(measurements: Sequence[Measurement]) -> list[tuple[str, list[Cells]]]:
    """Return the rows of each split, splits in the order in which they first occur."""
    order = {split: i for i, split in reversed(list(enumerate(m.split for m in measurements)))}
    ordered = sorted(measurements, key=lambda m: order[m.split])
    return [(split, [cells(m) for m in group]) for split, group in groupby(ordered, key=lambda m: m.split)]


def terminal(measurements: Sequence[Measurement]) -> RenderableType:
    """Return a table for each split, at most 80 columns wide, without baselines: names of retentions include them."""
    tables: list[RenderableType] = []
    for split, rows in by_split(measurements):
        table = Table(title=split, title_justify="left", title_style="bold", box=None, pad_edge=False)
        # long names are folded, so that no figure is cut
        table.add_column(HEADINGS[0], overflow="fold")
        for heading in HEADINGS[1:4]:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(Text, row[:4]))
        tables += [table, Text()]
    return Group(*tables)


def markdown(measurements: Sequence[Measurement]) -> str:
    """Return one Markdown table with a column for the split."""
    lines = ["| split | " + " | ".join(HEADINGS) + " |", "|" + " --- |" * (len(HEADINGS) + 1)]
    for split, rows in by_split(measurements):
        lines += [f"| {split} | " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def percent(fraction: float) -> str:
    """Return a share in percent with two digits, three above 99.9; rounded down, so that only 1 gives 100."""
    digits = 3 if 0.999 < fraction < 1 else 2
    scale = 10**digits
    return f"{math.floor(round(100 * fraction * scale, 6)) / scale:.{digits}f}"


def _number(value: float, unit: str) -> str:
    return percent(value) if unit == "fraction" else f"{value:.4g}"


def _unit(unit: str) -> str:
    return "%" if unit == "fraction" else unit


def visible(text: str) -> str:
    """Return the text with its line ends and tabs shown, since these can be wrong too."""
    return text.replace("\r", "␍").replace("\n", "⏎ ").replace("\t", "⇥ ") or "∅"


def passages(shown: Sequence[Passage]) -> RenderableType:
    """Return each passage above its returned text; wrong pieces are red and in brackets."""
    parts: list[RenderableType] = []
    for passage in shown:
        original, returned = Text(), Text()
        for before, after, equal in passage.pieces:
            original.append(visible(before) if before or not equal else "", style="" if equal else "bold")
            returned.append(visible(after) if equal else f"[{visible(after)}]", style="" if equal else "bold red")
        heading = Text.assemble((passage.name, "bold"), f"  {passage.verdict}")
        rows = [Text("text    ", style="dim"), original, Text("memory  ", style="dim"), returned]
        parts += [heading, *(Padding(row, (0, 0, 0, 2)) for row in rows), Text()]
    return Group(*parts)
