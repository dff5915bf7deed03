"""Sessions against one pass over the same memories and tokens, and what they promise users."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from memlm.checksums import ignoring_checksums
from memlm.errors import CheckpointError, UserError
from memlm.models import MemoryModelForCausalLM
from memlm.session.session import MemorySession, SessionStats
from memlm.store.codec import ChunkCodec
from memlm.store.text_store import TextStore
from tests.conftest import speech
from tests.models.test_memory import PROMPTED, VOCAB, documents, memory_model


class Ends(PreTrainedTokenizerBase):
    """No words, but the ids that sessions ask for."""

    pad_token_id: Any = 0
    eos_token_id: Any = 1

    def __init__(self) -> None: ...


TOKENIZER = Ends()
ENDLESS = {"do_sample": False, "eos_token_id": None}


def session_of(name: str, *, rows: int = 1, **options: Any) -> MemorySession:
    return MemorySession((memory_model(name), TOKENIZER), rows=rows, **{"fidelity": 0.0, **options})


def one_pass(model: MemoryModelForCausalLM, ids: list[int], count: int) -> list[int]:
    """The slow way: the whole document again for each token."""
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1].clone()
        logits[[0, VOCAB]] = -torch.inf
        ids = [*ids, int(logits.argmax())]
    return ids[-count:]


@pytest.mark.parametrize("name", [n for n in PROMPTED if n != "no memory"])
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_generation_equals_one_pass_over_the_same_text(name: str, options: dict[str, Any]) -> None:
    model = memory_model(name)
    if options.get("cache_implementation") and not getattr(model.decoder, "_can_compile_fullgraph", False):
        pytest.skip("this decoder has no static cache")
    ids = documents(2, 7)
    texts = [ids[0].tolist(), ids[1, :4].tolist()]
    together = session_of(name, rows=2)
    together.read_tokens(texts)
    prompt = together.prompt()
    logits = model(**model.prepare_inputs_for_generation(**prompt, use_cache=False)).logits[:, -1]
    written = together.generate_tokens(max_new_tokens=8, **ENDLESS, **options)
    for row, text in enumerate(texts):
        torch.testing.assert_close(logits[row], model(torch.tensor([text])).logits[0, -1], rtol=1e-4, atol=1e-4)
        assert written[row] == one_pass(model, text, 8)
        alone = session_of(name)
        alone.read_tokens([text])
        assert alone.generate_tokens(max_new_tokens=8, **ENDLESS, **options)[0] == written[row]
        assert alone.stats() == together.stats(row)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_it_does_not_matter_in_which_pieces_a_text_comes(sizes: list[int]) -> None:
    text = documents(1, sum(sizes))[0]
    whole, pieces = session_of("llama decoder"), session_of("llama decoder")
    whole.read_tokens([text.tolist()])
    for piece in text.split(sizes):
        pieces.read_tokens([piece.tolist()])
    assert whole.stats() == pieces.stats()
    assert whole.stats().newest == (len(text) - 1) % 4 + 1
    for a, b in zip(whole.histories[0].chunks, pieces.histories[0].chunks, strict=True):
        torch.testing.assert_close(a, b)


def test_generation_goes_on_for_ever_at_bounded_memory() -> None:
    session = session_of("llama decoder", max_positions=8)
    session.read_tokens([documents(1, 3)[0].tolist()])
    written = session.generate_tokens(max_new_tokens=60, **ENDLESS)[0]
    assert len(written) == 60
    assert session.stats() == SessionStats(memories=4, as_tokens=0, forgotten=11, newest=3, positions=11)
    # what is forgotten is as if it had never been read
    fresh = session_of("llama decoder", max_positions=8)
    fresh.read_tokens([[*documents(1, 3)[0].tolist(), *written][-19:]])
    assert session.generate_tokens(max_new_tokens=3, **ENDLESS) == fresh.generate_tokens(max_new_tokens=3, **ENDLESS)


def test_unfaithful_chunks_are_read_as_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of("llama decoder", fidelity=0.6)
    ids = documents(1, 14)[0]
    right = ids[:12].view(3, 4).clone()
    right[0, 0] += 1  # three of four
    right[1, :2] += 1  # two of four
    monkeypatch.setattr(
        session.model, "decode", lambda _: torch.nn.functional.one_hot(right, VOCAB + 1).float(), raising=False
    )
    session.read_tokens([ids.tolist()])
    assert session.stats() == SessionStats(memories=2, as_tokens=1, forgotten=0, newest=2, positions=2 + 4 + 2 + 2)
    prompt = session.prompt()
    slots = prompt["input_ids"][0] == VOCAB
    assert slots.tolist() == [True] * 2 + [False] * 4 + [True] * 2 + [False] * 2
    assert prompt["input_ids"][0, ~slots].tolist() == [*ids[4:8].tolist(), *ids[12:].tolist()]
    assert len(session.generate_tokens(max_new_tokens=2, **ENDLESS)[0]) == 2


def test_forks_go_their_own_ways() -> None:
    session = session_of("llama decoder")
    session.read_tokens([documents(1, 9)[0].tolist()])
    fork = session.fork()
    one = fork.generate_tokens(max_new_tokens=9, **ENDLESS)
    assert session.stats().newest == 1
    assert session.generate_tokens(max_new_tokens=9, **ENDLESS) == one


def test_sampling_is_the_same_for_the_same_seed_and_beams_work() -> None:
    found = []
    for _ in range(2):
        session = session_of("llama decoder", rows=2)
        session.read_tokens(documents(2, 6).tolist())
        torch.manual_seed(3)
        found.append(session.generate_tokens(max_new_tokens=9, do_sample=True, temperature=2.0, eos_token_id=None))
    assert found[0] == found[1]
    session = session_of("llama decoder")
    session.read_tokens([documents(1, 6)[0].tolist()])
    assert len(session.generate_tokens(max_new_tokens=9, num_beams=3, do_sample=False, eos_token_id=None)[0]) == 9


def test_the_end_of_a_text_ends_its_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_of("llama decoder", rows=2)
    texts = documents(2, 6).tolist()
    session.read_tokens(texts)
    whole = session.fork().generate_tokens(max_new_tokens=12, **ENDLESS)
    end = next(t for t in whole[0] if t not in whole[1])
    stopped = session.generate_tokens(max_new_tokens=12, do_sample=False, eos_token_id=end)
    assert stopped == [whole[0][: whole[0].index(end)], whole[1]]


class Listener(BaseStreamer):
    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_is_given_the_prompt_once_and_each_token() -> None:
    session, listener = session_of("llama decoder"), Listener()
    session.read_tokens([documents(1, 6)[0].tolist()])
    written = session.generate_tokens(max_new_tokens=11, streamer=listener, **ENDLESS)[0]
    assert listener.given == [documents(1, 6)[0, 4:].tolist(), *([token] for token in written)]
    assert listener.ends == 1


def test_saved_sessions_go_on_bit_for_bit(memory_run: Path, tmp_path: Path) -> None:
    session = MemorySession(memory_run, rows=2, fidelity=0.5, max_positions=4)
    session.read([speech(1, 20), speech(2, 3)])
    session.save(tmp_path / "session")
    session.save(tmp_path / "session")
    loaded = MemorySession.load(tmp_path / "session", memory_run)
    assert (loaded.fidelity, loaded.window) == (0.5, 4)
    assert [loaded.stats(i) for i in range(2)] == [session.stats(i) for i in range(2)]
    assert loaded.generate(["a", "b"], max_new_tokens=7, do_sample=False) == session.generate(
        ["a", "b"], max_new_tokens=7, do_sample=False
    )


def test_texts_in_and_out(memory_run: Path) -> None:
    session = MemorySession(memory_run, fidelity=0.0)
    session.read(iter(["the people", " of this ", "nation"]))
    text = session.generate(" have", max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert isinstance(text, str)
    other = MemorySession(memory_run, fidelity=0.0)
    assert [text] == other.generate(
        ["the people of this nation have"], max_new_tokens=6, do_sample=False, eos_token_id=None
    )


def test_stored_documents_are_read_as_they_are_kept(memory_run: Path, tmp_path: Path) -> None:
    codec, text = ChunkCodec.load(memory_run), speech(7, 12)
    with TextStore.open(tmp_path / "s", codec, write=True, bits=16) as store:
        list(store.add([("a", [text]), ("empty", [""])]))
        trusting, strict = (MemorySession((codec.model, codec.tokenizer), fidelity=f) for f in (0.0, 1.0))  # type: ignore[arg-type]
        trusting.read_stored(store, "a")
        trusting.read_stored(store, "empty")
        live = MemorySession((codec.model, codec.tokenizer), fidelity=0.0)  # type: ignore[arg-type]
        live.read(text)
        assert trusting.stats() == live.stats()
        assert trusting.histories[0].newest == live.histories[0].newest
        for a, b in zip(trusting.histories[0].chunks, live.histories[0].chunks, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
        # this model of seconds gives nothing back: all of it is read as tokens, which are exact
        strict.window = 10_000
        strict.read_stored(store, "a")
        ids = codec.tokens([text])[0]
        chunks = [*strict.histories[0].chunks, strict.histories[0].newest]
        assert [t for c in chunks for t in (c if isinstance(c, list) else [])] == ids
        trusting.read_stored(store, "a")
        assert trusting.stats().memories >= live.stats().memories


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: s.read(["a", "b"][:1] * 3), "3 texts do not fit 2 rows"),
        (lambda s: s.read("a"), "1 text does not fit 2 rows"),
        (lambda s: s.read_tokens([[3]]), "1 lists of tokens do not fit 2 rows"),
        (lambda s: s.generate_tokens(), "row 0 has read nothing"),
        (lambda s: s.generate_tokens(max_new_tokens=-1), "max_new_tokens"),
        (lambda s: s.generate_tokens(num_return_sequences=2), "'num_return_sequences' is set by the session"),
        (lambda s: s.generate_tokens(streamer=Listener()), "a streamer shows one row and the session has 2"),
    ],
)
def test_mistakes_are_one_line(act: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        act(session_of("llama decoder", rows=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fidelity": 1.5}, "fidelity"),
        ({"rows": 0}, "rows"),
        ({"max_positions": 10**6}, "max_positions .* must lie between 0 and"),
        ({"max_positions": -1}, "max_positions"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        session_of("llama decoder", **options)


def test_models_without_prompts_and_other_kinds_are_refused(finished_run: Path) -> None:
    with pytest.raises(UserError, match="prompts need masked fillers"):
        session_of("paper")
    with pytest.raises(CheckpointError, match="not 'memlm_memory'"):
        MemorySession(finished_run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.joinpath("session.json").unlink(), "cannot read"),
        (lambda f: f.joinpath("session.json").write_text("[]"), "holds a list"),
        (lambda f: f.joinpath("session.json").write_text('{"format": 9}'), "format 9, this memlm reads up to 1"),
        (lambda f: f.joinpath("session.json").write_text('{"format": 1}'), "is not a saved session"),
        (lambda f: f.joinpath("session.safetensors").write_bytes(b"x"), "cannot read"),
        (
            lambda f: f.joinpath("session.json").write_text(
                f.joinpath("session.json").read_text().replace('"forgotten"', '"chunks": [null], "forgotten"')
            ),
            "does not hold",
        ),
        (
            lambda f: f.joinpath("session.json").write_text(
                f.joinpath("session.json").read_text().replace('"newest": [', '"newest": [99999,')
            ),
            "names token 99999 and the model has 300",
        ),
    ],
)
def test_damaged_sessions_are_one_line(memory_run: Path, tmp_path: Path, damage: Any, message: str) -> None:
    session = MemorySession(memory_run, fidelity=0.0)
    session.read(speech(1, 20))
    session.save(tmp_path / "s")
    damage(tmp_path / "s")
    with pytest.raises(CheckpointError, match="is not what was written|cannot read"):
        MemorySession.load(tmp_path / "s", memory_run)
    with ignoring_checksums(), pytest.raises(CheckpointError, match=message):
        MemorySession.load(tmp_path / "s", memory_run)


def test_another_models_session_is_refused(memory_run: Path, tmp_path: Path) -> None:
    session = MemorySession(memory_run)
    session.save(tmp_path / "s")
    with torch.no_grad():
        next(session.model.parameters()).add_(1.0)
    with pytest.raises(CheckpointError, match="was saved with another model"):
        MemorySession.load(tmp_path / "s", (session.model, session.tokenizer))
