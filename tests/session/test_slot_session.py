"""A pretrained decoder reads text of any length as memories, and goes on as if it had read them at once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from memlm.checksums import ignoring_checksums
from memlm.data import decode_ids
from memlm.errors import CheckpointError, UserError
from memlm.models.slots import EncodingSettings, MemoryDecoder
from memlm.session import SlotSession
from tests.models.test_slots import FAMILIES, decoder_of, ids

SETTINGS = EncodingSettings(mode="chunks", chunk_length=8, block_length=16, query_distance=4)
[TEXT] = ids(60)


def model_of(family: str, tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return MemoryDecoder(decoder_of(family), tokenizer, SETTINGS)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return model_of("llama", tokenizer)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_that_are_read_one_by_one_are_where_they_would_be_in_the_text(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = model_of(family, tokenizer)
    session = SlotSession(model, tokens_per_memory=1, window=4)
    for start in range(0, 60, 7):
        session.read_tokens(TEXT[start : start + 7])
    assert (session.stats().slots, session.newest) == (49, TEXT[48:])
    memories = session.memories()
    assert memories is not None
    together = model.memories([TEXT[:48]], tokens_per_memory=1, mode="chunks")
    assert torch.equal(memories.lengths, together.lengths)
    assert torch.equal(memories.counts, together.counts)
    with torch.no_grad():
        found, known = (model.decoder(**model.inputs([TEXT[48:]], x)).logits for x in (memories, together))
    torch.testing.assert_close(found, known, rtol=1e-3, atol=1e-3)


def test_blocks_beyond_the_positions_share_the_first_ones(model: MemoryDecoder) -> None:
    session = SlotSession(model, tokens_per_memory=1, window=4, max_positions=48, beyond="overlap")
    session.read_tokens(TEXT)
    memories = session.memories(behind=12)
    assert memories is not None
    assert (session.stats().forgotten, session.stats().slots) == (0, 49)
    # 48 tokens in three blocks before 12 positions; 13 more than there are
    assert memories.lengths.tolist() == [36]
    starts = [int(memories.layers[0].positions[0, 0, 1 + 16 * i]) for i in range(3)]
    assert starts == [1, 4, 20]
    alone = SlotSession(model, tokens_per_memory=1, window=4)
    alone.read_tokens(TEXT[:20])
    first = alone.memories()
    assert first is not None
    for found, own in zip(memories.layers, first.layers, strict=True):
        torch.testing.assert_close(found.keys[:, :, 1:17], own.keys[:, :, 1:])
    assert session.generate(max_new_tokens=8)


def test_texts_longer_than_the_decoders_own_positions_overlap(model: MemoryDecoder) -> None:
    session = SlotSession(model, tokens_per_memory=4, window=4, beyond="overlap")
    session.read_tokens(TEXT * 8)  # 480 tokens, 256 positions
    assert session.stats().forgotten == 0
    memories = session.memories()
    assert memories is not None
    assert int(memories.lengths) + 20 <= 256
    assert session.generate(max_new_tokens=4)


def test_blocks_keep_their_positions_where_they_may_not_overlap(model: MemoryDecoder) -> None:
    session = SlotSession(model, tokens_per_memory=1, window=4, max_positions=60)
    session.read_tokens(TEXT[:54])
    memories = session.memories()
    assert memories is not None
    held = sum(block.tokens for block in session.blocks)
    assert memories.lengths.tolist() == [1 + held]
    assert 1 + held + 16 + 4 > 60  # less room than a block and the window need


def test_a_session_that_lets_blocks_overlap_is_saved(model: MemoryDecoder, tmp_path: Path) -> None:
    session = SlotSession(model, tokens_per_memory=2, window=4, max_positions=48, beyond="overlap")
    session.read_tokens(TEXT)
    session.save(tmp_path / "s")
    again = SlotSession.load(tmp_path / "s", model)
    assert again.beyond == "overlap"
    assert session.generate(max_new_tokens=4) == again.generate(max_new_tokens=4)


def test_learned_positions_are_not_shared(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="learned positions cannot be shared by blocks"):
        SlotSession(model_of("gpt2", tokenizer), beyond="overlap", max_positions=60, window=4)
    with pytest.raises(UserError, match="beyond .'drop'. must be one of: forget, overlap"):
        SlotSession(model_of("llama", tokenizer), beyond="drop", max_positions=60, window=4)


def test_generation_goes_on_behind_memories_and_is_read(model: MemoryDecoder) -> None:
    session = SlotSession(model, tokens_per_memory=2, window=4)
    session.read_tokens(TEXT)
    memories, newest = session.memories(), list(session.newest)
    text = session.generate(max_new_tokens=12)
    inputs = model.inputs([newest], memories)
    known = model.decoder.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, len(newest) :]
    assert text == decode_ids(model.tokenizer, known.tolist())
    read = 16 * len(session.blocks) + len(session.newest)
    assert read == len(TEXT) + len(known)


def test_a_short_text_is_read_as_the_decoder_reads_it(model: MemoryDecoder) -> None:
    session = SlotSession(model)
    session.read_tokens(TEXT[:9])
    assert session.memories() is None
    first = model.reader.first_token_id
    row = torch.tensor([[first, *TEXT[:9]]])
    known = model.decoder.generate(row, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, 10:]
    assert session.generate(max_new_tokens=5) == decode_ids(model.tokenizer, known.tolist())


def test_memory_is_bounded_however_long_the_text(model: MemoryDecoder) -> None:
    session = SlotSession(model, tokens_per_memory=4, window=4, max_positions=70)
    most = 0
    for _ in range(30):
        session.read_tokens(TEXT)
        most = max(most, len(session.blocks))
        assert 1 + 16 * len(session.blocks) + len(session.newest) <= 70
    assert most == 4
    assert session.forgotten == 30 * 60 - 16 * len(session.blocks) - len(session.newest)
    session.generate(max_new_tokens=30)
    assert 1 + 16 * len(session.blocks) + len(session.newest) <= 70


def test_forks_and_saved_sessions_go_on_alike(model: MemoryDecoder, tmp_path: Path) -> None:
    session = SlotSession(model, tokens_per_memory=4, window=4, max_positions=80)
    session.read_tokens(TEXT)
    session.save(tmp_path / "talk")
    fork, again = session.fork(), SlotSession.load(tmp_path / "talk", model)
    assert again.stats() == fork.stats() == session.stats()
    assert again.max_positions == 80
    text = session.generate(max_new_tokens=10)
    assert fork.generate(max_new_tokens=10) == text
    assert again.generate(max_new_tokens=10) == text
    session.save(tmp_path / "talk")
    assert SlotSession.load(tmp_path / "talk", model).newest == session.newest


def test_a_session_of_another_decoder_or_a_damaged_one_is_refused(
    model: MemoryDecoder, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    session = SlotSession(model, tokens_per_memory=4, window=4)
    session.read_tokens(TEXT)
    session.save(tmp_path / "talk")
    other = copy.deepcopy(model.decoder)
    next(other.parameters()).data.neg_()
    with pytest.raises(CheckpointError, match="is of another decoder or adapter"):
        SlotSession.load(tmp_path / "talk", MemoryDecoder(other, tokenizer, SETTINGS))
    slots = tmp_path / "talk" / "slots.safetensors"
    tensors = load_file(slots)
    save_file({**tensors, "0.values": tensors["0.values"][..., :4].contiguous()}, slots)
    with pytest.raises(CheckpointError, match=r"slots\.safetensors' is damaged: it is not what was written"):
        SlotSession.load(tmp_path / "talk", model)
    with ignoring_checksums(), pytest.raises(CheckpointError, match="do not fit"):
        SlotSession.load(tmp_path / "talk", model)
    for name, wrong, words in (
        ("0.keys", tensors["0.keys"] * float("nan"), "not finite"),
        ("0.counts", tensors["0.counts"] + 1, "do not fit a block"),
        ("0.lengths", tensors["0.lengths"] * 0, "do not fit a block"),
        ("0.positions", tensors["0.positions"].float(), "another type"),
    ):
        save_file({**tensors, name: wrong}, slots)
        with ignoring_checksums(), pytest.raises(CheckpointError, match=words):
            SlotSession.load(tmp_path / "talk", model)
    save_file(tensors, slots)
    file = tmp_path / "talk" / "slot_session.json"
    file.write_text(file.read_text().replace('"newest": [', '"newest": [300, '))
    with ignoring_checksums(), pytest.raises(CheckpointError, match="has token 300, the decoder 300 tokens"):
        SlotSession.load(tmp_path / "talk", model)
    slots.write_bytes(slots.read_bytes()[:100])
    file.write_text(file.read_text().replace("300, ", "3, "))
    with ignoring_checksums(), pytest.raises(CheckpointError, match=r"slots\.safetensors"):
        SlotSession.load(tmp_path / "talk", model)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept.txt").write_text("kept")
    with pytest.raises(UserError, match="holds something else than memlm wrote"):
        session.save(tmp_path / "other")
    assert (tmp_path / "other" / "kept.txt").read_text() == "kept"


def test_settings_and_requests_that_do_not_fit(model: MemoryDecoder, tokenizer: PreTrainedTokenizerFast) -> None:
    learned = SlotSession(model_of("gpt2", tokenizer), window=4)
    with pytest.raises(UserError, match="the 256 positions are used up, and learned"):
        learned.read_tokens(TEXT * 5)
    for settings in ({"tokens_per_memory": 0}, {"window": 0}, {"max_positions": 20}, {"max_positions": 257}):
        with pytest.raises(UserError, match=next(iter(settings))):
            SlotSession(model, **settings)  # type: ignore[arg-type]
    session = SlotSession(model)
    with pytest.raises(UserError, match="nothing was read"):
        session.generate()
    session.read_tokens(TEXT[:5])
    with pytest.raises(UserError, match="must lie between 1 and 250"):
        session.generate(max_new_tokens=251)
