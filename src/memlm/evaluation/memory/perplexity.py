"""Next-token prediction of memory models: with memories, without, with those of another document, with oracles."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from memlm.chunking import split as split_chunks
from memlm.data import PackedRows
from memlm.evaluation.reconstruction import count_correct
from memlm.measurement import (
    TEACHER_FORCED,
    DocumentTally,
    Measurement,
    measure_bits,
    measure_ratio,
    sum_tallies,
    target_mask,
)
from memlm.models import ChunkReader, MemoryModelForCausalLM
from memlm.models.memory.adapter import base_weights_into
from memlm.objectives import Task, next_token, token_nats
from memlm.store.quantize import rounded

CONTEXTS = ("memory", "no_memory", "other_memory")
"""Substitutes for the earlier chunks of a document: its memories, nothing, or the memories of another document."""
_BITS = {"fp16": 16, "int8": 8, "int4": 4}
"""Bits of each number by kind of rounding."""


def rows_of_others(rows: PackedRows) -> Int[Tensor, " rows"]:
    """Return the number of a full row of another document for each row.

    Rows are paired at a distance, since neighbours may come from similar documents. Where all rows belong to one
    document, its other rows are used.
    """
    full = rows.attention_mask.bool().all(1).nonzero()[:, 0]
    full = full if len(full) else torch.arange(len(rows))
    owners = rows.document_index[full]
    found = torch.empty(len(rows), dtype=torch.long)
    for row in range(len(rows)):
        turned = torch.arange(len(full)).roll(-(row + len(full) // 2))
        others = turned[owners[turned] != rows.document_index[row]]
        found[row] = full[others[0] if len(others) else turned[0]]
    return found


_ROWS = 64
TaskFn = Callable[[PackedRows, Int[Tensor, " chosen"]], Task]
"""Function from rows and their numbers to inputs and labels."""


@dataclass(frozen=True)
class ReadingScores:
    """Sums over documents.

    Attributes:
        nats: summed cross-entropy over targets, for each chunk index.
        sizes: bytes of the targets, for each chunk index.
        tokens: correct tokens over targets of all chunks.
        rows: rows with every target correct over rows with targets.
        predictions: (rows, tokens), the likeliest token at each position.
    """

    nats: list[DocumentTally]
    sizes: list[DocumentTally]
    tokens: DocumentTally
    rows: DocumentTally
    predictions: Int[Tensor, "rows tokens"]


def _logits(
    model: ChunkReader, input_ids: Tensor, attention_mask: Tensor, context: str, others: PackedRows
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Return the logits on the CPU; `others` are the rows whose memories are read with "other_memory"."""
    options: dict[str, Any] = {"use_memory": False} if context == "no_memory" else {}
    if context == "other_memory":
        options["memories"] = model.encode(others.input_ids.to(model.device), others.attention_mask.to(model.device))
    return model(input_ids.to(model.device), attention_mask.to(model.device), **options).logits.cpu()


