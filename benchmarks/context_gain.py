"""Share of the full-context gain that a decoder gets from memories, beside what a sceptic would read instead.

OMP_NUM_THREADS=1 python -m benchmarks.context_gain --decoder PATH_OR_HUB_ID
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

import tyro
from rich.progress import Progress

from benchmarks.source import Source
from memlm.evaluation.memory.context_gain import ContextGainSettings, context_gain
from memlm.evaluation.memory.kept_losses import KeptLosses
from memlm.measurement import Measurement, append_journal
from memlm.models.slots import EncodingSettings


@dataclass(frozen=True)
class Options(Source):
    """A decoder, text and sizes."""

    others: tuple[str, ...] = ()
    """Folders of runs of the same decoder with other seeds, measured on the same rows; their mean is printed, too."""
    gguf_file: str | None = None
    """Name of the GGUF file in the folder."""
    measure: ContextGainSettings = field(default_factory=ContextGainSettings)
    """Rows, contexts and ratios."""
    encoding: EncodingSettings = field(default_factory=EncodingSettings)
    """How texts are encoded."""
    even: bool = False
    """Give all heads equally many slots, whatever was measured of them."""
    modes: tuple[str, ...] = ("joint", "chunks")
    """Ways of encoding."""
    kept: str | None = None
    """File that keeps each batch's losses; a run that was stopped goes on from it, and other processes may fill it."""
    json: str | None = None
    """File that the measurements are appended to, as JSON lines."""


def table(found: list[Measurement], options: Options) -> str:
    """Return shares in percent as a Markdown table, with intervals where there are some."""
    by_name = {m.name: m for m in found}
    ratios = options.measure.ratios
    lines = ["| | " + " | ".join(map(str, ratios)) + " |", "|---" * (len(ratios) + 1) + "|"]
    shares = [m.name.split("/")[1] for m in found if m.name.startswith("context_gain/")]
    for name in dict.fromkeys(shares):
        cells = [_cell(by_name[f"context_gain/{name}/{ratio}"], 100) for ratio in ratios]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "Saved, nats per token:", "", *lines[:2]]
    saved = [re.fullmatch(r"saved/(.*)/\d+ over (.*)", m.name) for m in found]
    for name, other in dict.fromkeys(match.groups() for match in saved if match):
        cells = [_cell(by_name[f"saved/{name}/{ratio} over {other}"], 1, ".3f") for ratio in ratios]
        lines.append(f"| {name} over {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(m: Measurement, scale: float, form: str = ".1f") -> str:
    value = f"{scale * m.value:{form}}"
    return value if m.low is None or m.high is None else f"{value} [{scale * m.low:{form}}, {scale * m.high:{form}}]"


def main(options: Options) -> None:
    """Measure and print."""
    more: dict[str, Any] = {} if options.gguf_file is None else {"gguf_file": options.gguf_file}
    # a folder of trained adapters has settings of its own
    settings = None if options.encoding == EncodingSettings() else options.encoding
    model = options.load(settings=settings, **more)
    others = [options.load(run, settings=settings) for run in options.others]
    for one in [model, *others] if options.even else []:
        one.settings = replace(one.settings, heads=None)
    began = time.perf_counter()
    with Progress(transient=True) as progress:
        task = progress.add_task("reading rows", total=options.measure.rows)
        found = context_gain(
            model,
            options.documents(),
            options.measure,
            split=options.split,
            modes=options.modes,
            others=others,
            kept=KeptLosses(options.kept),
            on_batch=lambda rows: progress.update(task, completed=rows),
        )
    by_name = {m.name: m.value for m in found}
    print(
        f"{found[0].protocol}; {options.measure.rows} rows, {found[0].interval_note}, {options.split} of {options.text}"
    )
    print(f"alone {by_name['loss/alone']:.4f}, full context {by_name['loss/full']:.4f} nats per token")
    print(table(found, options))
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)
    if options.json is not None:
        append_journal(options.json, found)


if __name__ == "__main__":
    main(tyro.cli(Options))
