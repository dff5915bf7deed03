"""`memlm evaluate`: figures of a trained run."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

from memlm.cli.arguments import MOST, TextOptions, parse
from memlm.errors import ConfigError, Within

if TYPE_CHECKING:
    from memlm.evaluation import Evaluation


@dataclass(frozen=True)
class Evaluate(TextOptions):
    """Measure a trained run on its held-out text (and training, foreign and random text), or on yours."""

    directory: Positional[str]
    """Folder of a trained run."""
    text: str | None = None
    """Measure this text instead: file, folder, glob, JSONL, JSON, CSV, Parquet, Hub id."""
    probe: bool = True
    """Train a probe on the memories of a memory run too, which takes most of the time."""
    rows: Annotated[int | None, Within(1, MOST)] = None
    """Read only so many rows of the text of a memory run, drawn at random (a large decoder is slow)."""
    json: bool = False
    """Print measurements as JSON lines on stdout, and nothing else there."""


def run(arguments: list[str]) -> None:
    """Parse, measure, write the journal, print."""
    options = parse(Evaluate, arguments, command="evaluate")
    if options.text is None and (options.text_field is not None or options.strict):
        raise ConfigError("--text-field and --strict are for --text; a run's own text is read as in its training.")
    evaluation = measured(
        options.directory,
        text=options.text,
        text_field=options.text_field,
        strict=options.strict,
        quiet=options.json,
        probe=options.probe,
        rows=options.rows,
    )
    from memlm.measurement import to_json_lines

    if options.json:
        print(to_json_lines(evaluation.measurements), end="")
    else:
        from rich.console import Console

        from memlm.reports import tables

        Console().print(tables.terminal(evaluation.measurements))


def measured(
    directory: str,
    *,
    text: str | None = None,
    text_field: str | None = None,
    strict: bool = False,
    quiet: bool = False,
    probe: bool = True,
    rows: int | None = None,
) -> Evaluation:
    """An evaluation, its measurements added to the run's journal."""
    from rich.console import Console

    from memlm.evaluation import evaluate_run
    from memlm.measurement import append_journal
    from memlm.training import RunFolder

    folder = RunFolder.open(directory)
    console = Console(stderr=True)
    with console.status("measuring ...") as status:
        evaluation = evaluate_run(
            directory,
            text=text,
            text_field=text_field,
            strict=strict,
            report=lambda what: status.update(f"{what} ..."),
            probe=probe,
            rows=rows,
        )
    append_journal(folder.measurements_path, evaluation.measurements)
    if not quiet:
        print(f"measurements added to {folder.measurements_path}", file=sys.stderr)
    return evaluation
