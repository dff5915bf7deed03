"""Copies by memory models: the second half of a document is predicted from the memories of the first half."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.evaluation.memory.perplexity import ReadingScores, read_rows
from memlm.evaluation.reconstruction import count_correct
from memlm.measurement import GREEDY, TEACHER_FORCED, DocumentTally, Measurement, measure_ratio
from memlm.models import ChunkReader, MemoryModelForCausalLM
from memlm.objectives import Task, blank_copy, copy

_ROWS = 64


@torch.inference_mode()
def copy_greedily(
    model: ChunkReader, rows: PackedRows, task: Task
) -> tuple[Int[Tensor, "rows half"], Int[Tensor, "rows half"]]:
    """Generate the second half token by token from the model's own tokens.

    Args:
        model: the memory model, in evaluation mode.
        rows: full rows.
        task: the `copy` task over the same rows.

    Returns:
        The generated tokens and the targets, both (rows, half).
    """
    half = rows.input_ids.shape[1] // 2
    written = task.input_ids[:, :half]
    # the token that marks a slot in a prompt must not be generated; the encoder has no embedding for it either
    words = model.config.encoder_config.vocab_size if isinstance(model, MemoryModelForCausalLM) else None
    for _ in range(half):
        logits = model(written.to(model.device)).logits[:, -1, :words].cpu()
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], dim=1)
    return written[:, half:], task.labels[:, half - 1 : -1]


def copy_measurements(
    model: ChunkReader, rows: PackedRows, *, blank_id: int, split: str, greedy_rows: int = 128
) -> tuple[list[Measurement], ReadingScores]:
    """Measure blank copies, teacher-forced copies and greedy copies.

    A blank copy is greedy and teacher-forced at once, since no token of the answer is ever an input.

    Args:
        model: the memory model, with an even number of chunks.
        rows: documents; only full rows are used.
        blank_id: the token in the second half of a blank copy.
        split: the name of the text.
        greedy_rows: the number of rows that are copied token by token, drawn at random.

    Returns:
        The measurements, and the scores of the blank copies.
    """
    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    blank = read_rows(model, full, lambda batch, _: blank_copy(batch.input_ids, blank_id=blank_id))
    shown = read_rows(model, full, lambda batch, _: copy(batch.input_ids))
    sample = full.sample(greedy_rows, seed=0)
    tokens, exact = DocumentTally(len(sample.document_ids)), DocumentTally(len(sample.document_ids))
    for batch in sample.batches(_ROWS):
        count_correct(tokens, exact, batch, *copy_greedily(model, batch, copy(batch.input_ids)))
    found = [
        *_shares("blank_copy", blank.tokens, blank.rows, GREEDY, split),
        *_shares("copy", shown.tokens, shown.rows, TEACHER_FORCED, split),
        *_shares("copy", tokens, exact, GREEDY, split),
    ]
    return found, blank


def _shares(name: str, tokens: DocumentTally, rows: DocumentTally, protocol: str, split: str) -> list[Measurement]:
    return [
        measure_ratio(f"token_accuracy/{name}", "fraction", tokens, split, protocol=protocol),
        measure_ratio(f"exact_match/{name}", "fraction", rows, split, protocol=protocol),
    ]
