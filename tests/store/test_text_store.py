"""Texts in a store: every byte comes back, whatever happened to the store, the process or the precision."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlm.data import corpus as parts_module
from memlm.data.corpus import parts_of, stream_file
from memlm.errors import CheckpointError, DamagedStoreError, DataError, StoreError, TokenizerError
from memlm.store import MemoryStore
from memlm.store import codec as codec_module
from memlm.store import ingest as ingest_module
from memlm.store import memory_store as store_module
from memlm.store.codec import ChunkCodec
from memlm.store.text_store import TextStore
from tests.conftest import speech
from tests.store.texts import mixed_text

Kind = Literal["autoencoder", "memory"]
KINDS: tuple[Kind, ...] = ("autoencoder", "memory")


@pytest.fixture(scope="session")
def codecs(finished_run: Path, memory_run: Path) -> dict[Kind, ChunkCodec]:
    return {"autoencoder": ChunkCodec.load(finished_run), "memory": ChunkCodec.load(memory_run)}


def remembered(folder: Path, codec: ChunkCodec, texts: dict[str, str], **options: object) -> list[str]:
    with TextStore.open(folder, codec, write=True) as store:
        return [told.outcome for told in store.add(((n, [t]) for n, t in texts.items()), **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_a_thousand_mixed_documents_come_back_byte_for_byte(
    kind: Kind, bits: Literal[8, 4], codecs: dict[Kind, ChunkCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, texts = codecs[kind], {f"{i}.txt": mixed_text(i) for i in range(1000)}
    with TextStore.open(tmp_path / "s", codec, write=True, bits=bits) as store:
        told = list(store.add((n, [t]) for n, t in texts.items()))
        assert [one.id for one in told] == list(texts)
        store.delete([f"{i}.txt" for i in range(0, 1000, 7)])
        store.store.compact()
    assert MemoryStore.verify(tmp_path / "s") == []
    kept = {n: t for i, (n, t) in enumerate(texts.items()) if i % 7}
    # one document at a time is read in other batches than it was written in
    with TextStore.open(tmp_path / "s", codec) as store:
        assert all(store.recall(n) == t for n, t in kept.items())
    monkeypatch.setattr(codec_module, "ROWS", 3)
    with TextStore.open(tmp_path / "s", codec) as store:
        assert all(store.recall(n) == t for n, t in list(kept.items())[:100])


def test_another_process_and_thread_count_change_nothing(memory_run: Path, tmp_path: Path) -> None:
    texts = {f"{i}": mixed_text(i) + speech(i) for i in range(12)}
    remembered(tmp_path / "s", ChunkCodec.load(memory_run), texts)
    program = f"""
import sys, torch
torch.set_num_threads(2)
from memlm.store.text_store import TextStore
store = TextStore.open({str(tmp_path / "s")!r}, {str(memory_run)!r})
sys.stdout.buffer.write("\\x1d".join(store.recall(str(i)) for i in range(12)).encode())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout.decode()
    assert found.split("\x1d") == list(texts.values())


def test_autocast_and_double_precision_change_nothing(codecs: dict[Kind, ChunkCodec], tmp_path: Path) -> None:
    codec, texts = codecs["memory"], {str(i): speech(i) for i in range(4)}
    remembered(tmp_path / "s", codec, texts)
    with TextStore.open(tmp_path / "s", codec) as store:
        with torch.autocast("cpu", torch.bfloat16):
            assert all(store.recall(n) == t for n, t in texts.items())
        read = codec.model.decode
        for dtype in (torch.float64, torch.bfloat16):
            other = lambda m, dtype=dtype: read(m.float()).to(dtype)  # noqa: E731
            codec.model.decode = other  # type: ignore[method-assign]
            try:
                assert all(store.recall(n) == t for n, t in texts.items())
            finally:
                codec.model.decode = read  # type: ignore[method-assign]


