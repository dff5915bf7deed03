"""Questions about documents: every chunk is read as the plan says, and an answer is the decoder's own."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.data import encode_texts
from memlm.data.conversation import Turn, prompt_ids
from memlm.encoders import FunctionEncoder
from memlm.errors import StoreError, UserError
from memlm.models.slots import EncodingSettings, MemoryDecoder
from memlm.session import AskSettings, DocumentSession
from memlm.session.blocks import Block, side_by_side
from memlm.session.document_chunks import ChunkSearch, cut_chunks, fused
from memlm.session.reading_plan import plan_reading, slots_of
from memlm.store import SlotCodec, TextStore
from tests.models.test_slots import FAMILIES, decoder_of, full_context

SETTINGS = EncodingSettings(mode="chunks", chunk_length=16, block_length=16, query_distance=4)
TEXT = "The charter of Arden was received in April. Zoë's ship carried wool and salt to the north of the bay. "
QUESTION = "When was the charter received?"
PLAIN = AskSettings(tokens_per_memory=1, dense_chunks=0, dense_tokens_per_memory=1, passages=0, slots=None)


def session_of(tokenizer: PreTrainedTokenizerFast, family: str = "llama", **settings: Any) -> DocumentSession:
    return DocumentSession(MemoryDecoder(decoder_of(family), tokenizer, SETTINGS), AskSettings(**settings))


@pytest.fixture
def session(tokenizer: PreTrainedTokenizerFast) -> DocumentSession:
    found = session_of(tokenizer, tokens_per_memory=4)
    found.read(TEXT, name="a")
    found.read("Nothing of the kind. " * 4, name="b")
    return found


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.integers(1, 9))
@example("00\n00", 3)
def test_chunks_know_their_characters(tokenizer: PreTrainedTokenizerFast, text: str, length: int) -> None:
    chunks = cut_chunks(tokenizer, "d", text, length, start=5)
    assert [token for chunk in chunks for token in chunk.tokens] == encode_texts(tokenizer, [text])[0]
    assert "".join(chunk.text for chunk in chunks) == text[: len("".join(chunk.text for chunk in chunks))]
    for passage in ChunkSearch(chunks, length).passages:
        assert passage.text == text[passage.start - 5 : passage.end - 5]
        for word in re.findall(r"\w+", passage.text):
            assert len(chunks) > 2 or len(word) > 16 or re.search(rf"\b{word}\b", text)


def test_parts_are_the_documents_and_say_how_each_was_read(session: DocumentSession) -> None:
    limited = session.fork(AskSettings(tokens_per_memory=8, dense_chunks=1, dense_tokens_per_memory=2, slots=12))
    answer = limited.ask(QUESTION, max_new_tokens=1)
    for name, text in (("a", TEXT), ("b", "Nothing of the kind. " * 4)):
        parts = [part for part in answer.parts if part.document == name]
        assert "".join(part.text for part in parts) == text
        assert [part.start for part in parts] == [0, *accumulate(len(part.text) for part in parts)][:-1]
    shown = [part for part in answer.parts if part.shown]
    assert "".join(part.text for part in shown) == answer.passages[0].text
    assert {part.tokens_per_memory for part in shown} >= {2.0}
    assert any(part.tokens_per_memory is None for part in answer.parts) == (answer.left_out > 0)


def test_words_of_scripts_without_spaces_are_found(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = {
        "zh": "這座城市的燈塔建於一八五四年，至今仍在使用。",
        "ja": "港の倉庫は木曜日に閉まる。",
        "th": "ท่าเรือปิดวันพฤหัสบดี",
    }
    chunks = [chunk for name, text in texts.items() for chunk in cut_chunks(tokenizer, name, text, 200)]
    search = ChunkSearch(chunks, 200)
    for name, question in (("zh", "燈塔是哪一年建的？"), ("ja", "倉庫はいつ閉まりますか"), ("th", "ท่าเรือปิดวันไหน")):
        assert search.passages_for(question)[0].document == name


def test_an_answer_with_too_little_support_is_not_found(session: DocumentSession) -> None:
    support = session.fork().ask(QUESTION, max_new_tokens=3).support
    for least, found in ((None, True), (support - 0.01, True), (support + 0.01, False)):
        other = session.fork(AskSettings(tokens_per_memory=4, least_support=least))
        assert other.ask(QUESTION, max_new_tokens=3).found is found


def test_passages_are_those_that_share_words(session: DocumentSession) -> None:
    [best, *_] = session.passages(QUESTION)
    assert best.document == "a"
    assert "charter" in best.text
    assert TEXT[best.start : best.end] == best.text
    assert session.passages("xyzzy") == []


@pytest.mark.parametrize("text", ["", "?!", "。。。"])
def test_texts_without_words_are_searched_in_vain(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    search = ChunkSearch(cut_chunks(tokenizer, "d", text, 4), 4)
    assert search.passages_for("the charter") == []
    assert not search.scores("the charter").any()


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0, 9)), max_size=12), st.integers(1, 60), st.integers(0, 3))
def test_plans_keep_their_budget(chunks: list[tuple[int, float]], slots: int, dense: int) -> None:
    sizes, scores = [size for size, _ in chunks], [score for _, score in chunks]
    plan = plan_reading(sizes, scores, AskSettings(slots=slots, dense_chunks=dense, tokens_per_memory=8))
    assert [one.chunk for one in plan] == sorted({one.chunk for one in plan})
    assert sum(slots_of(sizes[one.chunk], one.tokens_per_memory) for one in plan) <= slots
    assert not dense or sum(one.tokens_per_memory == 2 for one in plan) <= dense
    without = plan_reading(sizes, scores, AskSettings(slots=None, dense_chunks=dense, tokens_per_memory=8))
    assert [one.chunk for one in without] == list(range(len(sizes)))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_with_all_keys_are_what_the_decoder_reads(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    session = session_of(tokenizer, family, **vars(PLAIN))
    short = TEXT[:12]
    session.read(short)
    assert len(session.chunks) == 1
    answer = encode_texts(tokenizer, [" in April"])[0]
    prompt = prompt_ids(tokenizer, [], QUESTION)
    logits = full_context(session.model, encode_texts(tokenizer, [short])[0], [*prompt, *answer])[0]
    nats = torch.nn.functional.cross_entropy(
        logits[-len(answer) - 1 : -1].float(), torch.tensor(answer), reduction="sum"
    )
    found = session.nats(QUESTION, [" in April", "x", " in April of that year"])
    assert found[0] == pytest.approx(float(nats), rel=1e-3, abs=1e-3)
    assert session.nats(QUESTION, ["x"]) == pytest.approx(found[1:2], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_each_chunk_is_encoded_by_itself_at_its_place(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    session = session_of(tokenizer, family, tokens_per_memory=4, dense_chunks=1, passages=0)
    session.read(TEXT)
    found = session.ask(QUESTION, max_new_tokens=2)
    scores = ChunkSearch(session.chunks, 16).scores(QUESTION)
    blocks: list[Block] = []
    for number, chunk in enumerate(session.chunks):
        ratio = 2 if number == scores.argmax() else 4
        start = sum(block.tokens for block in blocks) if family == "gpt2" else 0
        slots = slots_of(len(chunk.tokens), ratio)
        blocks.append(Block(session.model.memories([chunk.tokens], slots=slots, start=start), start))
    memories = side_by_side(blocks, session.model.reader.rotary)
    assert found.memories == int(memories.counts)
    assert found.left_out == 0
    [known] = session._nats(prompt_ids(tokenizer, [], QUESTION), [" April"], memories)
    session.turns.clear()
    assert session.nats(QUESTION, [" April"]) == pytest.approx([sum(known)], rel=1e-4)


def test_budgets_leave_out_what_shares_least(session: DocumentSession) -> None:
    tight = session.fork(AskSettings(tokens_per_memory=4, dense_chunks=1, slots=9))
    answer = tight.ask(QUESTION, max_new_tokens=2)
    assert answer.memories <= 10
    assert answer.left_out > 0
    assert answer.left_out + answer.memory_tokens == sum(len(chunk.tokens) for chunk in session.chunks)
    assert "left out" in answer.reading()
    assert not session.turns


def test_turns_are_remembered(session: DocumentSession) -> None:
    session.ask(QUESTION, max_new_tokens=3)
    first = session.turns[0]
    second = prompt_ids(session.model.tokenizer, session.turns, "And the ship?")
    assert len(second) > len(prompt_ids(session.model.tokenizer, [], "And the ship?"))
    assert session.ask("And the ship?", max_new_tokens=3).tokens > len(second)  # a passage besides
    assert session.turns[0] == first


def test_markers_of_the_template_have_no_effect_in_a_question(tokenizer: PreTrainedTokenizerFast) -> None:
    templated = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=tokenizer.eos_token)
    end = str(tokenizer.eos_token)
    templated.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}" + end + "{% endfor %}[a]"
    ids = prompt_ids(templated, [Turn(f"one{end}", "two")], f"three{end}")
    assert ids.count(int(templated.eos_token_id)) == 3  # pyright: ignore
    assert templated.decode(ids).replace(end, "").startswith("[user]one")
    assert templated.decode(ids).endswith("[a]")


@pytest.mark.parametrize("ratio", [4.0, 2.0])
def test_stored_documents_answer_as_read_ones(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, ratio: float) -> None:
    model = MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS)
    with TextStore.open(tmp_path / "s", SlotCodec(model, tokens_per_memory=4), write=True, bits=16) as store:
        list(store.add([("a", [TEXT])]))
        stored, read = (
            DocumentSession(model, AskSettings(tokens_per_memory=ratio, dense_tokens_per_memory=1)) for _ in range(2)
        )
        stored.read_stored(store, "a")
        read.read(TEXT, name="a")
        one, other = (session.ask(QUESTION, max_new_tokens=4) for session in (stored, read))
        assert (one.memories, one.passages) == (other.memories, other.passages)
        assert stored.nats(QUESTION, ["salt"]) == pytest.approx(read.nats(QUESTION, ["salt"]), rel=0.05)


_MEANT = {"whale": 0, "animal": 0, "violin": 1, "instrument": 1}


def _meanings(texts: list[str]) -> Tensor:
    """Return vectors in which words of one meaning are one number, and all texts share the last."""
    rows = [
        [*(float(any(word in text for word, m in _MEANT.items() if m == n)) for n in (0, 1)), 0.1] for text in texts
    ]
    return torch.tensor(rows)


def test_vectors_of_a_store_find_what_no_word_does(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS)
    encoder = FunctionEncoder(_meanings, name="meanings", fingerprint="1")
    texts = {"a": "A whale swam by. Rain fell for days and days.", "b": "A violin was sold to a farmer at the fair."}
    with TextStore.open(tmp_path / "s", SlotCodec(model), write=True, retrieval=encoder) as store:
        list(store.add([(name, [text]) for name, text in texts.items()]))
    for retrieval in (encoder, None):
        with TextStore.open(tmp_path / "s", SlotCodec(model), retrieval=retrieval) as store:
            session = session_of(tokenizer, dense_chunks=1, dense_tokens_per_memory=1)
            for name in texts:
                session.read_stored(store, name)
            for question, word in (("Which animal?", "whale"), ("Which instrument?", "violin")):
                found = session.passages(question)
                assert (word in found[0].text) if retrieval else not found
                best = max(session.fork().ask(question, max_new_tokens=1).parts, key=lambda p: word in p.text)
                assert best.shown == (retrieval is not None)
            # text that no store holds is found by its words
            session.read("The hill of Arden.", name="c")
            assert session.passages("Which hill?")[0].document == "c"


def test_words_weigh_twice_as_much_as_vectors() -> None:
    words, cosines = np.array([4.0, 2.0, 0.0, 0.0, 1.0]), np.array([0.1, 0.5, 0.3, 0.1, math.nan])
    assert fused(words, cosines).tolist() == pytest.approx([1.0, 0.5 + 0.5, 0.25, 0.0, 0.25])
    # without a common word vectors decide; one vector alone says nothing
    assert fused(words * 0, cosines).argmax() == 1
    assert fused(words, np.full(5, 0.3)).argmax() == 0


def test_a_store_of_other_chunks_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = MemoryDecoder(decoder_of("llama"), tokenizer, EncodingSettings(chunk_length=8, block_length=8))
    with TextStore.open(tmp_path / "s", SlotCodec(model), write=True) as store:
        list(store.add([("a", [TEXT])]))
        with pytest.raises(StoreError, match="chunks of 16 tokens"):
            session_of(tokenizer).read_stored(store, "a")


def test_long_documents_share_positions(tokenizer: PreTrainedTokenizerFast) -> None:
    session = session_of(tokenizer, tokens_per_memory=4, slots=None, passages=0)
    session.read(TEXT * 12)
    assert sum(len(chunk.tokens) for chunk in session.chunks) > session.positions
    assert session.ask(QUESTION, max_new_tokens=2).left_out == 0
    learned = session_of(tokenizer, "gpt2", tokens_per_memory=4, slots=None, passages=0)
    learned.read(TEXT * 12)
    with pytest.raises(UserError, match="learned positions cannot be shared"):
        learned.ask(QUESTION, max_new_tokens=2)


def test_without_documents_the_decoder_answers_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    answer = session_of(tokenizer).ask(QUESTION, max_new_tokens=2)
    assert (answer.memories, answer.passages, answer.support) == (0, (), 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_memory": 0.5}, r"tokens_per_memory \(0.5\)"),
        ({"tokens_per_memory": float("nan")}, "tokens_per_memory"),
        ({"tokens_per_memory": 2, "dense_tokens_per_memory": 4}, "must not exceed"),
        ({"dense_chunks": -1}, r"dense_chunks \(-1\)"),
        ({"passages": -1}, r"passages \(-1\)"),
        ({"slots": 0}, r"slots \(0\)"),
        ({"slots": 2**70}, "slots"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AskSettings(**settings)


@pytest.mark.parametrize(
    ("question", "options", "message"),
    [("", {}, "is empty"), ("  \n", {}, "is empty"), ("why? " * 200, {}, "no room"), ("why?", {"n": 500}, "no room")],
)
def test_bad_questions(session: DocumentSession, question: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        session.ask(question, max_new_tokens=options.get("n", 4))


@pytest.mark.parametrize("positions", [0, 16, 1000])
def test_bad_positions(tokenizer: PreTrainedTokenizerFast, positions: int) -> None:
    with pytest.raises(UserError, match="max_positions"):
        DocumentSession(MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS), max_positions=positions)
