"""`memlm probe-table`: retention of encoders trained for different objectives, beside arXiv 2602.13466."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memlm.cli.arguments import parse
from memlm.errors import ConfigError

if TYPE_CHECKING:
    from memlm.reproduction.paper_table import TableLine, TableSettings

QUICK = {"steps": 200, "passages": 2048, "held_out_passages": 512, "seeds": 1}


@dataclass(frozen=True)
class ProbeTable:
    """Measure the retention of autoencoder, causal, retrieval and untrained encoders, as in arXiv 2602.13466.

    Trains ten encoders of one width (mixers and transformers) on the same number of tokens for each seed, and a probe
    on each. Finished rows are saved; the same command continues where it was interrupted.
    """

    out: str = "runs/probe-table"
    """Folder of encoders, probes and measurements."""
    text: str = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, Parquet or Hub id."""
    length: int = 16
    """Tokens per passage."""
    width: int = 128
    """Width of every encoder, and the number of components of its vector."""
    steps: int = 1000
    """Updates of each training, of 32 passages each."""
    passages: int = 16384
    """Training passages of each probe."""
    seeds: int = 3
    """Encoders and probes of each row."""
    workers: int = 0
    """Rows at the same time; 0 for one on each core."""
    quick: bool = False
    """One seed and short trainings, in a few minutes."""
    json: bool = False
    """Print measurements as JSON lines on stdout, and nothing else there."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = parse(ProbeTable, arguments, command="probe-table")
    settings = _settings(options)
    from memlm.measurement import append_journal, to_json_lines
    from memlm.reproduction.paper_table import measure_table

    out = Path(options.out)
    lines = measure_table(settings, out, say=_say, workers=_workers(options.workers), progress=True)
    measurements = [m for line in lines for m in line.measurements]
    append_journal(out / "measurements.jsonl", measurements)
    if options.json:
        print(to_json_lines(measurements), end="")
    else:
        print(markdown(lines), end="")


def _workers(given: int) -> int:
    """Return the number of workers: one for each core by default, and one where a GPU is used."""
    import torch

    if given < 0:
        raise ConfigError(f"--workers ({given}) must be at least 1, or 0 for one on each core.")
    if given:
        return given
    return 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _settings(options: ProbeTable) -> TableSettings:
    from memlm.reproduction.paper_table import TableSettings
    from memlm.training.config import checked

    values = {
        "text": options.text,
        "length": options.length,
        "hidden_size": options.width,
        "steps": options.steps,
        "passages": options.passages,
        "seeds": options.seeds,
    }
    return checked(TableSettings, values | QUICK if options.quick else values)


def markdown(lines: list[TableLine]) -> str:
    """Return a table of the measured figures beside those of arXiv 2602.13466."""
    from memlm.reports.tables import with_interval
    from memlm.reproduction.paper_rows import paper_figures

    heads = ("encoder", "cross-entropy, nats", "retention (`paper`)", "token accuracy", "paper: CE", "I_e", "accuracy")
    rows = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for line in lines:
        nats, kept = line.figure("cross_entropy"), line.figure("retention/paper")
        accuracy = line.figure("token_accuracy")
        ours = (f"{nats.value:.3f}", with_interval(kept), with_interval(accuracy))
        rows.append("| " + " | ".join((line.row.name, *ours, *paper_figures(line.row))) + " |")
    floor = lines[0].figure("token_accuracy/unigram")
    return "\n".join([*rows, f"| (commonest token) | | | {with_interval(floor)} | | | |"]) + "\n"