def test_what_is_there_is_left_and_another_text_needs_replace(codecs: dict[Kind, ChunkCodec], tmp_path: Path) -> None:
    codec = codecs["memory"]
    assert remembered(tmp_path / "s", codec, {"a": "one", "b": "two"}) == ["written", "written"]
    assert remembered(tmp_path / "s", codec, {"a": "one", "c": ""}) == ["unchanged", "written"]
    with pytest.raises(StoreError, match=r"'a' is in .* with another text; replace it"):
        remembered(tmp_path / "s", codec, {"d": "kept", "a": "other"})
    assert remembered(tmp_path / "s", codec, {"a": "other", "b": "two"}, replace=True) == ["replaced", "unchanged"]
    with TextStore.open(tmp_path / "s", codec) as store:
        assert [(e.id, store.recall(e.id)) for e in store.store.documents()] == [
            ("b", "two"),
            ("c", ""),
            ("a", "other"),
        ]


class Refused(Exception):
    """A failure while texts are read."""


def failing_after(*texts: tuple[str, str]) -> Iterator[tuple[str, list[str]]]:
    yield from ((name, [text]) for name, text in texts)
    raise Refused


def open_and_fail(folder: Path, codec: ChunkCodec, *texts: tuple[str, str]) -> None:
    with pytest.raises(Refused), TextStore.open(folder, codec, write=True) as store:
        list(store.add(failing_after(*texts)))


def test_a_failure_before_the_first_document_leaves_no_new_store(
    codecs: dict[Kind, ChunkCodec], no_leftovers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, folder = codecs["memory"], no_leftovers / "s"
    open_and_fail(folder, codec)
    assert not folder.exists()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    places = (
        (store_module, "write_header"),
        (TextStore, "_check"),
        (ChunkCodec, "write"),
        (store_module, "write_segment"),
    )
    for owner, name in places:
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, full)
            with pytest.raises((StoreError, OSError), match="No space left"):
                remembered(folder, codec, {"a": "one"})
        assert list(no_leftovers.iterdir()) == []
    assert remembered(folder, codec, {"a": "one"}) == ["written"]


def test_a_failure_leaves_what_was_there(
    codecs: dict[Kind, ChunkCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "_BATCH_CHARACTERS", 1)
    codec, folder = codecs["memory"], tmp_path / "s"
    with TextStore.open(folder, codec, write=True):
        pass  # an empty store that was asked for
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    open_and_fail(folder, codec)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    # what was committed before the failure stays, in a new store too
    open_and_fail(tmp_path / "new", codec, ("a", "kept"), ("b", "kept too"))
    with TextStore.open(tmp_path / "new", codec) as store:
        assert [entry.id for entry in store.store.documents()] == ["a"]
    # and so does a file of somebody else
    other = TextStore.open(tmp_path / "other", codec, write=True)
    for name in ("notes.txt", "segments/notes.txt"):
        (tmp_path / "other" / name).write_text("not memlm's")
    other.__exit__(Refused, Refused(), None)
    left = sorted(str(p.relative_to(tmp_path / "other")) for p in (tmp_path / "other").rglob("*"))
    assert left == ["notes.txt", "segments", "segments/notes.txt"]


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "PART", 50)


