"""Everything that is measured of an autoencoder, with intervals, and what a report shows beside the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import Document, PackedRows, decode_ids, load_documents, pack, random_rows, token_byte_lengths
from memlm.errors import DataError
from memlm.evaluation.memory_cost import Cost, chunkwise_costs, compressor_costs, memory_costs
from memlm.evaluation.reconstruction import ReconstructionScores, blank_memory_nats, encode_rows, reconstruct
from memlm.inference import Bits, load
from memlm.measurement import (
    Baseline,
    DocumentTally,
    Measurement,
    bootstrap_interval,
    paper_nats,
    retention,
    uniform_nats,
    unigram_log_probabilities,
    unigram_nats,
)
from memlm.measurement.information import NATS_PER_BIT
from memlm.models import TextAutoencoder
from memlm.training import RunFolder, prepare_data

PROTOCOL = "one_pass"
"""All positions are written at once from the memory; no token is shown, so teacher forcing does not arise."""
_RANDOM_ROWS = 512
_PRINT = "fingerprint_"
_SAMPLED_ROWS = 1024
_PASSAGES = 5
_CHUNKS_COMPRESSED = 2000
Report = Callable[[str], None]


@dataclass(frozen=True)
class Passage:
    """One chunk and what came back: (original, returned, right) piece by piece."""

    name: str
    pieces: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Evaluation:
    """Measurements, and what a report draws beside them."""

    measurements: list[Measurement]
    accuracy_by_position: list[float]
    passages: list[Passage]
    costs: list[Cost]


@dataclass(frozen=True)
class Yardstick:
    """What figures of one run are measured against."""

    model: TextAutoencoder
    tokenizer: PreTrainedTokenizerBase
    unigram_counts: Int[Tensor, " vocabulary"]


def evaluate_run(path: str, *, text: str | None = None, report: Report | None = None) -> Evaluation:
    """Everything about a trained run: held-out, training, foreign and random text.

    Args:
        path: a finished run folder.
        text: another source to measure instead of the run's held-out half (its name becomes the split).
        report: told what is being measured.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
        DataError: the text cannot be read, or the run's text has changed since.
    """
    folder = RunFolder.open(path)
    folder.require_model()
    memory = load(path)
    record = folder.data()
    measure = Yardstick(memory.model, memory.tokenizer, torch.tensor(record["unigram_counts"]))
    say = report or (lambda _: None)
    if text is not None:
        documents = load_documents(text)
        # the name, not the path: measurements may be published
        return _measure_documents(measure, documents, split=Path(text).name, say=say)
    return _measure_run(folder, record, measure, say)


def _measure_documents(measure: Yardstick, documents: Sequence[Document], *, split: str, say: Report) -> Evaluation:
    say(f"measuring {len(documents)} documents of {split}")
    rows = pack(documents, measure.tokenizer, row_length=measure.model.config.chunk_length, across_documents=False)
    memories = encode_rows(measure.model, rows)
    scores = reconstruct(measure.model, rows, memories=memories)
    found = measure_rows(measure, rows, scores, split=split) + _rounded(measure, rows, memories, split)
    return Evaluation(
        found,
        scores.accuracy_by_position(),
        _passages(measure, rows, scores),
        _costs(measure, rows, documents),
    )


def _measure_run(folder: RunFolder, record: dict[str, Any], measure: Yardstick, say: Report) -> Evaluation:
    config = folder.config()
    length = config.model.chunk_length
    say("reading the text")
    data = prepare_data(config.data, chunk_length=length, seed=config.training.seed, tokenizer=measure.tokenizer)
    changed = [half for half in ("held_out", "train") if data.record[_PRINT + half] != record[_PRINT + half]]
    if changed:
        raise DataError(f"'{config.data.text}' has changed since the run was trained; measure it by name with --text.")
    evaluation = _measure_documents(measure, data.held_out, split="held_out", say=say)
    others = {
        "train": data.train_rows.sample(_SAMPLED_ROWS, seed=0),
        "out_of_distribution": _foreign_rows(measure),
        "random_tokens": random_rows(
            _RANDOM_ROWS, length, len(measure.tokenizer), seed=0, exclude=measure.tokenizer.all_special_ids
        ),
    }
    found = list(evaluation.measurements)
    for split, rows in others.items():
        say(f"measuring {split}")
        measured = measure_rows(measure, rows, reconstruct(measure.model, rows), split=split)
        # random tokens are no text, so bytes of it mean nothing
        found += [m for m in measured if split != "random_tokens" or m.name != "bits_per_byte"]
    return Evaluation(found, evaluation.accuracy_by_position, evaluation.passages, evaluation.costs)


def _foreign_rows(measure: Yardstick) -> PackedRows:
    """Python's own reference topics: technical English that ships with the interpreter."""
    from pydoc_data.topics import topics

    documents = [Document(name, text) for name, text in sorted(topics.items()) if text.strip()]
    rows = pack(documents, measure.tokenizer, row_length=measure.model.config.chunk_length, across_documents=False)
    return rows.sample(_SAMPLED_ROWS, seed=0)


