"""Memory models over held-out documents: next tokens with and without memory, and what comes back by copying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from memlm.data import PackedRows
from memlm.evaluation.figures import ratio_of, scaled
from memlm.measurement import DocumentTally, Measurement, correct, exact_rows, rows_with_targets, target_mask
from memlm.models import ChunkReader, MemoryModelForCausalLM
from memlm.models.memory.adapter import base_weights_into
from memlm.objectives import Task, blank_copy, copy, next_token, token_nats

_ROWS = 64
TEACHER_FORCED = "teacher_forced"
GREEDY = "greedy"
Ask = Callable[[PackedRows, Int[Tensor, " chosen"]], Task]
WAYS = ("memory", "no_memory", "other_memory")
"""How a document's earlier chunks are seen: as they are, not at all, or as those of another document."""


@dataclass(frozen=True)
class ReadingScores:
    """Sums over documents, chunk by chunk.

    Attributes:
        nats: of each chunk index, over the tokens asked for there.
        sizes: bytes of those tokens, by chunk index.
        tokens: right over asked tokens of all chunks.
        whole: rows with every asked token right over rows asked.
        predictions: (rows, tokens), the likeliest token at each position.
    """

    nats: list[DocumentTally]
    sizes: list[DocumentTally]
    tokens: DocumentTally
    whole: DocumentTally
    predictions: Int[Tensor, "rows tokens"]


