"""Copies and recall: what a memory model reproduces of a text that it reads only as memories.

Copies predict the second half of a document from the memories of the first half. Recall plants a fact that no model can
know (key-value pairs, a number in prose, a whole sentence) in the first chunks of a document; all chunks from some
distance on are blank, and the model predicts the text from its beginning. Only the tokens of the fact are targets.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, Planted, digit_ids, ordinary_ids, plant_number, plant_pairs
from memlm.evaluation.memory.perplexity import ReadingScores, TaskFn, read_rows
from memlm.evaluation.reconstruction import count_correct
from memlm.measurement import GREEDY, TEACHER_FORCED, DocumentTally, Measurement, measure_ratio
from memlm.models import ChunkReader, MemoryModelForCausalLM
from memlm.objectives import Task, blank_copy, copy
from memlm.shapes import IGNORE_INDEX

_BATCH = 64
_PAIRS = 4
_DIGITS = 4
_RECALL_ROWS = 256
"""Number of texts that facts of each kind are planted in, at each distance."""


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
    for batch in sample.batches(_BATCH):
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


def recall_measurements(
    model: ChunkReader,
    rows: PackedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    blank_id: int,
    split: str,
    seed: int = 0,
) -> list[Measurement]:
    """Measure the share of recalled tokens and of facts recalled whole, by kind and by distance in chunks.

    Args:
        model: a memory model of two chunks or more.
        rows: full rows of prose; a sample of them is used.
        tokenizer: the tokenizer of the rows.
        blank_id: the token of blank chunks.
        split: the name of the text.
        seed: the seed of the sample and of the facts.
    """
    rows = rows.sample(_RECALL_ROWS, seed=seed)
    length = model.config.chunk_length
    chunks = rows.input_ids.shape[1] // length
    generator = torch.Generator().manual_seed(seed)
    found: list[Measurement] = []
    for distance in range(1, chunks):
        targets = rows.input_ids[:, : length * min(distance, chunks - distance)]
        for kind, planted in _kinds(targets, tokenizer, length, generator).items():
            scores = read_rows(model, *_with_facts(rows, planted, blank_id, start=distance * length))
            for quantity, tally in (("recall", scores.tokens), ("recall_whole", scores.rows)):
                name = f"{quantity}/{kind}/{distance}_chunks"
                found.append(measure_ratio(name, "fraction", tally, split, protocol=GREEDY))
    return found


def _kinds(
    ids: Int[Tensor, "rows targets"], tokenizer: PreTrainedTokenizerBase, length: int, generator: torch.Generator
) -> dict[str, Planted]:
    ordinary = ordinary_ids(tokenizer)
    kinds = {"pairs": plant_pairs(ids, pairs=min(_PAIRS, length // 2), allowed=ordinary, generator=generator)}
    digits = digit_ids(tokenizer)
    if digits and length >= _DIGITS:
        kinds["number"] = plant_number(ids, digits=digits, length=_DIGITS, generator=generator)
    chunk = torch.randint(ids.shape[1] // length, (len(ids), 1), generator=generator)
    kinds["sentence"] = Planted(ids, torch.arange(ids.shape[1]) // length == chunk)
    return kinds


def _with_facts(rows: PackedRows, planted: Planted, blank_id: int, *, start: int) -> tuple[PackedRows, TaskFn]:
    """Return rows with facts, and a blank copy of them whose only targets are the tokens of the facts."""
    length = planted.input_ids.shape[1]
    ids = torch.cat([planted.input_ids, rows.input_ids[:, length:]], 1)
    targets = F.pad(planted.target_mask, (start, rows.input_ids.shape[1] - start - length))

    def task_of(batch: PackedRows, numbers: Int[Tensor, " chosen"]) -> Task:
        task = blank_copy(batch.input_ids, blank_id=blank_id, start=start)
        return Task(task.input_ids, task.labels.masked_fill(~targets[numbers], IGNORE_INDEX))

    return PackedRows(ids, rows.attention_mask, rows.document_index, rows.document_ids), task_of