@pytest.mark.usefixtures("short_parts")
def test_long_texts_are_one_document_in_parts(codecs: dict[Kind, ChunkCodec], tmp_path: Path) -> None:
    codec = codecs["memory"]
    long, other = "".join(mixed_text(i) for i in range(60)), speech(1) * 2
    assert remembered(tmp_path / "s", codec, {"short": "x", "long": long}) == ["written", "written"]
    assert remembered(tmp_path / "s", codec, {"long": long}) == ["unchanged"]
    for text in (long + "!", long[:-1], "short", "y" + long):
        with pytest.raises(StoreError, match="with another text"):
            remembered(tmp_path / "s", codec, {"long": text})
    with TextStore.open(tmp_path / "s", codec) as store:
        assert store.recall("long") == long
        assert len(store.store) == 2
        assert store.store.stats().text_bytes == len(long.encode()) + 1
    for text, outcome in ((other, "replaced"), ("short now", "replaced"), (long, "replaced"), (other, "replaced")):
        assert remembered(tmp_path / "s", codec, {"long": text}, replace=True) == [outcome]
        with TextStore.open(tmp_path / "s", codec, write=True) as store:
            assert store.recall("long") == text
            store.store.compact()
            assert store.store.stats().dead_chunks == 0
    with TextStore.open(tmp_path / "s", codec, write=True) as store:
        store.delete(["long"])
        assert [entry.id for entry in store.store.entries()] == ["short"]
    assert MemoryStore.verify(tmp_path / "s") == []


