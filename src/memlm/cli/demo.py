"""`memlm demo`: from nothing to a memory that gives its text back, with everything measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memlm.cli.arguments import parse

if TYPE_CHECKING:
    from memlm.evaluation import Evaluation
    from memlm.training import RunFolder


@dataclass(frozen=True)
class Demo:
    """Train a text autoencoder on the bundled State of the Union speeches and show what its memories keep.

    Ends with a table of held-out figures, five passages next to what came back, what the memory costs, and
    report.html in the run folder, which opens offline.
    """

    out: str = "runs/demo"
    """Run folder."""
    quick: bool = False
    """A smaller model, in under a minute."""
    resume: bool = False
    """Go on with a demo that was stopped."""
    overwrite: bool = False
    """Replace an older run in --out."""
    json: bool = False
    """Print measurements as JSON lines on stdout, and nothing else there."""


def run(arguments: list[str]) -> None:
    """Parse, train, measure, show."""
    options = parse(Demo, arguments, command="demo")
    from memlm.cli.evaluate import measured
    from memlm.cli.report import write_report
    from memlm.measurement import to_json_lines
    from memlm.recipes import get_recipe
    from memlm.training import train_run

    config = get_recipe("autoencoder-quick" if options.quick else "autoencoder-tiny")
    folder = train_run(config, options.out, resume=options.resume, overwrite=options.overwrite)
    evaluation = measured(options.out, quiet=options.json)
    path = write_report(folder, evaluation)
    if options.json:
        print(to_json_lines(evaluation.measurements), end="")
    else:
        _show(folder, evaluation)
    print(f"report: {path}", file=sys.stderr)


def _show(folder: RunFolder, evaluation: Evaluation) -> None:
    from rich.console import Console

    from memlm.cli.report import headline_of
    from memlm.reports import tables

    console = Console()
    console.print(tables.passages(evaluation.passages))
    console.print(tables.terminal(evaluation.measurements))
    console.print("[bold]bits per byte of held-out text[/bold]")
    for cost in evaluation.costs:
        console.print(f"  {cost.name:26} {cost.bits_per_byte:6.2f}", highlight=False)
    console.print()
    console.print(headline_of(folder, evaluation), style="bold", highlight=False)
