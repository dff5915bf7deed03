"""`memlm probe-table`: retention of encoders trained for different objectives, beside arXiv 2602.13466."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch

from memlm.cli.arguments import options_of, parse
from memlm.errors import Within
from memlm.measurement import append_journal, to_json_lines
from memlm.reports.tables import with_interval
from memlm.reproduction.paper_rows import TableSettings
from memlm.reproduction.paper_table import TableLine, measure_table
from memlm.training.schema import checked

QUICK = {"steps": 200, "passages": 2048, "held_out_passages": 512, "seeds": 1}


@dataclass(frozen=True)
class ProbeTable:
    """Measure the retention of autoencoder, causal, retrieval and untrained encoders, as in arXiv 2602.13466.

    Trains ten encoders of one width (mixers and transformers) on the same number of tokens for each seed, and a probe
    on each. Finished rows are saved; the same command continues where it was interrupted.
    """

    out: str = "runs/probe-table"
    """Folder of encoders, probes and measurements."""
    workers: Annotated[int, Within(0, 1024)] = 0
    """Rows at the same time; 0 for one on each core."""
    quick: bool = False
    """One seed and short trainings, in a few minutes."""
    json: bool = False
    """Print measurements as JSON lines on stdout, and nothing else there."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = vars(parse(options_of(TableSettings, ProbeTable, leave_out=("probe",)), arguments, command="probe-table"))
    out, workers = Path(options["out"]), _workers(options["workers"])
    say = partial(print, file=sys.stderr, flush=True)
    lines = measure_table(_settings(options), out, say=say, workers=workers, progress=True)
    measurements = [m for line in lines for m in line.measurements]
    append_journal(out / "measurements.jsonl", measurements)
    print(to_json_lines(measurements) if options["json"] else markdown(lines), end="")


def _workers(given: int) -> int:
    """Return the number of workers: one for each core by default, and one where a GPU is used."""
    if given:
        return given
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _settings(options: dict[str, Any]) -> TableSettings:
    values = {name: value for name, value in options.items() if name in TableSettings.model_fields}
    return checked(TableSettings, values | QUICK if options["quick"] else values)


def markdown(lines: list[TableLine]) -> str:
    """Return a table of the measured figures beside those of arXiv 2602.13466."""
    heads = ("encoder", "cross-entropy, nats", "retention (`paper`)", "token accuracy", "paper: CE", "I_e", "accuracy")
    rows = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for line in lines:
        nats, kept, accuracy = map(line.figure, ("cross_entropy", "retention/paper", "token_accuracy"))
        paper = ("", "", "")
        if line.row.paper is not None:
            paper = (f"{line.row.paper[0]:.3f}", *(f"{100 * share:.1f} %" for share in line.row.paper[1:]))
        ours = (f"{nats.value:.3f}", with_interval(kept), with_interval(accuracy))
        rows.append("| " + " | ".join((line.row.name, *ours, *paper)) + " |")
    floor = lines[0].figure("token_accuracy/unigram")
    return "\n".join([*rows, f"| (commonest token) | | | {with_interval(floor)} | | | |"]) + "\n"