def measure_rows(
    measure: Yardstick, rows: PackedRows, scores: ReconstructionScores, *, split: str
) -> list[Measurement]:
    """Accuracy, exact match, cross-entropy, bits and retention against all four baselines, each with its interval."""
    tokens, chunks = int(scores.tokens.count), int(scores.chunks.count)
    floor = _per_document(rows, unigram_nats(unigram_log_probabilities(measure.unigram_counts), rows.input_ids))
    sizes = token_byte_lengths(measure.tokenizer)[rows.input_ids].double()
    numbers = torch.full_like(sizes, measure.model.config.memory_size / rows.input_ids.shape[1])
    found = [
        _ratio("token_accuracy", "fraction", scores.tokens, tokens, split),
        _ratio("exact_match", "fraction", scores.chunks, chunks, split),
        _ratio("cross_entropy", "nats/token", scores.nats, tokens, split),
        _scaled("bits_per_byte", "bits/byte", scores.nats.sums, _per_document(rows, sizes).sums, tokens, split),
        _scaled(
            "bits_per_dim",
            "bits/number",
            floor.sums - scores.nats.sums,
            _whole_chunks(rows, numbers),
            tokens,
            split,
        ),
    ]
    vocabulary = measure.model.config.vocab_size
    baselines = {
        "uniform": _constant(scores, uniform_nats(vocabulary)),
        "paper": _constant(scores, paper_nats(vocabulary)),
        "unigram": floor,
        "blank_memory": blank_memory_nats(measure.model, rows),
    }
    return found + [_retention(name, scores.nats, tally, tokens, split) for name, tally in baselines.items()]


def _ratio(name: str, unit: str, tally: DocumentTally, count: int, split: str) -> Measurement:
    return _scaled(name, unit, tally.sums, tally.counts, count, split, bits=False)


def _scaled(
    name: str,
    unit: str,
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    count: int,
    split: str,
    *,
    bits: bool = True,
) -> Measurement:
    """A ratio of sums over documents; nats become bits where asked."""
    top = sums / NATS_PER_BIT if bits else sums
    low, high = _interval(top, counts)
    value = float(top.sum() / counts.sum())
    return Measurement(
        name=name, value=value, unit=unit, low=low, high=high, count=count, split=split, protocol=PROTOCOL
    )


