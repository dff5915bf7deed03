"""Everything that is measured of an autoencoder, with intervals, and what a report shows beside the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import Document, PackedRows, decode_ids, load_documents, pack, random_rows, token_byte_lengths
from memlm.evaluation.memory.measured import evaluate_memory_run
from memlm.evaluation.reconstruction import ReconstructionScores, blank_memory_nats, encode_rows, reconstruct
from memlm.evaluation.result import (
    Evaluation,
    Report,
    check_text_unchanged,
    chunkwise_costs,
    compressor_costs,
    memory_costs,
    passages_of,
    per_document,
)
from memlm.measurement import (
    Cost,
    DocumentTally,
    Measurement,
    constant_nats,
    measure_bits,
    measure_ratio,
    measure_retention,
    paper_nats,
    uniform_nats,
    unigram_log_probabilities,
    unigram_nats,
)
from memlm.models import TextAutoencoder
from memlm.session import TextMemory
from memlm.store import Bits
from memlm.training import RunFolder, prepare_data

_RANDOM_ROWS = 512
_SAMPLED_ROWS = 1024
_CHUNKS_COMPRESSED = 2000


@dataclass(frozen=True)
class EvalContext:
    """The model, tokenizer and token counts that figures of one run are measured with."""

    model: TextAutoencoder
    tokenizer: PreTrainedTokenizerBase
    unigram_counts: Int[Tensor, " vocabulary"]


def evaluate_run(
    path: str, *, text: str | None = None, report: Report | None = None, probe: bool = True, rows: int | None = None
) -> Evaluation:
    """Everything about a trained run: held-out, training, foreign and random text.

    Args:
        path: a finished run folder.
        text: another source to measure instead of the run's held-out half (its name becomes the split).
        report: told what is being measured.
        probe: of a memory run, whether a probe reads its memories too, which takes most of the time.
        rows: of a memory run, so many rows of the text, drawn at random; all by default.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
        DataError: the text cannot be read, or the run's text has changed since.
    """
    folder = RunFolder.open(path)
    folder.require_model()
    if not folder.config().is_autoencoder:
        return evaluate_memory_run(folder, text=text, say=report or (lambda _: None), probe=probe, rows=rows)
    memory = TextMemory.from_pretrained(path)
    record = folder.data()
    measure = EvalContext(memory.model, memory.tokenizer, torch.tensor(record["unigram_counts"]))
    say = report or (lambda _: None)
    if text is not None:
        documents = load_documents(text)
        # the name, not the path: measurements may be published
        return _measure_documents(measure, documents, split=Path(text).name, say=say)
    return _measure_run(folder, record, measure, say)


def _measure_documents(measure: EvalContext, documents: Sequence[Document], *, split: str, say: Report) -> Evaluation:
    say(f"measuring {len(documents)} documents of {split}")
    rows = pack(documents, measure.tokenizer, row_length=measure.model.config.chunk_length, across_documents=False)
    memories = encode_rows(measure.model, rows)
    scores = reconstruct(measure.model, rows, memories=memories)
    found = measure_rows(measure, rows, scores, split=split) + _rounded(measure, rows, memories, split)
    return Evaluation(
        found,
        scores.accuracy_by_position(),
        passages_of(partial(decode_ids, measure.tokenizer), rows, scores.predictions),
        _costs(measure, rows, documents),
    )


def _measure_run(folder: RunFolder, record: dict[str, Any], measure: EvalContext, say: Report) -> Evaluation:
    config = folder.config()
    length = config.model.chunk_length
    say("reading the text")
    data = prepare_data(config.data, chunk_length=length, seed=config.training.seed, tokenizer=measure.tokenizer)
    check_text_unchanged(record, data.record, config.data.text)
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


def _foreign_rows(measure: EvalContext) -> PackedRows:
    """Python's own reference topics: technical English that ships with the interpreter."""
    from pydoc_data.topics import topics

    documents = [Document(name, text) for name, text in sorted(topics.items()) if text.strip()]
    rows = pack(documents, measure.tokenizer, row_length=measure.model.config.chunk_length, across_documents=False)
    return rows.sample(_SAMPLED_ROWS, seed=0)


def measure_rows(
    measure: EvalContext, rows: PackedRows, scores: ReconstructionScores, *, split: str
) -> list[Measurement]:
    """Accuracy, exact match, cross-entropy, bits and retention against all four baselines, each with its interval."""
    tokens = int(scores.tokens.count)
    floor = per_document(rows, unigram_nats(unigram_log_probabilities(measure.unigram_counts), rows.input_ids))
    sizes = token_byte_lengths(measure.tokenizer)[rows.input_ids].double()
    numbers = torch.full_like(sizes, measure.model.config.memory_size / rows.input_ids.shape[1])
    found = [
        measure_ratio("token_accuracy", "fraction", scores.tokens, split),
        measure_ratio("exact_match", "fraction", scores.chunks, split),
        measure_ratio("cross_entropy", "nats/token", scores.nats, split),
        measure_bits("bits_per_byte", "bits/byte", scores.nats, per_document(rows, sizes), tokens, split),
        measure_bits(
            "bits_per_dim", "bits/number", floor.minus(scores.nats), _whole_chunks(rows, numbers), tokens, split
        ),
    ]
    vocabulary = measure.model.config.vocab_size
    baselines = {
        "uniform": constant_nats(scores.nats, uniform_nats(vocabulary)),
        "paper": constant_nats(scores.nats, paper_nats(vocabulary)),
        "unigram": floor,
        "blank_memory": blank_memory_nats(measure.model, rows),
    }
    return found + [measure_retention(name, scores.nats, tally, tokens, split) for name, tally in baselines.items()]


def _whole_chunks(rows: PackedRows, values: Tensor) -> DocumentTally:
    """Values summed by document, padding included: a short chunk's memory costs as much as a full one's."""
    tally = DocumentTally(len(rows.document_ids))
    tally.add(rows.document_index, values.sum(1), torch.ones(len(rows)))
    return tally


def _rounded(measure: EvalContext, rows: PackedRows, memories: Tensor, split: str) -> list[Measurement]:
    """Token accuracy from memories kept in fewer bits."""
    found: list[Measurement] = []
    widths: tuple[tuple[str, Bits], ...] = (("int8", 8), ("int4", 4))
    for name, bits in widths:
        scores = reconstruct(measure.model, rows, memories=memories, bits=bits)
        found.append(measure_ratio(f"token_accuracy/{name}", "fraction", scores.tokens, split))
    return found


def _costs(measure: EvalContext, rows: PackedRows, documents: Sequence[Document]) -> list[Cost]:
    config = measure.model.config
    texts = [d.text for d in documents]
    size = sum(len(text.encode()) for text in texts)
    chunks = [
        decode_ids(measure.tokenizer, ids[mask.bool()].tolist())
        for ids, mask in zip(rows.input_ids[:_CHUNKS_COMPRESSED], rows.attention_mask[:_CHUNKS_COMPRESSED], strict=True)
    ]
    memories = memory_costs(
        chunks=len(rows), memories_per_chunk=config.memories_per_chunk, numbers=config.bottleneck_size, text_bytes=size
    )
    return [*memories, *compressor_costs(text.encode() for text in texts), *chunkwise_costs(chunks)]
