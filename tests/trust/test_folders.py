"""Folders and files: nothing that memlm did not write is lost, two creators agree, and a full disk changes nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import stat
from collections.abc import Generator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

import memlm
from memlm.checksums import SUMS, ignoring_checksums
from memlm.cli import main
from memlm.durable import create_folder, write_folder_atomic
from memlm.encoders import FunctionEncoder
from memlm.encoders.vector_cache import embed
from memlm.errors import CheckpointError, ConfigError, MemlmError, RunFolderError, StoreError, UserError
from memlm.files import read_sealed_json, read_tensors, sealed_text, write_tensors_atomic
from memlm.session import MemorySession
from memlm.store import ChunkCodec, MemoryStore, TextStore, text_store
from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig
from tests.conftest import speech
from tests.store.test_memory_store import HEADER, document


def fill(content: str):
    return lambda draft: (draft / "f").write_text(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_that_memlm_wrote_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    for content in ("old", "new"):
        write_folder_atomic(tmp_path / "a", fill(content))
    assert (tmp_path / "a" / "f").read_text() == "new"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("own", ["diary.txt", "below/diary.txt", SUMS])
def test_what_memlm_did_not_write_is_never_deleted(own: str, tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "a", fill("old"))
    (tmp_path / "a" / own).parent.mkdir(exist_ok=True)
    (tmp_path / "a" / own).write_text("{}")
    with pytest.raises(UserError, match="holds something else than memlm wrote"):
        write_folder_atomic(tmp_path / "a", fill("new"))
    assert (tmp_path / "a" / own).read_text() == "{}"
    assert (tmp_path / "a" / "f").read_text() == "old"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file, not a folder"):
        write_folder_atomic(tmp_path / "file", fill("new"))
    assert names(tmp_path) == ["a", "file"]


def test_a_session_is_not_saved_over_a_diary(memory_run: Path, tmp_path: Path) -> None:
    session = MemorySession(memory_run, fidelity=0.0)
    session.read("hello")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "diary.txt").write_text("x")
    with pytest.raises(UserError, match=r"'.*d' holds something else than memlm wrote there \('diary.txt'\)"):
        session.save(tmp_path / "d")
    assert names(tmp_path / "d") == ["diary.txt"]
    (tmp_path / "empty").mkdir()
    session.save(tmp_path / "empty")
    assert MemorySession.load(tmp_path / "empty", memory_run).stats() == session.stats()


@pytest.mark.parametrize("place", ["file", "file/talk", "d", "x" * 300, "loop"])
def test_a_session_that_cannot_be_saved_is_refused_before_anything_is_read(
    place: str, memory_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("d").mkdir()
    Path("d/diary.txt").write_text("x")
    Path("loop").symlink_to("loop")
    monkeypatch.setattr("memlm.session.MemorySession.read", None)
    command = ["generate", "word", "--model", str(memory_run), "--max-new-tokens", "1", "--session"]
    assert main([*command, place]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give another" in line
    assert names(tmp_path) == ["d", "file", "loop"]
    monkeypatch.undo()
    for folder in ("below/new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main([*command, str(tmp_path / folder)]) == 0
        assert (tmp_path / folder / SUMS).is_file()


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "a")
    for content in ("old", "new"):
        write_folder_atomic(tmp_path / "link", fill(content))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "a" / "f").read_text() == "new"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="leads to itself"):
        write_folder_atomic(tmp_path / "loop", fill("new"))


def test_files_have_the_permissions_of_the_umask(finished_run: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors_atomic(tmp_path / "t.safetensors", {"a": torch.zeros(2)})
        MemoryStore.create(tmp_path / "s", HEADER)
        with MemoryStore.open(tmp_path / "s", write=True) as store:
            store.add([document("a")])
        loaded = memlm.load(finished_run)
        assert isinstance(loaded, memlm.TextMemory)
        loaded.model.save_pretrained(tmp_path / "model")
        write_folder_atomic(tmp_path / "copy", loaded.model.save_pretrained)
    finally:
        os.umask(before)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"}
    assert {path.name for path, mode in modes.items() if mode != 0o640} == set()
    assert stat.S_IMODE((finished_run / "model.safetensors").stat().st_mode) == 0o666 & ~before


def _create(number: int, barrier: Barrier, folder: Path, codec: ChunkCodec) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    with TextStore.open(folder, codec, write=True, wait=60.0) as store:
        list(store.add([(f"doc{number}", [f"worker {number} wrote this line."])]))
    (folder.parent / f"{folder.name}.{number}.ok").touch()


def test_two_creators_of_one_store_both_keep_their_documents(finished_run: Path, tmp_path: Path) -> None:
    context, codec = multiprocessing.get_context("fork"), ChunkCodec.load(finished_run)
    for trial in range(8):
        folder, barrier = tmp_path / f"{trial}.mem", context.Barrier(2)
        if trial % 2:
            folder.mkdir()  # an empty folder is a place for a store
        workers = [context.Process(target=_create, args=(i, barrier, folder, codec)) for i in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert len(list(tmp_path.glob(f"{trial}.mem.*.ok"))) == 2
        with TextStore.open(folder, codec) as store:
            assert [store.recall(f"doc{i}") for i in range(2)] == [f"worker {i} wrote this line." for i in range(2)]
    assert not list(tmp_path.glob(".*"))


def test_a_store_whose_creator_failed_is_created_again_by_the_one_that_waited(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, opened = ChunkCodec.load(finished_run), MemoryStore.open
    creators = [TextStore.open(tmp_path / "s", codec, write=True)]

    def fails_first(*arguments: object, **options: object) -> MemoryStore:
        if creators:
            creators.pop().__exit__(ValueError("it failed"))
        return opened(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(MemoryStore, "open", fails_first)
    with TextStore.open(tmp_path / "s", codec, write=True) as second:
        list(second.add([("a", ["text"])]))
    monkeypatch.undo()
    with TextStore.open(tmp_path / "s", codec) as found:
        assert found.recall("a") == "text"


def test_a_folder_is_created_once(tmp_path: Path) -> None:
    def other_is_first(draft: Path) -> None:
        create_folder(tmp_path / "a", fill("other"), StoreError)
        fill("own")(draft)

    with pytest.raises(StoreError, match="exists already"):
        create_folder(tmp_path / "a", other_is_first, StoreError)
    assert (tmp_path / "a" / "f").read_text() == "other"
    assert names(tmp_path) == ["a"]


def test_a_run_folder_is_created_once(tiny_config: RunConfig, tmp_path: Path) -> None:
    with RunFolder.claimed(tmp_path / "run", tiny_config):
        with pytest.raises(RunFolderError, match="exists and is not empty"):
            RunFolder.create(tmp_path / "run", tiny_config)
        with pytest.raises(RunFolderError, match="another process is training"):
            RunFolder.create(tmp_path / "run", tiny_config, overwrite=True)
        assert (tmp_path / "run" / "run.json").is_file()


@contextmanager
def small_disk(size: int) -> Generator[None]:
    """Let no file grow beyond so many bytes, as on a full disk; the system's error is another one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line_and_leaves_everything_as_it_was(
    finished_run: Path, memory_run: Path, tiny_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = MemorySession(memory_run, fidelity=0.0)
    session.read("hello")
    session.save(tmp_path / "talk")
    longer = session.fork() if hasattr(session, "fork") else session
    longer.read(speech(1, 200))
    codec = ChunkCodec.load(finished_run)
    with TextStore.open(tmp_path / "s", codec, write=True) as store:
        list(store.add([("a", ["text"])]))
    with small_disk(100), pytest.raises(UserError, match="cannot write to .*talk.*what was there is as it was"):
        longer.save(tmp_path / "talk")
    store = TextStore.open(tmp_path / "s", codec, write=True)
    with small_disk(300), pytest.raises(StoreError, match="cannot write to|nothing was changed"):
        list(store.add([("b", [speech(2, 900)])]))
    store.close()
    with small_disk(300), pytest.raises(StoreError):
        MemoryStore.create(tmp_path / "new", HEADER)
    write_tensors_atomic(tmp_path / "t", {"a": torch.zeros(2)})
    with small_disk(300), pytest.raises(OSError, match="File too large"):
        write_tensors_atomic(tmp_path / "t", {"a": torch.zeros(200)})
    assert torch.equal(read_tensors(tmp_path / "t")["a"], torch.zeros(2))
    with small_disk(20_000), pytest.raises((MemlmError, OSError), match=r"File too large|cannot write"):
        train_run(tiny_config, tmp_path / "run", progress=False)
    MemorySession.load(tmp_path / "talk", memory_run)
    assert MemoryStore.verify(tmp_path / "s") == []
    assert not list(tmp_path.rglob("*.draft"))
    assert not list(tmp_path.glob(".*"))


