"""The experiments that the claims rest on, each at every seed. Finished ones are saved and not run again.

A seed draws weights, order of rows and the split alike; held-out documents differ from seed to seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from memlm.evaluation import evaluate_run, probe_autoencoder, time_writer
from memlm.evaluation.probe.folders import claim_folder
from memlm.files import write_file_atomic
from memlm.measurement import Measurement, to_json_lines
from memlm.recipes import get_recipe
from memlm.reproduction.scheduler import run_side_by_side
from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig, merge_run, with_steps
from memlm.training.loop.callbacks import ProgressView
from memlm.training.schema import Settings

Say = Callable[[str], None]
_NINETY_FIVE = 1.96
"""Standard errors in half a 95 % interval."""
_FEWEST_STEPS = 8
_HALF = 0.5
"""Share of a recipe's steps that is enough to see what its memories come to hold (LOG.md)."""


class ClaimSettings(Settings):
    """Settings that all trainings share."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    text_field: str = "text"
    """Field of a record that holds the text; a dotted name reaches into records within it."""
    strict: bool = False
    """Stop at the first item of the text that cannot be read, instead of leaving it out and counting it."""
    max_documents: Annotated[int, Field(ge=3)] | None = None
    """Read so many documents at most."""
    share: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Share of each recipe's steps."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Runs of each training."""
    decoder: Annotated[str, Field(min_length=1)] | None = None
    """Folder or Hub id of a pretrained decoder; without it, what the paper says of such decoders is not tested."""


@dataclass(frozen=True)
class Experiment:
    """One training: a recipe, and whose encoder is frozen into it."""

    recipe: str
    encoder: str | None = None
    probed: bool = False
    """Train a probe on its memories, since a claim rests on it."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings in which its model differs from the recipe's."""
    share: float = 1.0
    """Share of the recipe's steps."""
    pretrained: bool = False
    """Teach the pretrained decoder of the settings; left out where there is none."""


EXPERIMENTS: dict[str, Experiment] = {
    "autoencoder": Experiment("autoencoder-chunk-tiny", probed=True),
    "next_token": Experiment("memory-next-tiny", probed=True),
    "mixture": Experiment("memory-tiny", probed=True),
    "curriculum": Experiment("memory-curriculum-tiny", encoder="autoencoder", probed=True),
    "curriculum_causal": Experiment("memory-curriculum-tiny", encoder="next_token"),
    "none": Experiment("memory-none-tiny"),
    "recurrent": Experiment("memory-recurrent-tiny"),
    "full_context": Experiment("memory-full-context-tiny"),
    "last_token_autoencoder": Experiment("autoencoder-chunk-tiny", probed=True, model={"bottleneck": "last_token"}),
    "last_token_next": Experiment(
        "memory-next-tiny", probed=True, model={"encoder": {"bottleneck": "last_token"}}, share=_HALF
    ),
    "last_token_mixture": Experiment("memory-last-token-tiny", probed=True, share=_HALF),
    "pretrained": Experiment("memory-pretrained", pretrained=True),
}
"""In an order in which every encoder is trained before it is used; `last_token` is the paper's bottleneck."""


def experiments_of(settings: ClaimSettings) -> list[str]:
    """Return the names of the experiments that are made with these settings."""
    return [name for name, found in EXPERIMENTS.items() if settings.decoder is not None or not found.pretrained]


@dataclass(frozen=True)
class Figure:
    """A mean over seeds with its 95 % interval: between seeds, and over documents within each."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...] = ()
    """Figures of each seed by itself; the difference of two trainings at one seed varies far less than either."""


Figures = Mapping[tuple[str, str], Figure]
"""By experiment and measurement."""

Job = tuple[str, int]
"""An experiment at one seed."""


def measure_experiments(
    settings: ClaimSettings, out: Path, *, say: Say, workers: int = 1, progress: bool = False
) -> tuple[dict[tuple[str, str], Figure], list[Measurement]]:
    """Train and evaluate what is missing below `out`; return all figures and the measurements they are made of.

    Args:
        settings: the settings of all trainings.
        out: the folder of runs and figures.
        say: called with a line about each finished training.
        workers: the number of trainings at a time, each with its share of the cores.
        progress: show on stderr how far all are, or each training where there is one worker.

    Raises:
        RunFolderError: the folder belongs to claims with other settings.
        DataError: the text cannot be read or is too short.
        Interrupted: Ctrl-C.
    """
    claim_folder(out, {"settings": settings.model_dump(mode="json")})
    seeds = range(settings.seeds)
    names = experiments_of(settings)
    jobs = [(name, seed) for seed in seeds for name in names]
    missing = [job for job in jobs if not _figures_file(job, out).is_file()]
    trained = _train_missing(missing, settings, out, workers=workers, progress=progress)
    for done, (name, seed) in enumerate(trained, start=len(jobs) - len(missing) + 1):
        say(f"{done} of {len(jobs)}: {name}, seed {seed}")
    lines = {job: _figures_file(job, out).read_text("utf-8").splitlines() for job in jobs}
    found = {job: [Measurement.from_json_line(line) for line in lines[job]] for job in jobs}
    figures: dict[tuple[str, str], Figure] = {}
    for name in names:
        first, *others = (_held_out(found[name, seed]) for seed in seeds)
        for measure in first:
            if all(measure in other for other in others):
                figures[name, measure] = combined([first[measure], *(other[measure] for other in others)])
    return figures, [
        m.model_copy(update={"name": f"{name}/seed_{seed}/{m.name}"})
        for (name, seed), records in found.items()
        for m in records
    ]


def _train_missing(
    jobs: list[Job], settings: ClaimSettings, out: Path, *, workers: int, progress: bool
) -> Iterator[Job]:
    folders = {_run_folder(*job, out): config_of(*job, settings, out).steps for job in jobs}
    view = ProgressView(sum(folders.values()), shown=progress and workers > 1)
    view.start(sum(map(_steps_done, folders)))

    def watch() -> None:
        view.update(sum(map(_steps_done, folders)), f"of {len(jobs)} trainings, {workers} side by side")

    work = partial(_train_and_measure, settings=settings, out=out, progress=progress and workers == 1)
    try:
        yield from run_side_by_side(jobs, work, needs=_needs, workers=workers, watch=watch)
    finally:
        view.stop()


def _needs(job: Job) -> Job | None:
    encoder = EXPERIMENTS[job[0]].encoder
    return None if encoder is None else (encoder, job[1])


def _steps_done(folder: Path) -> int:
    """Return the steps in the logs of a run's stages."""
    return sum(int(line["step"]) for stage in folder.glob("stages/*") for line in RunFolder(stage).log()[-1:])


