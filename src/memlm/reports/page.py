"""Self-contained HTML pages: the report of a run, with its Hugging Face model card, and how documents were read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from memlm.evaluation.probe.audit import Audit
from memlm.files import write_file_atomic
from memlm.measurement import Cost, Measurement, PartRead, Passage, SavedPassage
from memlm.reports.figure import accuracy_by_position, learning_curve, memory_cost
from memlm.reports.tables import AUDIT_HEADINGS, HEADINGS, audit_cells, audit_notes, by_split, markdown, visible

_RECORDS = 50
"""Recovered entities that a page shows with their texts, the first ones."""


@dataclass(frozen=True)
class PageContent:
    """Everything a page shows.

    Attributes:
        title: the name of what was run.
        headline: the main result in one sentence.
        command: the exact command.
        measurements: all figures.
        summary: headings and rows of a table that comes first.
        by_position: token accuracy at each position of a chunk.
        passages: texts beside what was decoded from their memories.
        saved: texts whose tokens are coloured by what memories saved.
        log: lines of the training log with "tokens" and "loss", some with "validation_token_accuracy".
        figures: (title, SVG) of figures that come first.
        costs: bits per byte of the memories and of general compressors.
        facts: (name, value) of versions, data and seed.
        config: the settings as YAML.
        audits: entities that were recovered.
    """

    title: str
    headline: str
    command: str
    measurements: Sequence[Measurement]
    by_position: Sequence[float]
    passages: Sequence[Passage]
    saved: Sequence[SavedPassage] = field(default_factory=tuple)
    log: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    figures: Sequence[tuple[str, str]] = field(default_factory=tuple)
    costs: Sequence[Cost] = field(default_factory=tuple)
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    config: str = ""
    audits: Sequence[Audit] = field(default_factory=tuple)
    summary: Sequence[Sequence[str]] = field(default_factory=tuple)


def write_page(path: str | Path, content: PageContent) -> None:
    """Write the page, replacing the file in one step."""
    write_file_atomic(Path(path), render(content))


def environment() -> Environment:
    """Return the templates of all pages, which escape whatever they show."""
    found = Environment(
        loader=PackageLoader("memlm.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found.filters["visible"] = visible
    return found


def render(content: PageContent) -> str:
    """Return the page as HTML."""
    return (
        environment()
        .get_template("page.html")
        .render(
            content=content,
            headings=HEADINGS,
            tables=by_split(content.measurements),
            figures=_figures(content),
            audit_headings=AUDIT_HEADINGS,
            audit_cells=audit_cells,
            audit_notes=audit_notes,
            most=_RECORDS,
        )
    )


def _figures(content: PageContent) -> list[tuple[str, str]]:
    looked = [line for line in content.log if line.get("validation_token_accuracy") is not None]
    figures = list(content.figures)
    if looked:
        curve = learning_curve(
            [float(line["tokens"]) for line in looked],
            [line["validation_token_accuracy"] for line in looked],
            [line["loss"] for line in looked],
        )
        figures.append(("Learning curve", curve))
    if content.by_position:
        figures.append(("Accuracy by position", accuracy_by_position(content.by_position)))
    if content.costs:
        names, bits = [c.name for c in content.costs], [c.bits_per_byte for c in content.costs]
        figures.append(("Size of the memory beside the text", memory_cost(names, bits)))
    return figures


def write_reading(path: str | Path, question: str, answer: str, reading: str, parts: Sequence[PartRead]) -> None:
    """Write a page that shows how documents were read for an answer: as tokens, as memories, or not at all.

    Args:
        path: of the file.
        question: that was asked.
        answer: that was given.
        reading: one line that says how much was read.
        parts: of all documents, in their order.
    """
    documents = [(name, list(group)) for name, group in groupby(parts, key=lambda part: part.document)]
    template = environment().get_template("reading.html")
    densest = min((part.tokens_per_memory for part in parts if part.tokens_per_memory is not None), default=1.0)
    write_file_atomic(
        Path(path),
        template.render(question=question, answer=answer, reading=reading, documents=documents, densest=densest),
    )


def write_card(path: str | Path, *, name: str, headline: str, data: str, measurements: Sequence[Measurement]) -> None:
    """Write the README.md of a model folder: front matter with results, usage, and a table of all figures."""
    front = yaml.safe_dump(_front_matter(name, data, measurements), sort_keys=False, allow_unicode=True)
    usage = 'import memlm\n\nmemory = memlm.load("FOLDER")\nmemory.regenerate(memory.encode(["any text"]))'
    card = f"---\n{front}---\n\n# {name}\n\n{headline}\n\n```python\n{usage}\n```\n\n{markdown(measurements)}"
    Path(path).write_text(card, encoding="utf-8")


def _front_matter(name: str, data: str, measurements: Sequence[Measurement]) -> dict[str, Any]:
    metrics = [
        {"type": m.name, "name": m.name, "value": round(m.value, 6)} for m in measurements if m.split == "held_out"
    ]
    task = {"type": "feature-extraction", "name": "text reconstruction from memory"}
    result = {"task": task, "dataset": {"name": data, "type": data, "split": "held_out"}, "metrics": metrics}
    return {
        "library_name": "memlm",
        "tags": ["memlm", "text-autoencoder", "memory"],
        "model-index": [{"name": name, "results": [result]}],
    }