def test_a_cache_of_vectors_notices_damage(tmp_path: Path) -> None:
    encoder = FunctionEncoder(lambda texts: torch.ones(len(texts), 4), name="ones", fingerprint="ones")
    embed(encoder, ["a", "b"], cache=tmp_path)
    (shard,) = tmp_path.rglob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-000000.safetensors' is damaged: it is not what was written"):
        embed(encoder, ["a", "b"], cache=tmp_path)


def test_newer_formats_are_refused_with_both_numbers(
    finished_run: Path, tiny_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_config)
    values = read_sealed_json(run.path / "run.json")
    assert values["format"] == 1
    run.write("run.json", {**values, "format": 7})
    with pytest.raises(CheckpointError, match=r"run' has format 7, this memlm reads up to 1; install a newer memlm"):
        run.config()
    older = {name: value for name, value in values.items() if name != "format"}
    (run.path / "run.json").write_text(json.dumps(older))
    assert run.config() == tiny_config
    assert main(["evaluate", str(finished_run), "--ignore-checksums", "--no-such-flag"]) == 2
    write_tensors_atomic(tmp_path / "t", {"a": torch.zeros(2)})
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes().replace(b'"memlm_format":"1"', b'"memlm_format":"9"'))
    with pytest.raises(CheckpointError, match="has format 9, this memlm reads up to 1"):
        read_tensors(tmp_path / "t")


