"""Text -> memories -> text: exact round trips, batching, refusals, loading."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlm.data import encode_texts
from memlm.errors import CheckpointError, DataError, MemoryShapeError, TokenizerError
from memlm.inference import TextMemory, load
from tests.doubles import CHUNK, mirror, small_model, small_tokenizer

TOKENIZER = small_tokenizer()
TEXTS = ["the cat sat", "", "a much longer text about the mat, the cat and 漢字 🙂 too", "<eos> is text here"]


def exact(**options: Any) -> TextMemory:
    return TextMemory(mirror(len(TOKENIZER)), TOKENIZER, **options)


def test_texts_of_any_length_come_back() -> None:
    memory = exact()
    assert memory.regenerate(memory.remember(TEXTS)) == TEXTS


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=4))
def test_every_text_comes_back_through_an_exact_memory(texts: list[str]) -> None:
    memory = exact(batch_size=3)
    assert memory.regenerate(memory.remember(texts)) == texts


def test_one_tensor_per_text_with_as_many_chunks_as_it_needs() -> None:
    counts = [-(-len(ids) // CHUNK) for ids in encode_texts(TOKENIZER, TEXTS)]
    assert [tuple(m.shape) for m in exact().remember(TEXTS)] == [(n, 1, CHUNK) for n in counts]
    assert counts[1] == 0


def test_a_single_string_is_one_text() -> None:
    assert len(exact().remember("the cat")) == 1


def test_chunks_of_all_texts_share_batches() -> None:
    model = mirror(len(TOKENIZER))
    kept = TextMemory(model, TOKENIZER, batch_size=4).remember(TEXTS)
    total = sum(map(len, kept))
    assert model.encoded_batches == tuple([4] * (total // 4) + [total % 4] * (total % 4 > 0))


def test_batching_changes_nothing() -> None:
    model = small_model(len(TOKENIZER))
    alone = [TextMemory(model, TOKENIZER, batch_size=1).remember(text)[0] for text in TEXTS]
    for a, b in zip(alone, TextMemory(model, TOKENIZER).remember(TEXTS), strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradients_and_evaluation_mode() -> None:
    model = small_model(len(TOKENIZER)).train()
    kept = TextMemory(model, TOKENIZER).remember("the cat")[0]
    assert not kept.requires_grad
    assert not model.training


def test_fidelity_counts_tokens_in_place() -> None:
    wrong = TextMemory(mirror(len(TOKENIZER), wrong_at=(0,)), TOKENIZER)
    ids = encode_texts(TOKENIZER, TEXTS)
    expected = [1 - -(-len(i) // CHUNK) / len(i) if i else 1.0 for i in ids]
    assert wrong.fidelity(TEXTS) == pytest.approx(expected)
    assert exact().fidelity(TEXTS) == [1.0] * len(TEXTS)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(MemoryShapeError, match=rf"\(2, 1, 5\).*\(chunks, 1, {CHUNK}\)"):
        exact().regenerate([torch.zeros(2, 1, 5)])
    with pytest.raises(MemoryShapeError, match="one such tensor per text"):
        exact().regenerate(list(torch.zeros(2, 1, CHUNK)))


def test_memories_that_are_not_finite_are_refused() -> None:
    with pytest.raises(MemoryShapeError, match=f"1 of {CHUNK} numbers"):
        exact().regenerate([torch.tensor([[[float("nan")] + [0.0] * (CHUNK - 1)]])])


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(DataError, match="surrogate"):
        exact().remember(["fine", "\ud800"])


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(TokenizerError, match=rf"{len(TOKENIZER)} tokens and the model {len(TOKENIZER) + 1}"):
        TextMemory(small_model(len(TOKENIZER) + 1), TOKENIZER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_model(len(TOKENIZER)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_folder_gives_the_same_memories(folder: Path) -> None:
    expected = TextMemory(small_model(len(TOKENIZER)), TOKENIZER).remember(TEXTS)
    for a, b in zip(expected, load(folder).remember(TEXTS), strict=True):
        assert torch.equal(a, b)


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")


def _other_kind(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "llama"}))


def _other_size(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_encoder_layers": 2}))


DAMAGE: dict[str, Any] = {
    "no config": lambda f: (f / "config.json").unlink(),
    "config not JSON": lambda f: (f / "config.json").write_text("{"),
    "config a list": lambda f: (f / "config.json").write_text("[]"),
    "another model": _other_kind,
    "another size": _other_size,
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "truncated weights": _truncate,
    "garbled weights": _garble,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_one_line(folder: Path, name: str) -> None:
    DAMAGE[name](folder)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert str(folder) in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder at"):
        load(tmp_path / "nothing")


def test_no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(TokenizerError):
        load(folder)
