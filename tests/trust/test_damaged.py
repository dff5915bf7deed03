"""Flipped bits and files that are cut short: refused, or without any effect; never read as something else."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import memlm
from memlm.checksums import SUMS
from memlm.errors import UserError
from memlm.session import MemorySession, TextMemory
from memlm.store import MemoryStore
from memlm.training import train_run
from memlm.training.config import RunConfig
from tests.conftest import speech
from tests.store.test_memory_store import HEADER, document
from tests.trust import DAMAGES

Read = Callable[[], Any]


def damage(path: Path, draw: random.Random) -> None:
    """Flip a bit of a file, or cut it short."""
    content = path.read_bytes()
    place = draw.randrange(len(content))
    if draw.random() < 0.5:
        path.write_bytes(content[:place])
    else:
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :])


def outcomes(folder: Path, work: Path, read: Callable[[Path], Any], *, only: Callable[[Path], bool]) -> dict[str, int]:
    """Damage copies of a folder and count what came of it; what is read otherwise is an error of the test."""
    draw, found = random.Random(0), {"refused": 0, "harmless": 0}
    shutil.copytree(folder, work / "whole")
    wanted = read(work / "whole")
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.stat().st_size and only(p))
    for trial in range(DAMAGES):
        copy = work / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        name = draw.choice(names)
        damage(copy / name, draw)
        try:
            assert read(copy) == wanted, f"trial {trial}: damage of {name} was read"
            found["harmless"] += 1
        except UserError as error:
            found["refused"] += "\n" not in str(error)
    print(f"{folder.name}: {found}")
    assert sum(found.values()) == DAMAGES  # refusals of more than one line are not counted
    return found


def test_store(tmp_path: Path) -> None:
    MemoryStore.create(tmp_path / "s", HEADER)
    with MemoryStore.open(tmp_path / "s", write=True) as store:
        store.add([document(str(i), seed=i) for i in range(6)])
        store.delete(["4"])

    def read(folder: Path) -> list[Any]:
        with MemoryStore.open(folder) as opened:
            return [
                (e.id, opened.read(e.id).memories.values.tolist(), opened.read(e.id).corrections)
                for e in opened.entries()
            ]

    def noticed(folder: Path) -> Any:
        found = MemoryStore.verify(folder)
        if found:
            raise UserError(found[0])
        return None

    assert outcomes(tmp_path / "s", tmp_path / "noticed", noticed, only=lambda p: True)["harmless"] == 0
    outcomes(tmp_path / "s", tmp_path / "read", read, only=lambda p: True)


def test_session(memory_run: Path, tmp_path: Path) -> None:
    session = MemorySession(memory_run, fidelity=0.0)
    session.read(speech(1, 20))
    session.save(tmp_path / "talk")

    def read(folder: Path) -> Any:
        loaded = MemorySession.load(folder, (session.model, session.tokenizer))
        (history,) = loaded.histories
        chunks = [c.tolist() if isinstance(c, torch.Tensor) else c for c in history.chunks]
        return chunks, history.newest, history.forgotten, loaded.fidelity, loaded.window

    outcomes(tmp_path / "talk", tmp_path, read, only=lambda p: True)


def test_model(finished_run: Path, tmp_path: Path) -> None:
    def read(folder: Path) -> Any:
        model = memlm.load(folder)
        assert isinstance(model, TextMemory)
        weights = {name: weight.tolist() for name, weight in model.model.state_dict().items()}
        return weights, model.model.config.to_dict() | {"_name_or_path": ""}, model.tokenizer.get_vocab()

    root = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", SUMS)
    outcomes(finished_run, tmp_path, read, only=lambda p: p.name in root and p.parent == finished_run)


@pytest.mark.slow
def test_checkpoint(tiny_config: RunConfig, finished_run: Path, tmp_path: Path) -> None:
    run, stage = tmp_path / "run", Path("stages", "00-reconstruction")
    shutil.copytree(finished_run, run)
    for name in ("status.json", "model.safetensors", "config.json"):
        (run / name).unlink()
    shutil.rmtree(run / stage / "end")
    kept = sorted((run / stage / "checkpoints").iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
    for later in kept[1:]:
        shutil.rmtree(later)

    def read(folder: Path) -> Any:
        train_run(tiny_config, folder, resume=True, progress=False)
        end = max((folder / stage / "checkpoints").iterdir(), key=lambda p: int(p.name.removeprefix("step-")))
        files = (folder / "model.safetensors", end / "optimizer.safetensors", end / "random.safetensors")
        return [file.read_bytes() for file in files]

    inside = (run / "run.json", run / "data.json")
    outcomes(run, tmp_path, read, only=lambda p: p.parent == kept[0] or p in inside)
