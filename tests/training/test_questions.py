"""Training rows that ask for what stood earlier: what is asked stands in the row, and nothing else changes."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from memlm.data import PackedRows, decode_ids, encode_texts
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.errors import ConfigError
from memlm.models import SlotWriterConfig
from memlm.shapes import IGNORE_INDEX
from memlm.training.memory.distillation import DistillationBatches
from memlm.training.memory.fact_writer import FactWriter
from memlm.training.memory.questions import read_again, with_conversation, with_facts

LENGTH, CHUNKS = 256, 3


def rows(count: int, *, padded: bool = False) -> PackedRows:
    ids = torch.full((count, LENGTH * CHUNKS), 5)
    mask = torch.ones_like(ids)
    mask[:, -10:] = int(not padded)
    return PackedRows(ids, mask, torch.zeros(count, dtype=torch.long), ("a",))


def batches(tokenizer: PreTrainedTokenizerFast, *, padded: bool = False, **shares: float) -> DistillationBatches:
    config = SlotWriterConfig(chunk_length=LENGTH, num_chunks=CHUNKS, scored_tokens=4, facts_per_row=2, **shares)
    return DistillationBatches(rows(40, padded=padded), config, 2, 0, FactWriter(tokenizer))


def test_facts_are_stated_before_they_are_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    writer, ids = FactWriter(tokenizer), torch.arange(LENGTH * CHUNKS) % 200 + 20
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        row, answer = with_facts(ids, writer, 3, LENGTH, draw)
        before = decode_ids(tokenizer, row[:-LENGTH].tolist())
        assert not bool(answer[:-LENGTH].any())
        assert bool(answer.any())
        starts = (answer.int().diff(prepend=torch.zeros(1)) == 1).nonzero()[:, 0].tolist()
        ends = (answer.int().diff(append=torch.zeros(1)) == -1).nonzero()[:, 0].tolist()
        assert 2 <= len(starts) <= 3
        for start, end in zip(starts, ends, strict=True):
            words = decode_ids(tokenizer, row[start : end + 1].tolist()).strip(" .").split()
            assert words
            assert all(word in before for word in words)


def test_a_planted_fact_says_what_it_asks_for(tokenizer: PreTrainedTokenizerFast) -> None:
    writer = FactWriter(tokenizer)
    for seed in range(100):
        statement, _, answer = (decode_ids(tokenizer, x) for x in writer.draw(torch.Generator().manual_seed(seed)))
        assert all(word in statement for word in answer.strip(" .").split())


def test_a_texts_own_fact_is_a_name_or_number_behind_what_asks_for_it(tokenizer: PreTrainedTokenizerFast) -> None:
    writer = FactWriter(tokenizer)
    ids = torch.tensor(
        encode_texts(tokenizer, ["and so it was that they all came to see Clara in the garden of it."])[0]
    )
    text = decode_ids(tokenizer, ids.tolist())
    found = writer.find(ids, torch.Generator().manual_seed(0))
    assert found is not None
    question, answer = (decode_ids(tokenizer, x) for x in (found.question, found.answer))
    assert answer.strip() == "Clara"
    assert question + answer in text
    assert writer.find(ids[-12:], torch.Generator()) is None


def test_no_fact_holds_what_measurements_ask_for(tokenizer: PreTrainedTokenizerFast) -> None:
    known = Tokenizer(
        WordLevel({f"\u0120{word}": i for i, word in enumerate([*TEST_WORDS, *TEST_NAMES, *many_words()])})
    )
    writer = FactWriter(PreTrainedTokenizerFast(tokenizer_object=known))
    names, things = writer._words
    assert "Acde" in names
    assert "acde" in things
    assert not {*names, *things} & {*TEST_NAMES, *TEST_WORDS}


def many_words() -> list[str]:
    ends = ["".join(x) for x in product("bcdefgh", repeat=3)]
    return [f"{start}{end}" for start in ("A", "a") for end in ends]


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
    assert bool(kept[batch["certain"]].all())
    assert bool(batch["certain"].any())


@pytest.mark.parametrize("make", [with_facts, with_conversation])
def test_the_token_of_an_answer_is_predicted_in_front_of_it(tokenizer: PreTrainedTokenizerFast, make: Any) -> None:
    shares = {"fact_share": float(make is with_facts), "chat_share": float(make is with_conversation)}
    batch = batches(tokenizer, **shares)(torch.arange(40), 0)
    for place in range(40):
        draw = torch.Generator().manual_seed(place + 500_000_003)
        torch.rand((), generator=draw)
        row, answer = make(torch.full((LENGTH * CHUNKS,), 5), FactWriter(tokenizer), 2, LENGTH, draw)
        assert torch.equal(batch["input_ids"][place], row)
        places = batch["certain"][place].nonzero()[:, 0]
        assert torch.equal(row[places + 1], row[answer])


_TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize("template", [None, _TURNS + "<assistant>", _TURNS + "<assistant><think></think>"])
def test_a_conversation_asks_for_what_is_stated_before_it(
    tokenizer: PreTrainedTokenizerFast, template: str | None
) -> None:
    speaker = copy.deepcopy(tokenizer)
    speaker.chat_template = template
    writer, ids, shown = FactWriter(speaker), torch.arange(LENGTH * CHUNKS) % 200 + 20, 0
    for seed in range(50):
        row, answer = with_conversation(ids, writer, 3, LENGTH, torch.Generator().manual_seed(seed))
        assert not bool(answer[:-LENGTH].any())
        before, said = (decode_ids(speaker, x.tolist()) for x in (row[:-LENGTH], row[-LENGTH:]))
        answers = [x for x in decode_ids(speaker, row[answer].tolist()).split(".") if x]
        assert 1 <= len(answers) <= 3
        for text in answers:
            assert all(word in before for word in text.split())
            assert f"{text}." in said
        assert said.count("Text: ") <= len(answers)
        shown += said.count("Text: ")
        assert ("<user>" in said) == (template is not None)
    assert 10 < shown < 110  # half of the questions that fit


def test_without_shares_and_in_rows_with_padding_nothing_changes(tokenizer: PreTrainedTokenizerFast) -> None:
    for make in (batches(tokenizer), batches(tokenizer, padded=True, fact_share=1.0)):
        assert bool((make(torch.arange(40), 0)["input_ids"] == 5).all())


def test_shares_out_of_range_and_chunks_too_short(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        ConfigError,
        match=r"fact_share \(0.8\), chat_share \(0.0\), reconstruction_share \(0.4\) must not be below 0 nor",
    ):
        SlotWriterConfig(fact_share=0.8, reconstruction_share=0.4)
    with pytest.raises(ConfigError, match="facts do not fit: a question and its answer have 4 tokens of a chunk"):
        with_facts(torch.arange(12), FactWriter(tokenizer), 1, 4, torch.Generator())
    with pytest.raises(ConfigError, match="a question and its answer do not fit 8 tokens; give a larger chunk_length"):
        with_conversation(torch.arange(16), FactWriter(tokenizer), 1, 8, torch.Generator())
