"""Training rows that ask for what stood earlier: what is asked stands in the row, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.data import PackedRows, decode_ids
from memlm.errors import ConfigError
from memlm.models import SlotWriterConfig
from memlm.shapes import IGNORE_INDEX
from memlm.training.memory.distillation import DistillationBatches
from memlm.training.memory.questions import FactWriter, read_again, with_fact

LENGTH, CHUNKS = 96, 3


def rows(count: int, *, padded: bool = False) -> PackedRows:
    ids = torch.full((count, LENGTH * CHUNKS), 5)
    mask = torch.ones_like(ids)
    mask[:, -10:] = int(not padded)
    return PackedRows(ids, mask, torch.zeros(count, dtype=torch.long), ("a",))


def batches(tokenizer: PreTrainedTokenizerFast, *, padded: bool = False, **shares: float) -> DistillationBatches:
    config = SlotWriterConfig(chunk_length=LENGTH, num_chunks=CHUNKS, scored_tokens=4, **shares)
    return DistillationBatches(rows(40, padded=padded), config, 2, 0, FactWriter(tokenizer))


def test_a_fact_is_stated_before_it_is_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    writer, ids = FactWriter(tokenizer), torch.full((LENGTH * CHUNKS,), 5)
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        fact = writer.draw(draw)
        row, answer = with_fact(ids, fact, LENGTH, draw)
        before, last = row[:-LENGTH].tolist(), row[-LENGTH:].tolist()
        assert any(before[i : i + len(fact.statement)] == fact.statement for i in range(len(before)))
        asked = [*fact.question, *fact.answer]
        assert any(last[i : i + len(asked)] == asked for i in range(len(last)))
        assert row[answer].tolist() == fact.answer
        words = decode_ids(tokenizer, fact.answer).strip(" .").split()
        assert all(word in decode_ids(tokenizer, fact.statement) for word in words)


def test_a_chunk_that_is_read_again_is_one_of_those_before() -> None:
    ids = torch.arange(12)
    found = {tuple(read_again(ids, 3, torch.Generator().manual_seed(seed))[-3:].tolist()) for seed in range(40)}
    assert found == {(0, 1, 2), (3, 4, 5), (6, 7, 8)}


def test_shares_are_kept_and_answers_are_compared(tokenizer: PreTrainedTokenizerFast) -> None:
    make = batches(tokenizer, fact_share=0.5, reconstruction_share=0.25)
    batch = make(torch.arange(40), 0)
    changed = (batch["input_ids"] != 5).any(1)
    assert 10 <= int(changed.sum()) <= 30  # 20 on average; text that is read again is the same here
    compared = (batch["labels"] != IGNORE_INDEX).sum(1)
    assert bool((compared[changed] > compared[~changed].max()).all())
    assert torch.equal(make(torch.arange(40), 0)["input_ids"], batch["input_ids"])
    kept = batch["labels"] != IGNORE_INDEX
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])


def test_without_shares_and_in_rows_with_padding_nothing_changes(tokenizer: PreTrainedTokenizerFast) -> None:
    for make in (batches(tokenizer), batches(tokenizer, padded=True, fact_share=1.0)):
        assert bool((make(torch.arange(40), 0)["input_ids"] == 5).all())


def test_shares_out_of_range_and_chunks_too_short(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="fact_share .0.8. and reconstruction_share .0.4. must not be below 0 nor"):
        SlotWriterConfig(fact_share=0.8, reconstruction_share=0.4)
    fact = FactWriter(tokenizer).draw(torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="chunk_length .4. is shorter than a fact"):
        with_fact(torch.arange(12), fact, 4, torch.Generator())
