"""The table of arXiv 2602.13466 at a small size: retention of encoders trained for different objectives.

All rows have the same width, layers, training tokens, passages and probe. Finished rows are saved one by one, so that a
table that was interrupted continues. Rows of different backbones and seeds run side by side; those of one backbone and
seed run in order, since training for retrieval starts from an earlier row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memlm.data import PackedRows, load_documents, pack, split_documents, train_tokenizer
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset, dataset_of_documents
from memlm.evaluation.probe.folders import claim_folder
from memlm.evaluation.probe.metrics import capacity_measurements
from memlm.evaluation.probe.training import train_probe
from memlm.evaluation.reconstruction import ReconstructionScores, score_decoder
from memlm.files import read_json, write_file_atomic
from memlm.measurement import DocumentTally, Measurement
from memlm.reproduction.paper_rows import ROWS, TableRow, TableSettings, encode_passages, train_encoder
from memlm.reproduction.scheduler import run_side_by_side

Say = Callable[[str], None]


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
    dataset = _prepared(settings.model_dump_json())[1]
    jobs, began = _jobs(settings.seeds), time.monotonic()
    work = partial(_measure, settings=settings, out=out, progress=progress and workers == 1)
    for done, (row, seed) in enumerate(run_side_by_side(jobs, work, needs=_needs, workers=workers), start=1):
        left = (time.monotonic() - began) / done * (len(jobs) - done) / 60
        say(f"{done} of {len(jobs)}: {row.name}, seed {seed}  (about {left:.0f} min left)")
    lines: list[TableLine] = []
    for row in ROWS:
        runs = [_read(read_json(_scores_file((row, seed), out)), dataset) for seed in range(settings.seeds)]
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
    position = chain.index(row)
    return (chain[position - 1], seed) if position else None


@lru_cache(maxsize=1)
def _prepared(settings_json: str) -> tuple[PackedRows, ProbeDataset]:
    """Return training rows and the probes' passages, which each process reads once."""
    settings = TableSettings.model_validate_json(settings_json)
    documents = load_documents(settings.text, text_field=settings.text_field, strict=settings.strict)
    split = split_documents(documents, held_out=settings.held_out, validation=settings.held_out, seed=0)
    tokenizer = train_tokenizer((d.text for d in split.train), vocab_size=settings.vocab_size)
    limits: dict[str, int] = dict(zip(PARTS, (settings.passages, 512, settings.held_out_passages), strict=True))
    dataset = dataset_of_documents(split, tokenizer, length=settings.length, limits=limits, seed=0)
    return pack(split.train, tokenizer, row_length=settings.length, across_documents=True), dataset


def _scores_file(job: Job, out: Path) -> Path:
    row, seed = job
    return out / "probes" / row.folder_name(seed) / "scores.json"


def _measure(job: Job, *, settings: TableSettings, out: Path, progress: bool) -> None:
    """Train and probe one row at one seed, unless its scores are saved already."""
    row, seed = job
    file = _scores_file(job, out)
    if file.is_file():
        return
    rows, dataset = _prepared(settings.model_dump_json())
    encoder = train_encoder(row, rows, dataset.tokenizer, settings, out / "encoders", seed=seed, progress=progress)
    vectors = {part: encode_passages(encoder, dataset.rows[part]) for part in PARTS}
    probe = train_probe(dataset.probe_data(vectors), settings.probe, file.parent, seed=seed, progress=progress)
    scores = score_decoder(probe, dataset.classes("held_out"), vectors["held_out"])
    write_file_atomic(file, json.dumps(_written(scores)) + "\n")


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
    passages = dataset.passages["held_out"]
    rows = DocumentTally(len(passages.document_ids))
    rows.document_index = passages.document_index.numpy()
    tokens, chunks, nats = (
        rows.with_rows(np.array(record[name]["sums"]), np.array(record[name]["counts"])) for name in _TALLIES
    )
    at = [torch.tensor(record[name]) for name in ("num_correct_at", "num_targets_at", "predictions")]
    return ReconstructionScores(tokens, chunks, nats, *at)
