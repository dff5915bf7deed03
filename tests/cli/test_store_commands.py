"""Stores and sessions as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memlm.cli import main
from memlm.store import MemoryStore
from tests.conftest import speech
from tests.store.texts import mixed_text


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for i in range(12):
        (tmp_path / "notes" / f"{i:02}.md").write_bytes(mixed_text(i).encode())
    return [f"notes/{i:02}.md" for i in range(12)]


def test_from_files_to_memories_and_back(
    notes: list[str], memory_run: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    def said(*arguments: str) -> bytes:
        assert main(arguments) == 0
        return capfdbinary.readouterr().out

    store = ["--store", "notes.mem"]
    assert b"12 written; 12 documents" in said("remember", *notes, "--model", str(memory_run), *store)
    assert b"12 unchanged; 12 documents" in said("remember", *notes, *store)
    for name in notes:
        assert said("recall", "notes.mem", name, "--exact") == Path(name).read_bytes()
    assert said("recall", "notes.mem", notes[0], "--no-exact")
    assert b"every byte is as it was written" in said("verify", "notes.mem", "--texts")

    Path(notes[0]).write_text(speech(99))
    assert b"1 replaced, 1 unchanged" in said("remember", *notes[:2], *store, "--replace")
    assert b"1 removed, 11 documents left" in said("forget", "notes.mem", notes[3])
    told = said("stats", "notes.mem", "--compare").decode()
    assert "11 documents" in told
    assert re.search(r"gzip 0\.\d+, xz 0\.\d+, zstd 0\.\d+", told)
    assert "chunks of deleted documents" in told
    assert b"are gone from notes.mem" in said("compact", "notes.mem")
    found = json.loads(said("stats", "notes.mem", "--json"))
    assert (found["documents"], found["dead_chunks"]) == (11, 0)
    assert said("recall", "notes.mem", notes[0]) == speech(99).encode()

    lines = said("search", "notes.mem", "the people of this nation", "-k", "3", "--json").decode().splitlines()
    hits = [json.loads(line) for line in lines]
    assert len(hits) == 3
    assert all(hit["text"] in Path(hit["id"]).read_bytes().decode() for hit in hits)
    assert said("search", "notes.mem", "nation", "--document", notes[0]).count(notes[0].encode()) == 10

    read = ["--store", "notes.mem", "--read", notes[0], "--session", "talk", "--max-new-tokens", "6"]
    assert main(["generate", "the people", *read]) == 0
    captured = capfdbinary.readouterr()
    assert b"chunks read as memories" in captured.err
    assert (tmp_path / "talk" / "session.json").is_file()
    said("generate", "and", "--model", str(memory_run), "--session", "talk", "--sample", "--max-new-tokens", "3")


def test_control_characters_do_not_reach_the_terminal(
    memory_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_text("\x1b[31mred\x1b[0m \u202e people")
    assert main(["remember", "a", "--model", str(memory_run), "--store", "s"]) == 0
    assert main(["search", "s", "red"]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "\\x1b" in out


@pytest.mark.parametrize("way", ["workers", "torchrun"])
def test_several_processes_write_what_one_writes(way: str, notes: list[str], memory_run: Path) -> None:
    # more than one list of texts, so that every process has work
    Path("long.txt").write_text("".join(speech(i) for i in range(140)))
    launched = {
        "workers": (["-m", "memlm"], ["--workers", "2"]),
        "torchrun": (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "memlm"], []),
    }
    for store, (before, behind) in (("one.mem", (["-m", "memlm"], [])), ("two.mem", launched[way])):
        flags = ["--model", str(memory_run), "--store", store, *behind]
        done = subprocess.run(
            [sys.executable, *before, "remember", *notes, "long.txt", *flags],
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "13 written; 13 documents" in done.stdout
    one, two = (MemoryStore.open(name) for name in ("one.mem", "two.mem"))
    assert len(list(one.entries())) > 14
    assert [e.data_sha256 for e in one.entries()] == [e.data_sha256 for e in two.entries()]
    one.close()
    two.close()


def test_verify_names_what_is_damaged(notes: list[str], memory_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["remember", *notes, "--model", str(memory_run), "--store", "s"]) == 0
    segment = next(Path("s/segments").iterdir())
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 4
    segment.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", "s"]) == 2
    captured = capsys.readouterr()
    assert "is not what was written" in captured.out
    assert "1 problems in 's'; restore it from a copy" in captured.err


def test_a_model_that_has_moved_is_asked_for(
    notes: list[str], memory_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(memory_run, "old")
    assert main(["remember", notes[0], "--model", "old", "--store", "s"]) == 0
    shutil.move("old", "new")
    assert main(["recall", "s", notes[0]]) == 2
    assert "say where it is (--model RUN)" in capsys.readouterr().err
    assert main(["recall", "s", notes[0], "--model", "new"]) == 0
