"""Stores: whole or not at all, whatever is killed, flipped or full."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from memlm.checksums import file_hash
from memlm.errors import DamagedStoreError, StoreError
from memlm.store import MemoryStore, StoredDocument, StoreHeader, quantize
from memlm.store.format import segments
from memlm.store.format.header import sealed_text
from memlm.store.format.index import Index
from tests.trust import Say, killed

HEADER = StoreHeader(
    encoder="a" * 64, decoder="b" * 64, tokenizer="c" * 64, chunk_length=4, memories_per_chunk=2, numbers=5, bits=8
)


def document(name: str, *, chunks: int = 3, seed: int = 0, header: StoreHeader = HEADER) -> StoredDocument:
    draw = torch.Generator().manual_seed(seed)
    text = f"{name} {seed}".encode(errors="replace") * chunks
    numbers = torch.randn(chunks, header.memories_per_chunk, header.numbers, generator=draw)
    return StoredDocument(
        id=name,
        memories=quantize(numbers, header.bits),
        tokens=torch.full((chunks,), 4, dtype=torch.int32),
        num_correct=torch.randint(0, 5, (chunks,), generator=draw, dtype=torch.int32),
        corrections=text,
        text_sha256=hashlib.sha256(text).hexdigest(),
        text_bytes=len(text),
    )


def same(a: StoredDocument, b: StoredDocument) -> bool:
    return (
        (a.id, a.corrections, a.text_sha256, a.text_bytes) == (b.id, b.corrections, b.text_sha256, b.text_bytes)
        and torch.equal(a.memories.values, b.memories.values)
        and (a.memories.scale is None) == (b.memories.scale is None)
        and (a.memories.scale is None or b.memories.scale is None or torch.equal(a.memories.scale, b.memories.scale))
        and torch.equal(a.tokens, b.tokens)
        and torch.equal(a.num_correct, b.num_correct)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a store?#%.mem"
    MemoryStore.create(path, HEADER)
    return path


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_documents_come_back_as_they_were_written(tmp_path: Path, bits: int) -> None:
    header = HEADER.model_copy(update={"bits": bits})
    MemoryStore.create(tmp_path / "s", header)
    written = [
        document(name, chunks=i, seed=i, header=header) for i, name in enumerate(["empty", "ein ä/../", "c", "d"])
    ]
    with MemoryStore.open(tmp_path / "s", write=True) as store:
        store.add(written[:2])
        store.add([])
        store.add(written[2:])
        assert same(store.read("c"), written[2])
    store = MemoryStore.open(tmp_path / "s")
    assert store.header == header
    assert len(store) == 4
    assert "c" in store
    assert "x" not in store
    assert [entry.id for entry in store.entries()] == [d.id for d in written]
    assert all(same(store.read(d.id), d) for d in written)
    assert store.entry("empty").fidelity == 1
    stats = store.stats()
    assert (stats.documents, stats.chunks, stats.dead_chunks) == (4, 6, 0)
    store.close()
    assert MemoryStore.verify(tmp_path / "s") == []


def test_replacing_deleting_and_compacting_keep_the_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MOST_CHUNKS", 5)
    with MemoryStore.open(folder, write=True) as store:
        store.add([document(str(i), seed=i) for i in range(6)])
        assert len(store.segments()) == 3
        store.add([document("2", seed=99)], replace=True)
        store.delete(["0", "5", "0"])
        assert store.stats().dead_chunks == 9
        told: list[tuple[int, int]] = []
        reader = MemoryStore.open(folder)
        store.compact(progress=lambda *at: told.append(at))
        assert told[-1] == (4, 4)
        assert store.stats().dead_chunks == 0
        for one in (store, reader):
            assert [entry.id for entry in one.entries()] == ["1", "3", "4", "2"]
            assert same(one.read("2"), document("2", seed=99))
            assert same(one.read("3"), document("3", seed=3))
        reader.close()
    assert len(list((folder / "segments").iterdir())) == 2
    assert MemoryStore.verify(folder) == []


def test_a_reader_that_looked_before_a_compaction_looks_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a")])
        store.add([document("b")])
        reader = MemoryStore.open(folder)
        old = reader.entry("b")
        store.compact()
        monkeypatch.setattr(reader, "entry", lambda _: old)
        assert same(reader.read("b"), document("b"))
        reader.close()


def test_many_documents_are_not_in_memory_or_mapped_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = [document(f"{i}", seed=i) for i in range(60)]

    def files_mapped(*_: int) -> None:
        maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
        mapped.append(sum(line.endswith(".safetensors") and str(folder) in line for line in maps.splitlines()))

    mapped: list[int] = []
    with MemoryStore.open(folder, write=True) as store:
        for one in there:
            store.add([one])
        assert len(store.segments()) == 60
        monkeypatch.setattr(segments, "_MOST_DOCUMENTS", 7)
        store.compact(progress=files_mapped)
        assert [len(group) for group in segments.grouped(there)] == [7] * 8 + [4]
        assert len(store.segments()) == len(mapped) == 9
        monkeypatch.setattr(segments, "_MOST_BYTES", 4 * sum(s.size for s in store.segments()) // 180)
        store.compact(progress=files_mapped)
        assert len(store.segments()) == 30  # two documents of three chunks each reach four chunks
        assert all(same(store.read(one.id), one) for one in there)
    assert set(mapped) == {0}
    assert MemoryStore.verify(folder) == []


def test_commits_cost_no_pass_over_the_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr("memlm.store.format.index.file_hash", lambda path: hashed.append(path) or file_hash(path))
    with MemoryStore.open(folder, write=True) as store:
        for i in range(5):
            store.add([document(f"{i}", seed=i)])
        store.delete(["0"])
        store.delete(["1"])
        store.compact()
        assert hashed == []
    assert hashed == [folder / "index.sqlite"]
    assert MemoryStore.verify(folder) == []


def test_a_compaction_while_vectors_are_read_is_no_damage(folder: Path) -> None:
    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a")])
        store.add([document("b")])
        reader = MemoryStore.open(folder)
        found = reader.search_vectors(list(reader.entries()))
        next(found)
        store.compact()
        with pytest.raises(StoreError, match="was compacted while it was read; try again"):
            list(found)
        assert reader.chunks_below(2.0) == (6, 6)
        reader.close()


def _refusals(store: MemoryStore) -> dict[str, tuple[object, str]]:
    wrong = HEADER.model_copy(update={"numbers": 7})
    return {
        "there": (lambda: store.add([document("a")]), "is in .* already"),
        "twice": (lambda: store.add([document("n"), document("n")]), "given twice"),
        "shape": (lambda: store.add([document("n", header=wrong)]), r"\(2, 7, 8\).*do not fit.*\(2, 5, 8\)"),
        "empty id": (lambda: store.add([document("")]), "id of 0 bytes"),
        "long id": (lambda: store.add([document("ä" * 513)]), "id of 1026 bytes"),
        "control": (lambda: store.add([document("a\nb")]), "control characters"),
        "surrogate": (lambda: store.add([document("\udc80")]), "not valid Unicode"),
        "unknown": (lambda: store.read("A"), "no document 'A'.*Did you mean 'a'|Choose from"),
        "deleted": (lambda: store.delete(["a", "x"]), "no document 'x'"),
    }


@pytest.mark.parametrize("what", [*_refusals(None)])  # type: ignore[arg-type]
def test_what_cannot_be_done_is_one_line_and_changes_nothing(folder: Path, what: str) -> None:
    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a")])
        act, words = _refusals(store)[what]
        with pytest.raises(StoreError, match=words) as caught:
            act()  # type: ignore[operator]
        assert "\n" not in str(caught.value)
        assert [entry.id for entry in store.entries()] == ["a"]
    assert MemoryStore.verify(folder) == []


def test_what_is_no_store_or_newer_or_taken_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        MemoryStore.open(tmp_path)
    with pytest.raises(StoreError, match="exists already"):
        MemoryStore.create(folder, HEADER)
    with MemoryStore.open(folder, write=True):
        with pytest.raises(StoreError, match="another process writes"):
            MemoryStore.open(folder, write=True)
        with pytest.raises(StoreError, match="another process writes"):
            MemoryStore.verify(folder)
    reader = MemoryStore.open(folder)
    with pytest.raises(StoreError, match="open for reading"):
        reader.add([document("a")])
    reader.close()
    values = {**HEADER.model_dump(), "format": 3}
    (folder / "store.json").write_text(sealed_text(values, indent=2))
    with pytest.raises(StoreError, match="has format 3, this memlm reads up to 2"):
        MemoryStore.open(folder)


def test_a_second_writer_waits(folder: Path) -> None:
    child = os.fork()
    if not child:
        store = MemoryStore.open(folder, write=True)
        time.sleep(0.5)
        store.add([document("first")])
        store.close()
        os._exit(0)
    time.sleep(0.2)
    with MemoryStore.open(folder, write=True, wait=20.0) as store:
        store.add([document("second")])
        assert [entry.id for entry in store.entries()] == ["first", "second"]
    os.waitpid(child, 0)


@pytest.mark.parametrize("where", ["segment", "index", "seal"])
def test_a_full_disk_leaves_the_store_as_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import sqlite3

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_index(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a")])
        with monkeypatch.context() as patch:
            if where == "segment":
                patch.setattr(segments, "write_tensors_atomic", full)
            elif where == "index":
                patch.setattr("memlm.store.format.index._write_state", full_index)
            else:
                patch.setattr("memlm.store.format.index.write_file_atomic", full)
            with pytest.raises(StoreError, match=r"No space left|disk is full"):
                store.add([document("b")])
        assert [e.id for e in store.entries()] == (["a", "b"] if where == "seal" else ["a"])
        assert len(list((folder / "segments").iterdir())) == len(store.segments())
        store.add([document("c")])
    assert MemoryStore.verify(folder) == []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def test_every_flipped_byte_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_MOST_CHUNKS", 5)
    written = [document(str(i), seed=i) for i in range(6)]
    with MemoryStore.open(folder, write=True) as store:
        store.add(written)
        store.delete(["4"])
    files = _files(folder)
    assert {path.name for path in files} >= {"store.json", "index.sqlite", "seal.json"}
    draw = random.Random(0)
    for _ in range(500):
        path = draw.choice(files)
        before = path.read_bytes()
        place = draw.randrange(len(before))
        flipped = bytes([before[place] ^ (1 << draw.randrange(8))])
        path.write_bytes(before[:place] + flipped + before[place + 1 :])
        assert MemoryStore.verify(folder), (path, place)
        _nothing_wrong_is_read(folder, written)
        path.write_bytes(before)
        for name in ("index.sqlite-wal", "index.sqlite-shm"):
            (folder / name).unlink(missing_ok=True)
    assert MemoryStore.verify(folder) == []


def _nothing_wrong_is_read(folder: Path, written: list[StoredDocument]) -> None:
    try:
        store = MemoryStore.open(folder)
    except StoreError:
        return
    for wanted in written:
        try:
            assert same(store.read(wanted.id), wanted)
        except StoreError:
            continue
    store.close()


def _work(folder: Path, seed: int, say: Say) -> None:
    """Writes, replaces, deletes and compacts until it is killed; says what it begins and what is done."""
    draw = random.Random(seed)
    store = MemoryStore.open(folder, write=True, wait=10.0)
    for step in range(10_000):
        name, chosen = str(draw.randrange(8)), draw.random()
        content = seed * 10_000 + step
        if chosen < 0.1:
            job = ("compact", "", 0)
        elif chosen < 0.3 and name in store:
            job = ("delete", name, 0)
        else:
            job = ("write", name, content)
        say(json.dumps(["begin", *job]))
        if job[0] == "compact":
            store.compact()
        elif job[0] == "delete":
            store.delete([name])
        else:
            store.add([document(name, chunks=content % 4, seed=content)], replace=True)
        say(json.dumps(["done", *job]))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_whenever_a_writer_is_killed_what_was_committed_is_there(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    there: dict[str, int] = {}
    for kill in range(50):
        lines = killed(partial(_work, folder, seed * 1000 + kill), draw.uniform(0.005, 0.12))
        last: list[object] | None = None
        for state, *job in map(json.loads, lines):
            last = job if state == "begin" else None
            if state == "done":
                _apply(there, job)
        store = MemoryStore.open(folder)
        found = {entry.id: store.read(entry.id) for entry in store.entries()}
        store.close()
        options = [there]
        if last is not None:
            options.append(_applied(there, last))
        fits = [option for option in options if _matches(found, option)]
        assert fits, (seed, kill, last)
        there = fits[0]
        assert MemoryStore.verify(folder, wait=5.0) == [], (seed, kill)


def _apply(there: dict[str, int], job: list[object]) -> None:
    kind, name, content = job
    if kind == "write":
        there[str(name)] = int(str(content))
    elif kind == "delete":
        del there[str(name)]


def _applied(there: dict[str, int], job: list[object]) -> dict[str, int]:
    after = dict(there)
    _apply(after, job)
    return after


def _matches(found: dict[str, StoredDocument], wanted: dict[str, int]) -> bool:
    return found.keys() == wanted.keys() and all(
        same(found[name], document(name, chunks=content % 4, seed=content)) for name, content in wanted.items()
    )


def test_readers_see_whole_documents_during_writes(folder: Path) -> None:
    child = os.fork()
    if not child:
        try:
            _work(folder, 7, lambda line: None)
        finally:
            os._exit(1)
    try:
        readers = [MemoryStore.open(folder) for _ in range(10)]
        seen = 0
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            for reader in readers:
                for entry in reader.entries():
                    try:
                        found = reader.read(entry.id)
                    except StoreError as error:
                        assert "no document" in str(error)  # noqa: PT017  (deleted since)
                        continue
                    text = found.corrections
                    assert hashlib.sha256(text).hexdigest() == found.text_sha256
                    seen += 1
        assert seen > 20
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lost_commit_or_file_is_reported(folder: Path) -> None:
    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a")])
    old = (folder / "index.sqlite").read_bytes()
    with MemoryStore.open(folder, write=True) as store:
        store.add([document("b")])
    new = (folder / "index.sqlite").read_bytes()
    (folder / "index.sqlite").write_bytes(old)
    assert "has lost commits (1 of 2)" in MemoryStore.verify(folder)[0]
    (folder / "index.sqlite").write_bytes(new)
    (folder / "segments" / "0000000001.safetensors").unlink()
    assert "missing" in MemoryStore.verify(folder)[0]
    assert "'b'" in MemoryStore.verify(folder)[0]
    with pytest.raises(DamagedStoreError):
        MemoryStore.open(folder).read("b")
    assert same(MemoryStore.open(folder).read("a"), document("a"))
    (folder / "index.sqlite").unlink()
    assert "missing" in MemoryStore.verify(folder)[0]


def test_the_index_sees_a_row_that_was_taken_out(folder: Path) -> None:
    import sqlite3

    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a"), document("b")])
    connection = sqlite3.connect(folder / "index.sqlite")
    connection.execute("DELETE FROM documents WHERE id = 'a'")
    connection.commit()
    connection.close()
    index = Index(folder, write=False)
    assert "rows are missing" in index.problems()[0]
    index.close()