def test_records_of_a_run_are_sealed(tiny_config: RunConfig, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_config)
    text = (run.path / "run.json").read_text()
    (run.path / "run.json").write_text(text.replace('"steps": 12', '"steps": 13'))
    with pytest.raises(CheckpointError, match=r"run.json' is damaged: it is not what was written.*--ignore-checksums"):
        run.config()
    with ignoring_checksums():
        assert run.config().training.steps == 13
    (run.path / "run.json").write_text("[" * 100_000)
    with pytest.raises(MemlmError, match="nested too deeply"):
        run.config()
    assert json.loads(sealed_text({"a": (1, 2)}))["a"] == [1, 2]


def test_remember_encodes_only_what_changed(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memlm.data.corpus.PART", 400)
    encoded: list[str] = []
    encode = text_store.encode_units

    def counted(codec: ChunkCodec, units: list[text_store.Unit], **options: object) -> object:
        encoded.extend(unit.id for unit in units)
        return encode(codec, units, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(text_store, "encode_units", counted)
    texts = {"short": "a b c", "same": speech(1, 30), "log": speech(2, 400)}
    with TextStore.open(tmp_path / "s", ChunkCodec.load(finished_run), write=True) as store:
        list(store.add([(name, [text]) for name, text in texts.items()]))
        for round_ in range(3):
            texts |= {"log": texts["log"] + speech(3 + round_, 30), "short": f"a b {round_}"}
            encoded.clear()
            outcomes = list(store.add([(name, [text]) for name, text in texts.items()], replace=True))
            assert [o.outcome for o in outcomes] == ["replaced", "unchanged", "replaced"]
            assert "short" in encoded
            assert len(encoded) <= 3  # the end of the log
            assert {name: store.recall(name) for name in texts} == texts
    assert MemoryStore.verify(tmp_path / "s") == []


def test_unknown_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], finished_run: Path
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect\nof two lines")

    monkeypatch.setattr("memlm.cli._command", lambda name: fail)
    assert main(["recipes"]) == 2
    shown = capsys.readouterr().err
    assert shown == "memlm: error: ZeroDivisionError: a defect of two lines (MEMLM_TRACEBACK=1 shows where)\n"
    monkeypatch.setenv("MEMLM_TRACEBACK", "1")
    assert main(["recipes"]) == 2
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        raise ConfigError("kept")
