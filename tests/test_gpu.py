"""A GPU computes what the processor does: every family encodes, fits, reads, generates, stores and trains there."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.data import load_documents
from memlm.evaluation.lm_eval.slot_reader import SlotLM
from memlm.evaluation.memory.context_gain import ContextGainSettings, context_gain
from memlm.models.slots import EncodingSettings, MemoryDecoder
from memlm.models.slots.answers import score_answers
from memlm.session import AskSettings, DocumentSession, SlotSession
from memlm.store import SlotCodec, TextStore
from tests.evaluation.test_slot_harness import REQUESTS, scored
from tests.models.test_slots import FAMILIES, PROMPT, TEXT, decoder_of, ids, logits
from tests.session.test_document_session import QUESTION
from tests.session.test_document_session import TEXT as CHARTER
from tests.training.test_pretrained import decoder  # noqa: F401 (a fixture)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SETTINGS = EncodingSettings(mode="chunks", chunk_length=16, block_length=16, query_distance=4)


def pair(family: str, tokenizer: PreTrainedTokenizerFast) -> tuple[MemoryDecoder, MemoryDecoder]:
    """Return the same decoder on the processor and on the GPU."""
    plain = decoder_of(family)
    return MemoryDecoder(copy.deepcopy(plain), tokenizer, SETTINGS), MemoryDecoder(plain.cuda(), tokenizer, SETTINGS)


@pytest.mark.parametrize("mode", ["joint", "chunks"])
@pytest.mark.parametrize("family", FAMILIES)
def test_memories_are_those_of_the_processor(family: str, mode: str, tokenizer: PreTrainedTokenizerFast) -> None:
    here, there = pair(family, tokenizer)
    texts, prompts = ids(TEXT, 19), ids(PROMPT, 3, seed=2)
    for ratio in (1, 4):
        one, other = (logits(x, prompts, x.encode(texts, mode=mode).at(tokens_per_memory=ratio)) for x in (here, there))
        torch.testing.assert_close(one, other.cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_texts_behind_memories_are_those_of_the_processor(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts, prompts, answers = ids(TEXT, 19), ids(PROMPT, 3, seed=2), [ids(2, 3, seed=3), ids(1, 4, seed=4)]
    nats, tokens = [], []
    for model in pair(family, tokenizer):
        memories = model.memories(texts, tokens_per_memory=4)
        nats.append(score_answers(model, prompts, answers, memories).nats.cpu())
        tokens.append(model.generate(prompts, memories, max_new_tokens=4))
    torch.testing.assert_close(*nats, rtol=1e-3, atol=1e-3)
    assert tokens[0] == tokens[1]


def test_questions_are_answered_from_texts_and_from_a_store(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    found, settings = [], AskSettings(tokens_per_memory=4)
    for number, model in enumerate(pair("llama", tokenizer)):
        session = DocumentSession(model, settings)
        session.read(CHARTER, name="a")
        with TextStore.open(
            tmp_path / str(number), SlotCodec(model, tokens_per_memory=4), write=True, bits=16
        ) as store:
            store.remember([("a", CHARTER)])
            stored = DocumentSession(model, settings)
            stored.read_stored(store, "a")
            found.append([x.nats(QUESTION, ["April", "May"]) for x in (session, stored)])
            session.ask(QUESTION, max_new_tokens=4)
            stored.ask(QUESTION, max_new_tokens=4)
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=0.02)


def test_a_session_goes_beyond_positions_and_reads_memories_more_sparsely(tokenizer: PreTrainedTokenizerFast) -> None:
    here, there = pair("llama", tokenizer)
    found = []
    for model in (here, there):
        session = SlotSession(model, tokens_per_memory=2, window=8, max_positions=64, beyond="overlap")
        session.read_tokens(ids(90)[0])
        memories = session.memories(behind=PROMPT)
        sparser = model.fewer(model.memories(ids(TEXT), tokens_per_memory=2), tokens_per_memory=2)
        found.append([logits(model, ids(PROMPT), x).cpu() for x in (memories, sparser)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_share_of_the_gain_is_that_of_the_processor(tokenizer: PreTrainedTokenizerFast, corpus: Path) -> None:
    settings = ContextGainSettings(rows=3, context=64, window=4, scored=4, ratios=(2, 8), batch_size=2)
    one, other = (
        {m.name: m.value for m in context_gain(x, load_documents(str(corpus)), settings, split="all")}
        for x in pair("llama", tokenizer)
    )
    assert one.keys() == other.keys()
    for name in (name for name in one if name.startswith("loss/")):
        assert one[name] == pytest.approx(other[name], abs=1e-3), name


def test_the_harness_scores_as_on_the_processor(tokenizer: PreTrainedTokenizerFast) -> None:
    with_padding = copy.deepcopy(tokenizer)
    with_padding.add_special_tokens({"pad_token": "<|padding|>"})
    asked = [scored(*request) for request in REQUESTS]
    one, other = (
        SlotLM(x, tokens_per_memory=3, memory_after=8, batch_size=3).loglikelihood(asked, disable_tqdm=True)
        for x in pair("llama", with_padding)
    )
    assert [nats for nats, _ in one] == pytest.approx([nats for nats, _ in other], abs=1e-2)


def test_a_writer_is_trained_read_and_trained_further(decoder: Path, corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    sizes = [
        "--model.chunk_length",
        "16",
        "--model.num_chunks",
        "3",
        "--model.scored_tokens",
        "4",
        "--model.fact_share",
        "0.5",
    ]
    given = ["--decoder", str(decoder), "--text", str(corpus), "--steps", "2", *sizes]
    main(["train", "memory-pretrained", *given, "--out", str(tmp_path / "run")])
    model = MemoryDecoder.from_pretrained(str(tmp_path / "run"), device_map="cuda")
    assert model.decoder.device.type == "cuda"
    assert model.generate("the people", model.memories(["of this great nation"], tokens_per_memory=2), max_new_tokens=2)
