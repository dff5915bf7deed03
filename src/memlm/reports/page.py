"""One self-contained HTML page: opens offline, light and dark, on a phone and on a wide screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from memlm.measurement import Measurement
from memlm.reports.figure import accuracy_by_position, learning_curve, memory_cost
from memlm.reports.passage import PassageView, visible
from memlm.reports.table import HEADINGS, by_split


@dataclass(frozen=True)
class CostView:
    """Bits that a way of keeping the text takes for each byte of it."""

    name: str
    bits_per_byte: float


@dataclass(frozen=True)
class PageContent:
    """Everything a page shows.

    Attributes:
        title: what was run.
        headline: the main result in one sentence.
        command: the exact command.
        log: lines of the training log, each with "tokens", "loss" and, where looked, "held_out_token_accuracy".
        measurements: all figures.
        by_position: accuracy at each position of a chunk.
        passages: texts and what came back.
        figures: title and SVG of figures that stand first.
        costs: bits per byte.
        facts: name and value of versions, data, seed.
        config: the settings as YAML.
    """

    title: str
    headline: str
    command: str
    measurements: Sequence[Measurement]
    by_position: Sequence[float]
    passages: Sequence[PassageView]
    log: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    figures: Sequence[tuple[str, str]] = field(default_factory=tuple)
    costs: Sequence[CostView] = field(default_factory=tuple)
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    config: str = ""


def write_page(path: str | Path, content: PageContent) -> None:
    """Render the page and put it in place whole."""
    file, page = Path(path), render(content)
    draft = file.with_name(f".{file.name}.draft")
    draft.write_text(page, encoding="utf-8")
    draft.replace(file)


def render(content: PageContent) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("memlm.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["visible"] = visible
    return environment.get_template("page.html").render(
        content=content, headings=HEADINGS, tables=by_split(content.measurements), figures=_figures(content)
    )


def _figures(content: PageContent) -> list[tuple[str, str]]:
    looked = [line for line in content.log if line.get("held_out_token_accuracy") is not None]
    figures = list(content.figures)
    if looked:
        curve = learning_curve(
            [float(line["tokens"]) for line in looked],
            [line["held_out_token_accuracy"] for line in looked],
            [line["loss"] for line in looked],
        )
        figures.append(("Learning curve", curve))
    if content.by_position:
        figures.append(("Accuracy by position", accuracy_by_position(content.by_position)))
    if content.costs:
        names, bits = [c.name for c in content.costs], [c.bits_per_byte for c in content.costs]
        figures.append(("What the memory costs", memory_cost(names, bits)))
    return figures