@torch.inference_mode()
def read_rows(
    model: ChunkReader,
    rows: PackedRows,
    task_of: TaskFn,
    *,
    context: str = "memory",
    token_bytes: Int[Tensor, " vocabulary"] | None = None,
) -> ReadingScores:
    """Score one pass over rows of documents.

    Args:
        model: the memory model in its own precision; it is put into evaluation mode.
        rows: documents of at most the model's length.
        task_of: makes inputs and labels from rows and their numbers.
        context: one of CONTEXTS.
        token_bytes: (vocabulary,), the bytes of each token; 1 for each where None.
    """
    model.eval()
    documents, length = len(rows.document_ids), model.config.chunk_length
    chunks = -(-rows.input_ids.shape[1] // length)
    nats = [DocumentTally(documents) for _ in range(chunks)]
    sizes = [DocumentTally(documents) for _ in range(chunks)]
    tokens, exact = DocumentTally(documents), DocumentTally(documents)
    predictions: list[Tensor] = []
    others = rows_of_others(rows)
    for numbers in torch.arange(len(rows)).split(_ROWS):
        batch = rows.select(numbers)
        task, mask = task_of(batch, numbers), batch.attention_mask
        mask = mask if task.input_ids is batch.input_ids else torch.ones_like(mask)
        logits = _logits(model, task.input_ids, mask, context, rows.select(others[numbers]))
        predicted, lost = logits.argmax(-1), token_nats(logits, task.labels)
        targets = target_mask(task.labels)
        weights = targets.double() if token_bytes is None else targets * token_bytes[task.labels.clamp(min=0)].double()
        for i in range(chunks):
            part = slice(i * length, (i + 1) * length)
            count = targets[:, part].sum(1)
            nats[i].add(batch.document_index, lost[:, part].double().sum(1), count)
            sizes[i].add(batch.document_index, weights[:, part].sum(1), count)
        count_correct(tokens, exact, batch, predicted, task.labels)
        predictions.append(predicted)
    return ReadingScores(nats, sizes, tokens, exact, torch.cat(predictions))


def perplexity_measurements(
    model: ChunkReader, rows: PackedRows, token_bytes: Int[Tensor, " vocabulary"], *, split: str
) -> list[Measurement]:
    """Measure bits per byte with each context, in all and by chunk, and next-token accuracy; all teacher-forced.

    Args:
        model: the memory model.
        rows: documents of at most the model's length.
        token_bytes: (vocabulary,), the bytes of each token.
        split: the name of the text.
    """
    found: list[Measurement] = []
    base: ReadingScores | None = None
    for context in CONTEXTS:
        scores = read_rows(model, rows, _next_token, context=context, token_bytes=token_bytes)
        base = scores if base is None else base
        suffix = "" if context == "memory" else f"/{context}"
        found.append(_bits("bits_per_byte" + suffix, scores.nats, scores.sizes, split))
        for i, (nats, size) in enumerate(zip(scores.nats, scores.sizes, strict=True)):
            if nats.count:
                found.append(_bits(f"bits_per_byte{suffix}/chunk_{i + 1}", [nats], [size], split))
        if context == "memory":
            shares, nats = ("token_accuracy/next_token", "fraction"), ("cross_entropy/next_token", "nats/token")
            found.append(measure_ratio(*shares, scores.tokens, split, protocol=TEACHER_FORCED))
            found.append(measure_ratio(*nats, sum_tallies(scores.nats), split, protocol=TEACHER_FORCED))
        elif len(scores.nats) > 1:
            found.append(_bits_saved(context, base, scores, split))
    return found


@torch.inference_mode()
def original_measurements(
    model: MemoryModelForCausalLM,
    original: PreTrainedModel,
    rows: PackedRows,
    token_bytes: Int[Tensor, " vocabulary"],
    *,
    split: str,
) -> list[Measurement]:
    """Measure bits per byte of a decoder before it was trained to read memories, without any memory.

    The difference from `bits_per_byte/no_memory` is what the decoder has forgotten in training.

    Args:
        model: the memory model; a copy of it is given the original's weights.
        original: the pretrained decoder.
        rows: documents of at most the model's length.
        token_bytes: (vocabulary,), the bytes of each token.
        split: the name of the text.
    """
    before = copy.deepcopy(model)
    base_weights_into(before.decoder, original.state_dict())
    scores = read_rows(before, rows, _next_token, context="no_memory", token_bytes=token_bytes)
    return [_bits("bits_per_byte/original_decoder", scores.nats, scores.sizes, split)]


@torch.inference_mode()
def oracle_measurements(model: MemoryModelForCausalLM, rows: PackedRows, *, split: str) -> list[Measurement]:
    """Measure the cross-entropy of next tokens from rounded memories, without and with the bits of the memories.

    Oracle memories see the chunk that they help to predict, so their own size is added to the cross-entropy:
    normalised = cross-entropy + numbers x bits x ln 2 / tokens of the chunk, in nats per token. Padding is not counted
    among the tokens; a short chunk's memory is as large as a full one's.

    Args:
        model: a memory model of the oracle layout.
        rows: documents of at most the model's length.
        split: the name of the text.
    """
    model.eval()
    encoder = model.config.encoder_config
    numbers = int(encoder.memories_per_chunk * encoder.bottleneck_size)
    found: list[Measurement] = []
    for kind, bits in _BITS.items():
        nats, normalised = DocumentTally(len(rows.document_ids)), DocumentTally(len(rows.document_ids))
        for batch in rows.batches(_ROWS):
            task = next_token(batch.input_ids, batch.attention_mask)
            lost, chunks = _read_rounded(model, batch, task.labels, kind)
            tokens = target_mask(task.labels).sum(1)
            nats.add(batch.document_index, lost, tokens)
            normalised.add(batch.document_index, lost + chunks * numbers * bits * math.log(2), tokens)
        for name, tally in (("cross_entropy", nats), ("normalised_cross_entropy", normalised)):
            found.append(measure_ratio(f"{name}/{kind}", "nats/token", tally, split))
    return found


def _read_rounded(model: MemoryModelForCausalLM, batch: PackedRows, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the nats of each row given rounded memories, and its number of chunks with text; both (rows,)."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    memories = rounded(model.encode(ids, mask).cpu(), kind)
    logits = model(ids, mask, memories=memories.to(model.device)).logits.cpu()
    length = model.config.chunk_length
    chunks = split_chunks(batch.input_ids, batch.attention_mask, chunk_length=length, pad_token_id=0).attention_mask
    return token_nats(logits, labels).double().sum(1), chunks.bool().any(-1).sum(1).double()


def _bits_saved(context: str, with_memory: ReadingScores, without: ReadingScores, split: str) -> Measurement:
    """Bits per byte that memory saves from the second chunk on, paired document by document."""
    after, before = sum_tallies(with_memory.nats[1:]), sum_tallies(without.nats[1:])
    name, saved, sizes = f"bits_saved_over/{context}", before.minus(after), sum_tallies(without.sizes[1:])
    return measure_bits(name, "bits/byte", saved, sizes, split, protocol=TEACHER_FORCED)


def _next_token(batch: PackedRows, _: Tensor) -> Task:
    return next_token(batch.input_ids, batch.attention_mask)


def _bits(name: str, nats: list[DocumentTally], sizes: list[DocumentTally], split: str) -> Measurement:
    return measure_bits(name, "bits/byte", sum_tallies(nats), sum_tallies(sizes), split, protocol=TEACHER_FORCED)
