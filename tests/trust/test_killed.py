"""Killed at any moment: what was acknowledged is there, and what was not is there whole or not at all."""

from __future__ import annotations

import os
import random
import signal
from functools import partial
from pathlib import Path

import pytest

from memlm.durable import write_folder_atomic
from memlm.session import MemorySession
from memlm.store import ChunkCodec, MemoryStore, TextStore
from memlm.training import train_run
from memlm.training.config import RunConfig
from tests.conftest import speech
from tests.store.test_memory_store import HEADER, document, same
from tests.trust import KILLS, Say, killed


def nothing_left_beside(place: Path) -> None:
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(f".{place.name}.")] == []


@pytest.mark.slow
def test_remember(finished_run: Path, tmp_path: Path) -> None:
    codec, store, draw = ChunkCodec.load(finished_run), tmp_path / "a.mem", random.Random(0)
    TextStore.open(store, codec, write=True).close()
    promised: dict[str, str] = {}
    for kill in range(KILLS):
        texts = {f"{kill}-{i}": speech(1000 * kill + i, 40) for i in range(50)}

        def remember(say: Say, texts: dict[str, str] = texts) -> None:
            with TextStore.open(store, codec, write=True, wait=10.0) as open_store:
                for name, text in texts.items():
                    list(open_store.add([(name, [text])]))
                    say(name)

        now = {name: texts[name] for name in killed(remember, draw.uniform(0.05, 1.0))}
        promised |= now
        with TextStore.open(store, codec) as found:
            assert all(found.recall(name) == text for name, text in now.items())
    with TextStore.open(store, codec) as found:
        assert all(found.recall(name) == text for name, text in promised.items())
    assert MemoryStore.verify(store, wait=5.0) == []
    assert len(promised) > KILLS


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compact", "forget"])
def test_compact_and_forget(kind: str, tmp_path: Path) -> None:
    folder, draw = tmp_path / "a.mem", random.Random(1)
    MemoryStore.create(folder, HEADER)
    there = [document(f"{i}", seed=i, chunks=200) for i in range(60 + 2 * KILLS)]
    with MemoryStore.open(folder, write=True) as store:
        store.add(there)
    gone: set[str] = set()
    for _ in range(KILLS):
        names = [one.id for one in there if one.id not in gone]

        def work(say: Say, names: list[str] = names) -> None:
            with MemoryStore.open(folder, write=True, wait=10.0) as open_store:
                for name in names[:2] if kind == "forget" else ["compact"] * 50:
                    open_store.delete([name]) if kind == "forget" else open_store.compact()
                    say(name)

        acknowledged = set(killed(work, draw.uniform(0.005, 0.3))) - {"compact"}
        store = MemoryStore.open(folder)
        found = {entry.id for entry in store.entries()}
        assert acknowledged & found == set()
        gone = {str(one.id) for one in there} - found
        assert len(gone) <= 2 * KILLS
        assert all(same(store.read(one.id), one) for one in there if one.id in found)
        store.close()
        assert MemoryStore.verify(folder, wait=5.0) == []


def _states(memory_run: Path) -> tuple[MemorySession, MemorySession]:
    first = MemorySession(memory_run, fidelity=0.0)
    second = first.fork() if hasattr(first, "fork") else MemorySession(memory_run, fidelity=0.0)
    first.read(speech(1, 30))
    second.read(speech(2, 60))
    return first, second


@pytest.mark.slow
def test_saving_a_session(memory_run: Path, tmp_path: Path) -> None:
    first, second = _states(memory_run)
    place, draw = tmp_path / "talk", random.Random(2)
    first.save(place)

    def save(say: Say) -> None:
        while True:
            second.save(place)
            first.save(place)

    for _ in range(KILLS):
        killed(save, draw.uniform(0.002, 0.1))
        loaded = MemorySession.load(place, (first.model, first.tokenizer))
        assert loaded.stats() in (first.stats(), second.stats())
    first.save(place)
    nothing_left_beside(place)


def test_killed_between_the_two_renames_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a"
    write_folder_atomic(place, lambda draft: (draft / "f").write_text("old"))
    rename = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if self.suffix == ".draft" and self.is_dir():
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    def replace(_: Say) -> None:
        monkeypatch.setattr(Path, "rename", stop)
        write_folder_atomic(place, lambda draft: (draft / "f").write_text("new"))

    killed(replace, 0.5)
    assert not place.exists()
    from memlm.durable import read_folder

    assert read_folder(place, lambda folder: (folder / "f").read_text()) == "old"
    write_folder_atomic(place, lambda draft: (draft / "f").write_text("new"))
    assert (place / "f").read_text() == "new"
    nothing_left_beside(place)


@pytest.mark.slow
def test_two_creators_of_one_store_of_whom_one_is_killed(finished_run: Path, tmp_path: Path) -> None:
    codec, draw = ChunkCodec.load(finished_run), random.Random(3)
    for trial in range(KILLS):
        store = tmp_path / f"{trial}.mem"

        def create(say: Say, name: str, store: Path = store) -> None:
            with TextStore.open(store, codec, write=True, wait=60.0) as open_store:
                list(open_store.add([(name, [speech(5, 20)])]))
            say(name)

        other = os.fork()
        if not other:
            try:
                create((tmp_path / f"{trial}.ok").write_text, "other")
            finally:
                os._exit(0)
        promised = killed(partial(create, name="killed"), draw.uniform(0.002, 0.5))
        os.waitpid(other, 0)
        assert (tmp_path / f"{trial}.ok").is_file()
        with TextStore.open(store, codec) as found:
            assert all(found.recall(name) == speech(5, 20) for name in [*promised, "other"])
        assert MemoryStore.verify(store, wait=5.0) == []


@pytest.mark.slow
def test_training(tiny_config: RunConfig, finished_run: Path, tmp_path: Path) -> None:
    draw, out, kills, began = random.Random(4), tmp_path / "run", 0, 0
    while kills < KILLS:
        place = out / str(began)

        def train(say: Say, place: Path = place) -> None:
            train_run(tiny_config, place, resume=(place / "run.json").exists(), progress=False)
            say("end")

        ended = "end" in killed(train, draw.uniform(0.05, 0.8))
        kills += not ended
        if ended or kills == KILLS:
            train_run(tiny_config, place, resume=(place / "run.json").exists(), progress=False)
            assert (place / "model.safetensors").read_bytes() == (finished_run / "model.safetensors").read_bytes()
            began += 1