@pytest.mark.usefixtures("short_parts")
def test_an_interrupted_long_text_is_not_visible_and_goes_on(
    codecs: dict[Kind, ChunkCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, text = codecs["memory"], speech(0) + speech(1)
    from memlm.store import ingest

    monkeypatch.setattr(ingest, "_BATCH_CHARACTERS", 100)

    def stopping() -> Iterator[str]:
        yield text[:900]
        raise KeyboardInterrupt

    with TextStore.open(tmp_path / "s", codec, write=True) as store:
        with pytest.raises(KeyboardInterrupt):
            list(store.add([("a", stopping())]))
        assert len(store.store) == 0
        assert len(list(store.store.entries())) > 8
        with pytest.raises(StoreError, match="no document 'a'"):
            store.recall("a")
    encoded: list[int] = []
    write = codec.write
    monkeypatch.setattr(codec, "write", lambda tokens, bits: encoded.append(len(tokens)) or write(tokens, bits))
    assert remembered(tmp_path / "s", codec, {"a": text}) == ["written"]
    assert sum(encoded) < len(list(parts_of([text]))) - 8
    with TextStore.open(tmp_path / "s", codec) as store:
        assert store.recall("a") == text


def test_uncorrected_reading_is_of_memories_alone(codecs: dict[Kind, ChunkCodec], tmp_path: Path) -> None:
    codec = codecs["memory"]
    remembered(tmp_path / "s", codec, {"a": speech(3)})
    with TextStore.open(tmp_path / "s", codec) as store:
        entry = store.store.entry("a")
        read = codec.tokens([store.reading("a")])[0]
        assert entry.num_correct < entry.tokens
        assert read


def test_fidelity_is_the_share_of_tokens_that_reading_gives(codecs: dict[Kind, ChunkCodec], tmp_path: Path) -> None:
    codec, text = codecs["autoencoder"], speech(5)
    remembered(tmp_path / "s", codec, {"a": text})
    with TextStore.open(tmp_path / "s", codec) as store:
        document = store.store.read("a")
        zeros = torch.zeros(len(document.tokens), codec.chunk_length)
        found = codec.read(document.memories, zeros.to(torch.uint8), zeros.long()).flatten()
        ids = torch.tensor(codec.tokens([text])[0])
        right = (found[: len(ids)] == ids).float()
        assert float(right.mean()) == pytest.approx(int(document.num_correct.sum()) / len(ids))
        chosen = store.tokens(document, [0, len(document.tokens) - 1])
        assert list(chosen.values()) == [
            part.tolist() for i, part in enumerate(ids.split(codec.chunk_length)) if i in chosen
        ]


@given(st.lists(st.text(max_size=120), max_size=6))
@settings(max_examples=50, deadline=None)
def test_parts_are_the_text_wherever_it_is_cut(pieces: list[str]) -> None:
    whole = "".join(pieces)
    patch = pytest.MonkeyPatch()
    patch.setattr(parts_module, "PART", 10)
    try:
        found = list(parts_of(pieces))
        assert "".join(found) == whole
        assert found == list(parts_of([whole]))
        assert all(len(part) <= 10 for part in found)
    finally:
        patch.undo()


def test_files_are_read_byte_for_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_BYTES", 3)
    content = "\ufeffline\r\nä€😀\n".encode()
    (tmp_path / "a").write_bytes(content)
    assert "".join(stream_file(tmp_path / "a")).encode() == content
    (tmp_path / "b").write_bytes(b"abcdefg\xff")
    with pytest.raises(DataError, match="not UTF-8 near byte 7"):
        list(stream_file(tmp_path / "b"))
    (tmp_path / "c").write_bytes("abcd€".encode()[:-1])
    with pytest.raises(DataError, match="not UTF-8 near byte 4"):
        list(stream_file(tmp_path / "c"))
    with pytest.raises(DataError, match="cannot read"):
        list(stream_file(tmp_path / "none"))


def test_bad_inputs_are_one_line(codecs: dict[Kind, ChunkCodec], tmp_path: Path) -> None:
    codec, other = codecs["memory"], codecs["autoencoder"]
    remembered(tmp_path / "s", codec, {"a": "one"})
    with pytest.raises(StoreError, match="written by another encoder"):
        TextStore.open(tmp_path / "s", other)
    with pytest.raises(StoreError, match="keeps numbers in 8 bits, not 4"):
        TextStore.open(tmp_path / "s", codec, write=True, bits=4)
    for documents, message in (
        ([("b", ["x"]), ("b", ["y"])], "'b' is given twice"),
        ([("", ["x"])], "an id of 0 bytes"),
        ([("b\x1f0", ["x"])], "control characters"),
        ([("b", ["\ud800"])], "half of a surrogate pair at character 0"),
    ):
        with TextStore.open(tmp_path / "s", codec, write=True) as store, pytest.raises(StoreError, match=message):
            list(store.add(documents))
    with TextStore.open(tmp_path / "s", codec) as store:
        assert [entry.id for entry in store.store.documents()] == ["a"]
        with pytest.raises(StoreError, match="open for reading"):
            list(store.add([("b", ["x"])]))
        with pytest.raises(StoreError, match="no document 'x'"):
            store.recall("x")
        with pytest.raises(StoreError, match="no document"):
            store.recall("../../etc/passwd")


def test_a_model_in_another_precision_is_refused(memory_run: Path) -> None:
    codec = ChunkCodec.load(memory_run)
    with pytest.raises(CheckpointError, match=r"in torch.bfloat16 .* must be in torch.float32"):
        ChunkCodec(codec.model.to(torch.bfloat16), codec.tokenizer)
    codec.tokenizer.add_tokens(["another"])
    with pytest.raises(TokenizerError, match="the tokenizer has"):
        ChunkCodec(codec.model.float(), codec.tokenizer)


def test_what_reads_perfectly_needs_no_correction_and_wrong_text_is_never_given_as_exact(
    codecs: dict[Kind, ChunkCodec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, text = codecs["memory"], speech(1)
    ids = torch.tensor(codec.tokens([text])[0])
    ids = torch.nn.functional.pad(ids, (0, -len(ids) % codec.chunk_length)).view(-1, codec.chunk_length)
    perfect = 9.0 * torch.nn.functional.one_hot(ids, codec.model.config.decoder_config.vocab_size)  # type: ignore[union-attr]
    monkeypatch.setattr(codec.model, "decode", lambda _: perfect)
    monkeypatch.setattr(codec_module, "ROWS", 10_000)
    remembered(tmp_path / "s", codec, {"a": text})
    with TextStore.open(tmp_path / "s", codec) as store:
        assert store.store.read("a").corrections == b""
        assert store.store.entry("a").fidelity == 1
        assert store.recall("a") == store.reading("a") == text
        monkeypatch.setattr(codec.model, "decode", lambda _: perfect.roll(1, -1))
        with pytest.raises(DamagedStoreError, match="does not come back as it was written"):
            store.recall("a")
