"""Stores of a pretrained decoder's keys and values: what is read is what was encoded, and the text itself is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.errors import ConfigError, DamagedStoreError, StoreError
from memlm.models import SlotWriterConfig
from memlm.models.slots import EncodingSettings, FitSettings, MemoryDecoder, SlotMemories
from memlm.models.slots.memories import joined
from memlm.models.slots.vectors import MemoryVectors
from memlm.session import SlotSession
from memlm.store import MemoryStore, SlotCodec, TextStore
from memlm.store import codec as codec_module
from tests.models.test_head_budgets import errors_of, with_heads
from tests.models.test_slots import FAMILIES, decoder_of, logits

SETTINGS = EncodingSettings(chunk_length=8, block_length=16, query_distance=4)
TEXT = "What a store keeps is what a decoder reads, behind any text; nothing else."
PROMPT = [3, 7, 11]


def codec_of(family: str, tokenizer: PreTrainedTokenizerFast, **options: Any) -> SlotCodec:
    options = {"tokens_per_memory": 2, **options}
    return SlotCodec(MemoryDecoder(decoder_of(family), tokenizer, SETTINGS), **options)


@pytest.fixture(scope="module")
def codec(tokenizer: PreTrainedTokenizerFast) -> SlotCodec:
    return codec_of("llama", tokenizer)


@pytest.fixture
def store(codec: SlotCodec, tmp_path: Path) -> TextStore:
    return written(tmp_path / "s", codec)


def written(folder: Path, codec: SlotCodec, **options: Any) -> TextStore:
    with TextStore.open(folder, codec, write=True, **options) as store:
        list(store.add([("a", [TEXT]), ("empty", [""]), ("one", ["x"])]))
    return TextStore.open(folder, codec)


def chunk_by_chunk(codec: SlotCodec, bits: Any) -> SlotMemories:
    """Return the memories of TEXT, one chunk after the other."""
    [ids], model = codec.tokens([TEXT]), codec.model
    settings: dict[str, Any] = {**vars(codec.encoding), "fit": FitSettings(bits=bits)}
    parts = [model.memories([ids[i : i + 8]], tokens_per_memory=2, **settings) for i in range(0, len(ids), 8)]
    return joined(parts, [8 * i for i in range(len(parts))], model.reader.rotary)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("budgets", [False, True], ids=["equal", "budgets"])
@pytest.mark.parametrize("family", FAMILIES)
def test_stored_memories_are_those_of_each_chunk_by_itself(
    family: str, *, budgets: bool, bits: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    codec = codec_of(family, tokenizer)
    if budgets:
        codec = SlotCodec(with_heads(codec.model), tokens_per_memory=2)
    with written(tmp_path / "s", codec, bits=bits) as store:
        found = codec.memories(store.store.read("a"))
        assert store.recall("a") == TEXT
        assert (store.recall("empty"), store.recall("one")) == ("", "x")
    known = chunk_by_chunk(codec, bits)
    assert torch.equal(found.lengths, known.lengths)
    assert torch.equal(found.counts, known.counts)
    assert torch.equal(found.held, known.held)
    for layer, own in zip(found.layers, known.layers, strict=True):
        # least squares of few queries may have many solutions that are nearly as good; empty slots hold anything
        assert torch.equal(layer.positions[layer.held], own.positions[own.held])
        values, known_values = layer.values[layer.held], own.values[own.held]
        assert (values - known_values).norm() < 0.02 * known_values.norm()
    # biases are rounded to fp16
    read = (logits(codec.model, [PROMPT], memories) for memories in (found, known))
    torch.testing.assert_close(*read, rtol=0.02, atol=5e-3)


def test_budgets_of_another_decoder_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    model = codec_of("llama", tokenizer).model
    for layers, heads in ((3, 2), (1, 2), (2, 3)):
        encoding = replace(SETTINGS, mode="chunks", block_length=8, heads=errors_of(layers, heads))
        with pytest.raises(StoreError, match=f"of {layers} layers of {heads} heads and the decoder has 2 of 2"):
            SlotCodec(model, tokens_per_memory=2, encoding=encoding)


@pytest.mark.parametrize("injection", ["input", "layer", "code"])
def test_stored_vectors_are_those_of_each_chunk(
    injection: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = SlotWriterConfig(injection=injection)
    model = MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS, config=config)
    with written(tmp_path / "s", SlotCodec(model, tokens_per_memory=3), bits=16) as store:
        codec = store.codec
        assert isinstance(codec, SlotCodec)
        found, some = (codec.memories(store.store.read("a"), chunks=x) for x in (None, [1]))
        [ids] = codec.tokens([TEXT])
        session = SlotSession(model, tokens_per_memory=3, window=4)
        session.read_stored(store, "a")
        session.read("x")
        assert session.generate(max_new_tokens=2) is not None
        assert store.recall("a") == TEXT
    parts = [model.vectors([ids[i : i + 8]], tokens_per_memory=3) for i in range(0, len(ids), 8)]
    counts = torch.stack([part.counts for part in parts]).sum(0)
    known = model.from_vectors(MemoryVectors(torch.cat([part.vectors for part in parts], 1), counts))
    assert torch.equal(found.counts, known.counts)
    assert some.counts.tolist() == [4]
    torch.testing.assert_close(logits(model, [PROMPT], found), logits(model, [PROMPT], known), rtol=0.02, atol=5e-3)


def test_some_chunks_stand_where_they_stood(codec: SlotCodec, store: TextStore) -> None:
    document = store.store.read("a")
    every, some = codec.memories(document), codec.memories(document, chunks=[0, 2])
    assert int(some.lengths) == 25
    assert int(some.counts) == 9
    for layer, full in zip(some.layers, every.layers, strict=True):
        kept = torch.cat([full.keys[:, :, :5], full.keys[:, :, 9:13]], 2)
        torch.testing.assert_close(layer.keys, kept)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_session_reads_a_document_as_if_it_had_encoded_it(
    family: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    codec = codec_of(family, tokenizer)
    with written(tmp_path / "s", codec, bits=16) as store:
        session = SlotSession(codec.model, tokens_per_memory=2, window=4)
        session.read_tokens([5, 6, 7])
        session.read_stored(store, "a")
        session.read_stored(store, "one")
        [ids] = codec.tokens([TEXT])
        assert session.newest == []
        assert sum(block.tokens for block in session.blocks) == 3 + len(ids) + 1
        session.read_tokens(PROMPT)
        session.save(tmp_path / "session")
        again = SlotSession.load(tmp_path / "session", codec.model)
        assert session.generate(max_new_tokens=6) == again.generate(max_new_tokens=6)


def test_what_exceeds_the_positions_is_forgotten_oldest_first(codec: SlotCodec, store: TextStore) -> None:
    session = SlotSession(codec.model, tokens_per_memory=2, window=4, max_positions=60)
    for _ in range(3):
        session.read_stored(store, "a")
    [ids] = codec.tokens([TEXT])
    held = sum(block.tokens for block in session.blocks)
    assert session.stats().forgotten == 3 * len(ids) - held > 0
    assert 1 + held <= 60
    session.read("x")
    assert session.generate(max_new_tokens=2) is not None


def test_only_changed_texts_are_encoded_again(
    codec: SlotCodec, store: TextStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    monkeypatch.setattr(
        SlotCodec,
        "write",
        lambda self, texts, bits, write=SlotCodec.write: encoded.append(len(texts)) or write(self, texts, bits),
    )
    with TextStore.open(tmp_path / "s", codec, write=True) as again:
        outcomes = [x.outcome for x in again.add([("a", [TEXT]), ("one", ["y"])], replace=True)]
    assert outcomes == ["unchanged", "replaced"]
    assert encoded == [1]


def test_a_retrieval_encoder_finds_chunks(codec: SlotCodec, memory_run: Path, tmp_path: Path) -> None:
    with written(tmp_path / "s", codec, retrieval=str(memory_run)) as store:
        pass
    with TextStore.open(tmp_path / "s", codec, retrieval=str(memory_run)) as store:
        [hit] = store.search(TEXT[:20], 1, documents=["a"])
        assert store.text_of(hit) in TEXT


def test_mistakes_are_one_line(codec: SlotCodec, store: TextStore, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = store.store.folder
    with pytest.raises(StoreError, match="memories are not searched"):
        store.search("a", 1)
    with pytest.raises(StoreError, match="give no text back by themselves"):
        store.reading("a")
    torch.manual_seed(1)
    other = decoder_of("llama")
    next(other.parameters()).data += 1
    with pytest.raises(StoreError, match="written by another encoder"):
        TextStore.open(folder, SlotCodec(MemoryDecoder(other, tokenizer, SETTINGS), tokens_per_memory=2))
    with pytest.raises(StoreError, match="written with other settings of slots"):
        TextStore.open(folder, codec_of("llama", tokenizer, tokens_per_memory=4))
    with pytest.raises(StoreError, match="a memory for 2 tokens, not for 3"):
        TextStore.open(folder, codec, tokens_per_memory=3)
    with pytest.raises(StoreError, match="tokens_per_memory .9. must lie between 1 and the 8"):
        codec_of("llama", tokenizer, tokens_per_memory=9)
    with pytest.raises(StoreError, match="encoded by themselves"):
        SlotCodec(codec.model, encoding=replace(SETTINGS, mode="joint"))


def test_slots_are_not_asked_of_other_models(memory_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no decoder"):
        TextStore.open(tmp_path / "s", memory_run, write=True, tokens_per_memory=4)
    with written_by(memory_run, tmp_path / "t") as store, pytest.raises(StoreError, match="no memories of a decoder"):
        SlotSession(MemoryDecoder(decoder_of("llama"), store.codec.tokenizer, SETTINGS)).read_stored(store, "a")


def written_by(run: Path, folder: Path) -> TextStore:
    with TextStore.open(folder, run, write=True) as store:
        list(store.add([("a", [TEXT])]))
    return TextStore.open(folder, run)


@pytest.mark.parametrize("name", ["bias", "positions", "scale"])
def test_numbers_that_no_decoder_wrote_are_refused(name: str, codec: SlotCodec, store: TextStore) -> None:
    document = store.store.read("a")
    places = document.places
    assert places is not None
    if name == "bias":
        document = replace(document, places=replace(places, bias=places.bias + 50))
    elif name == "positions":
        document = replace(document, places=replace(places, positions=places.positions - 9))
    else:
        memories = document.memories
        assert memories.scale is not None
        document = replace(document, memories=replace(memories, scale=memories.scale * float("nan")))
    with pytest.raises(DamagedStoreError, match="holds no slots of this decoder; restore"):
        codec.memories(document)


def test_the_commands(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder, text, store = tmp_path / "decoder", tmp_path / "a.txt", tmp_path / "s"
    model = decoder_of("llama")
    model.config.max_position_embeddings = 1024
    model.save_pretrained(decoder)
    tokenizer.save_pretrained(decoder)
    text.write_text(TEXT * 3)
    remember = ["remember", str(text), "--store", str(store), "--model", str(decoder), "--tokens-per-memory", "4"]
    assert main([*remember, "--workers", "2"]) == 0
    assert "1 written; 1 documents" in capsys.readouterr().out
    assert main(remember[:4]) == 0
    assert "1 unchanged" in capsys.readouterr().out
    assert main(["recall", str(store), str(text)]) == 0
    assert capsys.readouterr().out == TEXT * 3
    assert main(["stats", str(store)]) == 0
    assert "a memory for 4 tokens, keys and values of 2 layers with 2 heads of 8 numbers" in capsys.readouterr().out
    assert main(["verify", str(store), "--texts"]) == 0
    capsys.readouterr()
    generate = ["generate", "so", "--store", str(store), "--read", str(text), "--max-new-tokens", "3"]
    assert main(generate) == 0
    assert "memories" in capsys.readouterr().err
    header = json.loads((store / "store.json").read_text())
    assert (header["format"], header["slots"]["tokens_per_memory"]) == (2, 4.0)
    assert MemoryStore.verify(store) == []


def test_stores_of_other_models_keep_their_format(memory_run: Path, tmp_path: Path) -> None:
    written_by(memory_run, tmp_path / "s").close()
    header = json.loads((tmp_path / "s" / "store.json").read_text())
    assert header["format"] == 1
    assert "slots" not in header
    assert codec_module.ROWS == 64
