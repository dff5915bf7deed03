"""`memlm bench inference`: time and memory of inference with memories, compared with full context."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from memlm.cli.arguments import options_of, parse
from memlm.evaluation.efficiency import Comparison, EfficiencySettings, compare_efficiency, measurements_of
from memlm.files import write_file_atomic
from memlm.measurement import to_json_lines
from memlm.reports import figure
from memlm.training.loop.callbacks import ProgressView
from memlm.training.schema import checked


@dataclass(frozen=True)
class Bench:
    """Time one decoder on one text, read as memories and as tokens: first token, later tokens, KV cache, peak memory.

    Weights are random, since time does not depend on them.
    """

    what: Positional[Literal["inference"]]
    """The benchmark."""
    out: str = "runs/bench"
    """Folder of table, figure and measurements."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = vars(parse(options_of(EfficiencySettings, Bench), arguments, command="bench"))
    settings = checked(EfficiencySettings, {n: v for n, v in options.items() if n not in ("what", "out")})
    view = ProgressView(len(settings.lengths) * len(settings.batch_sizes), shown=True, noun="case")
    found: list[Comparison] = []
    view.start(0)
    try:
        for comparison in compare_efficiency(settings):
            found.append(comparison)
            view.update(len(found), f"{comparison.length} tokens, batch {comparison.batch_size}")
    finally:
        view.stop()
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    write_file_atomic(out / "measurements.jsonl", to_json_lines(measurements_of(found)))
    first = [c for c in found if c.batch_size == settings.batch_sizes[0]]
    shown = ("first_token", "first_token_with_encoding", "each_token")
    ratios = {name.replace("_", " "): [c.ratios[name] for c in first] for name in shown}
    picture = figure.times_over_length([c.length for c in first], ratios)
    write_file_atomic(out / "efficiency.svg", figure.standalone(picture))
    table = markdown(found)
    write_file_atomic(out / "efficiency.md", table)
    print(table, end="")


def markdown(comparisons: list[Comparison]) -> str:
    """Return a table with a row for each length and batch size: memory / full context, and their ratios."""
    head = ["tokens", "batch", "encode, s", "first token, s", "each token, ms", "KV cache, MB", "peak memory, MB"]
    better = "times better: first, first with encoding, each, KV of the context, KV in all"
    lines = ["| " + " | ".join(head) + f" | {better} |", "|" + " --- |" * 8]
    for c in comparisons:
        m, f = c.memory, c.full
        cells = [
            str(c.length),
            str(c.batch_size),
            f"{m.encode_seconds:.3f}",
            f"{m.first_seconds:.3f} / {f.first_seconds:.3f}",
            f"{1e3 * m.token_seconds:.1f} / {1e3 * f.token_seconds:.1f}",
            f"{m.kv_bytes / 1e6:.1f} / {f.kv_bytes / 1e6:.1f}",
            f"{m.rss_bytes / 1e6:.0f} / {f.rss_bytes / 1e6:.0f}",
            ", ".join(f"{value:.1f}" for value in c.ratios.values()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
