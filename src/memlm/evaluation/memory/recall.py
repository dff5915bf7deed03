"""Facts that a memory model must remember, as it cannot know them: pairs, a number in prose, a sentence by its place.

A fact is planted in the first chunks of a document, the chunks from some distance on are blank, and the model gives the
text back from its beginning, from memories alone. Only the fact's own tokens count.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, Planted, digit_ids, ordinary_ids, plant_number, plant_pairs
from memlm.evaluation.figures import ratio_of
from memlm.evaluation.memory.perplexity import GREEDY, read_rows
from memlm.measurement import Measurement
from memlm.models import ChunkReader
from memlm.objectives import Task, blank_copy
from memlm.shapes import IGNORE_INDEX

_PAIRS = 4
_DIGITS = 4
_ROWS = 256
"""Texts that facts are planted in, of each kind at each distance."""


def recall_measurements(
    model: ChunkReader,
    rows: PackedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    blank_id: int,
    split: str,
    seed: int = 0,
) -> list[Measurement]:
    """Share of facts' tokens given back, and of facts whole, by kind; names end with the distance in chunks.

    Args:
        model: of two chunks or more.
        rows: full ones, prose; a sample of them is used.
        tokenizer: of the rows.
        blank_id: stands in the second half.
        split: for the records.
        seed: of the facts.
    """
    rows = rows.sample(_ROWS, seed=seed)
    length = model.config.chunk_length
    chunks = rows.input_ids.shape[1] // length
    generator = torch.Generator().manual_seed(seed)
    found: list[Measurement] = []
    for distance in range(1, chunks):
        asked = rows.input_ids[:, : length * min(distance, chunks - distance)]
        for kind, planted in _kinds(asked, tokenizer, length, generator).items():
            scores = read_rows(model, *_asked(rows, planted, blank_id, start=distance * length))
            for what, tally in (("recall", scores.tokens), ("recall_whole", scores.whole)):
                name = f"{what}/{kind}/{distance}_chunks"
                record = ratio_of(name, "fraction", tally, int(tally.count), split)
                found.append(record.model_copy(update={"protocol": GREEDY}))
    return found


def _kinds(
    ids: Int[Tensor, "rows asked"], tokenizer: PreTrainedTokenizerBase, length: int, generator: torch.Generator
) -> dict[str, Planted]:
    ordinary = ordinary_ids(tokenizer)
    kinds = {"pairs": plant_pairs(ids, pairs=min(_PAIRS, length // 2), allowed=ordinary, generator=generator)}
    digits = digit_ids(tokenizer)
    if digits and length >= _DIGITS:
        kinds["number"] = plant_number(ids, digits=digits, length=_DIGITS, generator=generator)
    chunk = torch.randint(ids.shape[1] // length, (len(ids), 1), generator=generator)
    kinds["sentence"] = Planted(ids, torch.arange(ids.shape[1]) // length == chunk)
    return kinds


def _asked(rows: PackedRows, planted: Planted, blank_id: int, *, start: int) -> tuple[PackedRows, _Ask]:
    documents = PackedRows(
        torch.cat([planted.input_ids, rows.input_ids[:, planted.input_ids.shape[1] :]], 1),
        rows.attention_mask,
        rows.document_index,
        rows.document_ids,
    )
    asked = F.pad(planted.target_mask, (start, rows.input_ids.shape[1] - start - planted.target_mask.shape[1]))
    return documents, _Ask(asked, blank_id, start)


class _Ask:
    """Blank copies of which only the facts count."""

    def __init__(self, target_mask: Bool[Tensor, "rows tokens"], blank_id: int, start: int) -> None:
        self.target_mask = target_mask
        self.blank_id = blank_id
        self.start = start

    def __call__(self, batch: PackedRows, numbers: Int[Tensor, " chosen"]) -> Task:
        task = blank_copy(batch.input_ids, blank_id=self.blank_id, start=self.start)
        return Task(task.input_ids, task.labels.masked_fill(~self.target_mask[numbers], IGNORE_INDEX))