def config_of(name: str, seed: int, settings: ClaimSettings, out: Path) -> RunConfig:
    """Return the training of an experiment at one seed."""
    experiment = EXPERIMENTS[name]
    changes: dict[str, Any] = {
        "training": {"seed": seed},
        "data": {name: getattr(settings, name) for name in ("text", "text_field", "strict", "max_documents")},
        "model": dict(experiment.model),
    }
    if experiment.encoder is not None:
        changes["encoder_run"] = str(_run_folder(experiment.encoder, seed, out))
    if experiment.pretrained:
        changes["decoder"] = {"path": settings.decoder}
    config = merge_run(get_recipe(experiment.recipe), changes)
    return with_steps(config, max(_FEWEST_STEPS, round(config.steps * settings.share * experiment.share)))


def _run_folder(name: str, seed: int, out: Path) -> Path:
    return out / "runs" / f"{name}-seed{seed}"


def _figures_file(job: Job, out: Path) -> Path:
    name, seed = job
    return out / "figures" / f"{name}-seed{seed}.jsonl"


def _train_and_measure(job: Job, *, settings: ClaimSettings, out: Path, progress: bool) -> None:
    name, seed = job
    folder, file = _run_folder(name, seed, out), _figures_file(job, out)
    resume = (folder / "run.json").is_file()
    train_run(config_of(name, seed, settings, out), folder, resume=resume, progress=progress)
    experiment = EXPERIMENTS[name]
    found = evaluate_run(str(folder), probe=experiment.probed).measurements
    if experiment.probed and get_recipe(experiment.recipe).is_autoencoder:
        found = [*found, *probe_autoencoder(str(folder))]
    if experiment.pretrained:
        found = [*found, *time_writer(str(folder))]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_file_atomic(file, to_json_lines(found))


class Spent(NamedTuple):
    """Training of some experiments, over all seeds: tokens that were read, and seconds by the clock."""

    tokens: int
    seconds: float


def spent_on(experiments: Sequence[str], settings: ClaimSettings, out: Path) -> Spent:
    """Sum the logs of the runs; the encoders that are frozen into them count too."""
    experiments = [name for name in experiments if name in experiments_of(settings)]
    names = {*experiments, *(encoder for name in experiments if (encoder := EXPERIMENTS[name].encoder) is not None)}
    lasts = [RunFolder(_run_folder(name, seed, out)).log()[-1] for name in names for seed in range(settings.seeds)]
    return Spent(sum(int(last["tokens"]) for last in lasts), math.fsum(last["seconds"] for last in lasts))


def _held_out(records: Sequence[Measurement]) -> dict[str, Measurement]:
    """Return the first held-out measurement of each name, with the protocol where one name has several."""
    named = [(f"{m.name}/{m.protocol}" if m.name.endswith("/copy") else m.name, m) for m in records]
    return {name: m for name, m in reversed(named) if m.split == "held_out"}


def combined(records: list[Measurement]) -> Figure:
    """Return the mean over seeds; its variance is that between seeds and of documents within each, over the seeds."""
    count = len(records)
    values = tuple(m.value for m in records)
    mean = sum(values) / count
    between = sum((m.value - mean) ** 2 for m in records) / (count - 1) if count > 1 else 0.0
    halves = [(m.high - m.low) / 2 for m in records if m.low is not None and m.high is not None]
    within = sum((half / _NINETY_FIVE) ** 2 for half in halves) / max(len(halves), 1)
    half = _NINETY_FIVE * math.sqrt((between + within) / count)
    low, high = mean - half, mean + half
    if records[0].unit == "fraction":
        low, high = max(0.0, low), min(1.0, high)
    return Figure(mean, low, high, values)