@torch.inference_mode()
def read_rows(
    model: ChunkReader,
    rows: PackedRows,
    ask: Ask,
    *,
    way: str = "memory",
    token_bytes: Int[Tensor, " vocabulary"] | None = None,
) -> ReadingScores:
    """One pass over rows of documents, each asked what `ask` makes of it.

    Args:
        model: in its own precision; it is put into evaluation mode.
        rows: documents of at most the model's length.
        ask: rows, and their numbers, to inputs and labels.
        way: one of WAYS.
        token_bytes: (vocabulary,), bytes of each token; counted as one each where None.
    """
    model.eval()
    documents, length = len(rows.document_ids), model.config.chunk_length
    chunks = -(-rows.input_ids.shape[1] // length)
    nats = [DocumentTally(documents) for _ in range(chunks)]
    sizes = [DocumentTally(documents) for _ in range(chunks)]
    tokens, whole = DocumentTally(documents), DocumentTally(documents)
    predictions: list[Tensor] = []
    strangers = _strangers(rows)
    for numbers in torch.arange(len(rows)).split(_ROWS):
        batch = rows.select(numbers)
        task, mask = ask(batch, numbers), batch.attention_mask
        mask = mask if task.input_ids is batch.input_ids else torch.ones_like(mask)
        logits = _logits(model, task.input_ids, mask, rows.select(strangers[numbers]), way)
        predicted, lost = logits.argmax(-1), token_nats(logits, task.labels)
        labels = task.labels
        weights = target_mask(labels).double()
        if token_bytes is not None:
            weights = weights * token_bytes[labels.clamp(min=0)]
        for i in range(chunks):
            part = slice(i * length, (i + 1) * length)
            count = target_mask(labels[:, part]).sum(1)
            nats[i].add(batch.document_index, lost[:, part].double().sum(1), count)
            sizes[i].add(batch.document_index, weights[:, part].sum(1), count)
        counts = target_mask(labels).sum(1)
        tokens.add(batch.document_index, correct(predicted, labels).sum(1), counts)
        exact = exact_rows(predicted, labels) & (counts > 0)
        whole.add(batch.document_index, exact.long(), rows_with_targets(labels))
        predictions.append(predicted)
    return ReadingScores(nats, sizes, tokens, whole, torch.cat(predictions))


def _logits(model: ChunkReader, ids: Tensor, mask: Tensor, others: PackedRows, way: str) -> Tensor:
    device = model.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if way == "no_memory":
        return model(**inputs, use_memory=False).logits.cpu()
    if way == "other_memory":
        memories = model.encode(others.input_ids.to(device), others.attention_mask.to(device))
        return model(**inputs, memories=memories).logits.cpu()
    return model(**inputs).logits.cpu()


def _strangers(rows: PackedRows) -> Int[Tensor, " rows"]:
    """For each row the next full row of another document, far away; another row where there is one document only."""
    full = rows.attention_mask.bool().all(1).nonzero()[:, 0]
    full = full if len(full) else torch.arange(len(rows))
    owners = rows.document_index[full]
    found = torch.empty(len(rows), dtype=torch.long)
    for row in range(len(rows)):
        turned = torch.arange(len(full)).roll(-(row + len(full) // 2))
        others = turned[owners[turned] != rows.document_index[row]]
        found[row] = full[others[0] if len(others) else turned[0]]
    return found


@torch.inference_mode()
def copy_greedily(
    model: ChunkReader, rows: PackedRows, task: Task
) -> tuple[Int[Tensor, "rows half"], Int[Tensor, "rows half"]]:
    """The second half written token by token from the model's own tokens, and what was asked for.

    Args:
        model: in evaluation mode.
        rows: full rows.
        task: of `copy`, over the same rows.
    """
    half = rows.input_ids.shape[1] // 2
    written = task.input_ids[:, :half]
    # what stands for a slot in a prompt is no token; the encoder has no place for it either
    words = model.config.encoder_config.vocab_size if isinstance(model, MemoryModelForCausalLM) else None
    for _ in range(half):
        logits = model(written.to(model.device)).logits[:, -1, :words].cpu()
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
    return written[:, half:], task.labels[:, half - 1 : -1]


def reading_measurements(
    model: ChunkReader, rows: PackedRows, token_bytes: Int[Tensor, " vocabulary"], *, split: str
) -> list[Measurement]:
    """Bits per byte in every way, by chunk, and next-token accuracy; all teacher-forced."""
    found: list[Measurement] = []
    base: ReadingScores | None = None
    for way in WAYS:
        scores = read_rows(model, rows, _next_token, way=way, token_bytes=token_bytes)
        base = scores if base is None else base
        suffix = "" if way == "memory" else f"/{way}"
        tokens = int(scores.tokens.count)
        found.append(_bits("bits_per_byte" + suffix, scores.nats, scores.sizes, tokens, split))
        for i, (nats, size) in enumerate(zip(scores.nats, scores.sizes, strict=True)):
            if nats.count:
                found.append(_bits(f"bits_per_byte{suffix}/chunk_{i + 1}", [nats], [size], int(nats.count), split))
        if way == "memory":
            right = ratio_of("token_accuracy/next_token", "fraction", scores.tokens, tokens, split)
            nats = ratio_of("cross_entropy/next_token", "nats/token", _total(scores.nats), tokens, split)
            found += [_as(TEACHER_FORCED, right), _as(TEACHER_FORCED, nats)]
        elif len(scores.nats) > 1:
            found.append(_gain(way, base, scores, split))
    return found


def original_measurements(
    model: MemoryModelForCausalLM,
    original: PreTrainedModel,
    rows: PackedRows,
    token_bytes: Int[Tensor, " vocabulary"],
    *,
    split: str,
) -> list[Measurement]:
    """Bits per byte of a decoder before it learnt to read memories, without any: what it may have forgotten since.

    The model's decoder has the original's weights afterwards.
    """
    base_weights_into(model.decoder, original.state_dict())
    scores = read_rows(model, rows, _next_token, way="no_memory", token_bytes=token_bytes)
    return [_bits("bits_per_byte/original_decoder", scores.nats, scores.sizes, int(scores.tokens.count), split)]


def _gain(way: str, with_memory: ReadingScores, without: ReadingScores, split: str) -> Measurement:
    """Bits per byte that memory saves from the second chunk on, paired document by document."""
    after, before = with_memory.nats[1:], without.nats[1:]
    saved = _total(before).sums - _total(after).sums
    size, count = _total(without.sizes[1:]).sums, int(_total(after).count)
    return _as(TEACHER_FORCED, scaled(f"bits_saved_over/{way}", "bits/byte", saved, size, count, split))


def copy_measurements(
    model: ChunkReader, rows: PackedRows, *, blank_id: int, split: str, greedy_rows: int = 128
) -> tuple[list[Measurement], ReadingScores]:
    """Blank copy (where greedy and teacher-forced are the same: no answer is ever an input) and copy, both ways."""
    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    blank = read_rows(model, full, lambda batch, _: blank_copy(batch.input_ids, blank_id=blank_id))
    shown = read_rows(model, full, lambda batch, _: copy(batch.input_ids))
    found = [
        *_copied("blank_copy", blank.tokens, blank.whole, GREEDY, split),
        *_copied("copy", shown.tokens, shown.whole, TEACHER_FORCED, split),
    ]
    some = full.sample(greedy_rows, seed=0)
    tokens, whole = DocumentTally(len(some.document_ids)), DocumentTally(len(some.document_ids))
    for batch in some.batches(_ROWS):
        written, wanted = copy_greedily(model, batch, copy(batch.input_ids))
        tokens.add(batch.document_index, correct(written, wanted).sum(1), target_mask(wanted).sum(1))
        whole.add(batch.document_index, exact_rows(written, wanted).long(), rows_with_targets(wanted))
    return [*found, *_copied("copy", tokens, whole, GREEDY, split)], blank


def _copied(name: str, tokens: DocumentTally, whole: DocumentTally, protocol: str, split: str) -> list[Measurement]:
    return [
        _as(protocol, ratio_of(f"token_accuracy/{name}", "fraction", tokens, int(tokens.count), split)),
        _as(protocol, ratio_of(f"exact_match/{name}", "fraction", whole, int(whole.count), split)),
    ]


def _next_token(batch: PackedRows, _: Tensor) -> Task:
    return next_token(batch.input_ids, batch.attention_mask)


def _bits(name: str, nats: list[DocumentTally], sizes: list[DocumentTally], count: int, split: str) -> Measurement:
    top, bottom = _total(nats), _total(sizes)
    return _as(TEACHER_FORCED, scaled(name, "bits/byte", top.sums, bottom.sums, count, split))


def _total(tallies: list[DocumentTally]) -> DocumentTally:
    total = DocumentTally(len(tallies[0].sums))
    for tally in tallies:
        total.sums = total.sums + tally.sums
        total.counts = total.counts + tally.counts
    return total


def _as(protocol: str, m: Measurement) -> Measurement:
    return m.model_copy(update={"protocol": protocol})
