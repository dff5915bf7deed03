"""The share of the full-context gain: known at its ends, and the same in every batch size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.data import Document
from memlm.errors import DataError
from memlm.evaluation.memory.context_gain import ContextGainSettings, context_gain, gain_rows
from memlm.evaluation.memory.kept_losses import KeptLosses
from memlm.models.slots import EncodingSettings, MemoryDecoder
from tests.conftest import speech
from tests.models.test_slots import decoder_of

SETTINGS = ContextGainSettings(rows=12, context=24, window=4, scored=4, ratios=(1, 4), batch_size=5)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return MemoryDecoder(decoder_of("llama"), tokenizer, EncodingSettings(chunk_length=8, block_length=24))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(str(i), speech(i, 60)) for i in range(11)]


def test_all_tokens_give_the_whole_gain_and_rows_do_not_depend_on_their_batch(
    model: MemoryDecoder, documents: list[Document]
) -> None:
    done: list[int] = []
    found = {m.name: m for m in context_gain(model, documents, SETTINGS, modes=["joint"], on_batch=done.append)}
    assert done == [5, 10, 12]
    assert found["context_gain/joint/1"].value == pytest.approx(1, abs=1e-4)
    assert found["context_gain/observed attention/1"].value == pytest.approx(1, abs=1e-4)
    assert found["loss/alone"].value != pytest.approx(found["loss/full"].value, abs=1e-4)
    assert found["loss/joint/4"].low is not None
    assert found["loss/joint/4"].interval_note == "bootstrap over 11 documents"
    saved = found["loss/truncation/4"].value - found["loss/joint/4"].value
    assert found["saved/joint/4 over truncation"].value == pytest.approx(saved, abs=1e-6)
    single = ContextGainSettings(**{**vars(SETTINGS), "batch_size": 1})
    alone = {m.name: m.value for m in context_gain(model, documents, single, modes=["joint"])}
    # another text's memories are those of the batch's neighbour, of which a batch of one has none
    same = [name for name in alone if "another" not in name and "saved" not in name and "context_gain" not in name]
    assert [found[name].value for name in same] == pytest.approx([alone[name] for name in same], abs=1e-3)


def test_runs_of_several_seeds_have_their_mean(
    tokenizer: PreTrainedTokenizerFast, model: MemoryDecoder, documents: list[Document]
) -> None:
    # another fit stands in for other adapters
    other = MemoryDecoder(model.decoder, tokenizer, EncodingSettings(chunk_length=8, block_length=8))
    found = context_gain(model, documents, SETTINGS, modes=["chunks"], others=[other])
    value = {m.name: m.value for m in found}
    runs = [value[f"loss/{name}/4"] for name in ("chunks", "chunks, run 2")]
    assert runs[0] != runs[1]
    assert value["loss/chunks, mean of 2 runs/4"] == pytest.approx(sum(runs) / 2)
    others = [value[f"loss/{name}, another text's/4"] for name in ("chunks", "chunks, run 2")]
    saved = value["saved/chunks, mean of 2 runs/4 over chunks, mean of 2 runs, another text's"]
    assert saved == pytest.approx(sum(others) / 2 - sum(runs) / 2)


def test_memories_further_on_are_worth_what_all_tokens_there_are(
    model: MemoryDecoder, documents: list[Document]
) -> None:
    far = ContextGainSettings(**{**vars(SETTINGS), "distance": 40})
    near, found = (
        {m.name: m for m in context_gain(model, documents, settings, modes=["joint"])} for settings in (SETTINGS, far)
    )
    assert found["context_gain/joint/1"].value == pytest.approx(1, abs=1e-4)
    assert found["loss/full"].value != pytest.approx(near["loss/full"].value, abs=1e-4)
    assert "40 positions between" in found["loss/full"].protocol
    with pytest.raises(DataError, match=r"distance \(-1\)"):
        ContextGainSettings(distance=-1)


def test_sparser_memories_are_made_of_denser_ones(model: MemoryDecoder, documents: list[Document]) -> None:
    made = ContextGainSettings(**{**vars(SETTINGS), "fewer_from": 2})
    found = {m.name: m.value for m in context_gain(model, documents, made, modes=["chunks"])}
    assert found["loss/chunks, made of 2/1"] == pytest.approx(found["loss/chunks/1"], abs=1e-4)
    assert found["loss/chunks, made of 2/4"] != pytest.approx(found["loss/chunks/4"], abs=1e-4)
    with pytest.raises(DataError, match=r"fewer_from \(0\)"):
        ContextGainSettings(fewer_from=0)


@pytest.mark.parametrize("ratios", [(), (0,), (7,)])
def test_ratios_leave_room_for_recent_tokens(ratios: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="must lie between 1 and 6 for a context of 24 tokens"):
        ContextGainSettings(context=24, ratios=ratios)


def test_rows_come_from_documents_in_turn(model: MemoryDecoder, documents: list[Document]) -> None:
    rows = gain_rows(documents, model.tokenizer, SETTINGS)
    assert rows.ids.shape == (12, 32)
    assert rows.document.tolist() == [*range(11), 0]
    assert torch.equal(rows.ids, gain_rows(documents, model.tokenizer, SETTINGS).ids)
    with pytest.raises(DataError, match="none of 11 documents has the 5008 tokens of a row"):
        gain_rows(documents, model.tokenizer, ContextGainSettings(**{**vars(SETTINGS), "context": 5000}))


def test_a_stopped_measurement_goes_on_and_computes_nothing_twice(
    model: MemoryDecoder, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "losses.jsonl"
    whole = context_gain(model, documents, SETTINGS, modes=["chunks"], kept=KeptLosses(file))
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    assert context_gain(model, documents, SETTINGS, modes=["chunks"], kept=KeptLosses(file)) == whole
    monkeypatch.setattr(model, "encode", None)
    assert context_gain(model, documents, SETTINGS, modes=["chunks"], kept=KeptLosses(file)) == whole


def test_kept_losses_are_of_the_same_settings_only(
    tokenizer: PreTrainedTokenizerFast, model: MemoryDecoder, documents: list[Document], tmp_path: Path
) -> None:
    kept = KeptLosses(tmp_path / "losses.jsonl")
    other = MemoryDecoder(model.decoder, tokenizer, EncodingSettings(chunk_length=8, block_length=8))
    far = ContextGainSettings(**{**vars(SETTINGS), "distance": 5})
    for measured, settings in ((model, SETTINGS), (other, SETTINGS), (model, far)):
        again, fresh = (
            context_gain(measured, documents, settings, modes=["chunks"], kept=k) for k in (kept, KeptLosses())
        )
        assert again == fresh


@pytest.mark.parametrize(
    "line", ["{}", "[1]", "7", "x", '{"key": 1, "losses": [["a", 1]]}', '{"key": 1, "losses": [["a", 1, "b"]]}']
)
def test_a_file_of_other_lines_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "losses.jsonl"
    file.write_text(f"{line}\n")
    with pytest.raises(DataError, match="line 1 of .* holds no losses; give another file"):
        KeptLosses(file)
