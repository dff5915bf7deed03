"""Tables of measurements for a terminal of 80 columns, for Markdown and for HTML; passages for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from memlm.evaluation.probe.audit import FLOORS, Audit, Row
from memlm.measurement import Measurement, Passage

HEADINGS = ("measurement", "value", "95 % interval", "exact binomial", "count", "baseline")
_SHOWN = ("value", "95 % interval", "count")
"""Headings of the columns behind the name that a terminal shows."""
Cells = tuple[str, str, str, str, str, str]
_EXACT = "exact binomial: for independent tokens or chunks, as those of one text are not"


def with_interval(m: Measurement) -> str:
    """Return a share in percent with its 95 % interval, as tables in documents show it."""
    interval = "" if m.low is None or m.high is None else f" [{percent(m.low)}, {percent(m.high)}]"
    return f"{percent(m.value)} %{interval}"


def cells(m: Measurement) -> Cells:
    """Return the texts of a row: name, value with unit, interval, exact interval, denominator, baseline."""
    interval, exact = (_ends(*ends, m.unit) for ends in ((m.low, m.high), (m.exact_low, m.exact_high)))
    baseline = "" if m.baseline is None else f"{m.baseline.name} {m.baseline.value:.3f} {m.baseline.unit}"
    unit = "%" if m.unit == "fraction" else m.unit
    return m.name, f"{_number(m.value, m.unit)} {unit}".strip(), interval, exact, f"{m.count:,}", baseline


def _ends(low: float | None, high: float | None, unit: str) -> str:
    return "" if low is None or high is None else f"{_number(low, unit)} – {_number(high, unit)}"


def notes(measurements: Sequence[Measurement]) -> list[str]:
    """Return what the intervals of a table are computed from, and why there are none."""
    found = list(dict.fromkeys(m.interval_note for m in measurements if m.interval_note))
    return [*found, _EXACT] if any(m.exact_low is not None for m in measurements) else found


def by_split(measurements: Sequence[Measurement]) -> list[tuple[str, list[Cells], list[str]]]:
    """Return the rows and the notes of each split, splits in the order in which they first occur."""
    order = {split: i for i, split in reversed(list(enumerate(m.split for m in measurements)))}
    ordered = sorted(measurements, key=lambda m: order[m.split])
    groups = [(split, list(group)) for split, group in groupby(ordered, key=lambda m: m.split)]
    return [(split, [cells(m) for m in group], notes(group)) for split, group in groups]


def terminal(measurements: Sequence[Measurement]) -> RenderableType:
    """Return a table for each split, at most 80 columns wide.

    Exact intervals stand in JSON and on pages only; baselines are left out, since names of retentions include them.
    """
    tables: list[RenderableType] = []
    for split, rows, below in by_split(measurements):
        table = Table(
            title=split, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 1, 0, 0)
        )
        # a name that is too long is folded, so that no figure is cut
        table.add_column(HEADINGS[0], overflow="fold")
        for heading in _SHOWN:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, value, interval, _, count, _ in rows:
            table.add_row(*map(Text, (name, value, interval, count)))
        tables += [table, *(Text(note, style="dim") for note in below if note != _EXACT), Text()]
    return Group(*tables)


AUDIT_HEADINGS = ("entities", "recovered", "share", "95 % interval", "nothing", "another", "verdict")
"""Headings of the table of an audit: the floors are what is read from nothing, and from another text's vector."""


def audit_cells(row: Row) -> tuple[str, ...]:
    """Return the texts of a row of an audit; shares are left out where there is no verdict for want of entities."""
    if row.status == "too few to judge":
        return row.name, row.count, "", "", "", "", row.status
    floors = [f"{percent(m.value)} %" if (m := row.floors.get(name)) else "" for name in FLOORS]
    own = row.recovered
    return row.name, row.count, f"{percent(own.value)} %", _ends(own.low, own.high, own.unit), *floors, row.status


def audit_notes(audit: Audit) -> list[str]:
    """Return what the floors of an audit are, why kinds have no verdict, and which kinds no text has."""
    reasons = {f"{row.status}: {row.reason}": None for row in audit.rows() if row.reason}
    absent = ", ".join(audit.absent())
    floors = "nothing, another: recovered from a blank vector or no memories, and from another text's"
    return [floors, *reasons, *([f"no text has {absent}"] if absent else [])]


def audits(found: Sequence[Audit]) -> RenderableType:
    """Return a table for each audit, at most 80 columns wide."""
    tables: list[RenderableType] = []
    for audit in found:
        title = Text(f"audit of {audit.split}", style="bold")
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column(AUDIT_HEADINGS[0], overflow="fold")
        for heading in AUDIT_HEADINGS[1:-1]:
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column(AUDIT_HEADINGS[-1], overflow="fold")
        for row in audit.rows():
            table.add_row(*map(Text, audit_cells(row)))
        tables += [table, *(Text(note, style="dim") for note in audit_notes(audit)), Text()]
    return Group(*tables)


def markdown(measurements: Sequence[Measurement]) -> str:
    """Return one Markdown table with a column for the split."""
    lines = ["| split | " + " | ".join(HEADINGS) + " |", "|" + " --- |" * (len(HEADINGS) + 1)]
    for split, rows, _ in by_split(measurements):
        lines += [f"| {split} | " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(measurements))]).rstrip() + "\n"


def percent(fraction: float) -> str:
    """Return a share in percent with two digits, three above 99.9; rounded down, so that only 1 gives 100."""
    digits = 3 if 0.999 < fraction < 1 else 2
    scale = 10**digits
    return f"{math.floor(round(100 * fraction * scale, 6)) / scale:.{digits}f}"


def _number(value: float, unit: str) -> str:
    return percent(value) if unit == "fraction" else f"{value:.4g}"


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