def _interval(sums: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Over documents; none where there is only one, which says nothing about others."""
    return bootstrap_interval(sums, counts) if np.count_nonzero(counts) > 1 else (None, None)


def _retention(name: str, nats: DocumentTally, baseline: DocumentTally, count: int, split: str) -> Measurement:
    """1 - CE / CE_baseline, resampled over documents with the same weights above and below."""
    value = retention(nats.ratio(), baseline.ratio())
    low, high = _interval(baseline.sums - nats.sums, baseline.sums)
    return Measurement(
        name=f"retention/{name}",
        value=value,
        unit="fraction",
        low=low,
        high=high,
        count=count,
        baseline=Baseline(name=name, value=baseline.ratio(), unit="nats/token"),
        split=split,
        protocol=PROTOCOL,
    )


def _per_document(rows: PackedRows, values: Tensor) -> DocumentTally:
    """Values of readable tokens summed by document."""
    tally = DocumentTally(len(rows.document_ids))
    readable = values * rows.attention_mask
    tally.add(rows.document_index, readable.sum(1), rows.attention_mask.sum(1))
    return tally


def _whole_chunks(rows: PackedRows, values: Tensor) -> NDArray[np.float64]:
    """Values summed by document, padding included: a short chunk's memory costs as much as a full one's."""
    tally = DocumentTally(len(rows.document_ids))
    tally.add(rows.document_index, values.sum(1), torch.ones(len(rows)))
    return tally.sums


def _constant(scores: ReconstructionScores, nats: float) -> DocumentTally:
    tally = DocumentTally(len(scores.nats.counts))
    tally.counts = scores.nats.counts
    tally.sums = scores.nats.counts * nats
    return tally


def _rounded(measure: Yardstick, rows: PackedRows, memories: Tensor, split: str) -> list[Measurement]:
    """Token accuracy from memories kept in fewer bits."""
    found: list[Measurement] = []
    widths: tuple[tuple[str, Bits], ...] = (("int8", 8), ("int4", 4))
    for name, bits in widths:
        scores = reconstruct(measure.model, rows, memories=memories, bits=bits)
        found.append(_ratio(f"token_accuracy/{name}", "fraction", scores.tokens, int(scores.tokens.count), split))
    return found


def _passages(measure: Yardstick, rows: PackedRows, scores: ReconstructionScores) -> list[Passage]:
    """Full chunks spread over the rows, chosen by place and never by score."""
    full = rows.attention_mask.all(1).nonzero().flatten()
    if not len(full):
        return []
    chosen = full[torch.linspace(0, len(full) - 1, min(_PASSAGES, len(full))).long()].unique()
    return [_passage(measure, rows, scores, int(row)) for row in chosen]


def _passage(measure: Yardstick, rows: PackedRows, scores: ReconstructionScores, row: int) -> Passage:
    original, returned = rows.input_ids[row].tolist(), scores.predictions[row].tolist()
    pieces: list[tuple[str, str, bool]] = []
    before: list[int] = []
    after: list[int] = []
    for a, b in zip(original, returned, strict=True):
        before.append(a)
        after.append(b)
        texts = decode_ids(measure.tokenizer, before), decode_ids(measure.tokenizer, after)
        if "\ufffd" in texts[0]:
            continue  # half a character: wait for the rest of it
        pieces.append((*texts, before == after))
        before, after = [], []
    if before:
        pieces.append((decode_ids(measure.tokenizer, before), decode_ids(measure.tokenizer, after), before == after))
    return Passage(rows.document_ids[int(rows.document_index[row])], pieces)


def _costs(measure: Yardstick, rows: PackedRows, documents: Sequence[Document]) -> list[Cost]:
    config = measure.model.config
    texts = [d.text for d in documents]
    size = sum(len(text.encode()) for text in texts)
    chunks = [
        decode_ids(measure.tokenizer, ids[mask.bool()].tolist())
        for ids, mask in zip(rows.input_ids[:_CHUNKS_COMPRESSED], rows.attention_mask[:_CHUNKS_COMPRESSED], strict=True)
    ]
    memories = memory_costs(
        chunks=len(rows),
        memories_per_chunk=config.memories_per_chunk,
        numbers=config.bottleneck_size,
        text_bytes=size,
    )
    return [*memories, *compressor_costs(texts), *chunkwise_costs(chunks)]
