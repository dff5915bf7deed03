"""Recall of planted facts that a memory model cannot know: key-value pairs, a number in prose, a whole sentence.

A fact is planted in the first chunks of a document, all chunks from some distance on are blank, and the model predicts
the text from its beginning with nothing but memories. Only the tokens of the fact are targets.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, Planted, digit_ids, ordinary_ids, plant_number, plant_pairs
from memlm.evaluation.memory.perplexity import TaskFn, read_rows
from memlm.measurement import GREEDY, Measurement, measure_ratio
from memlm.models import ChunkReader
from memlm.objectives import Task, blank_copy
from memlm.shapes import IGNORE_INDEX

_PAIRS = 4
_DIGITS = 4
_ROWS = 256
"""Number of texts that facts of each kind are planted in, at each distance."""


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
    rows = rows.sample(_ROWS, seed=seed)
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
