"""Killed at any moment, a run ends as if it had not been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memlm.checksums import ignoring_checksums
from memlm.errors import CheckpointError, DataError, RunFolderError
from memlm.files import write_folder_atomic
from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig, merge_run
from memlm.training.loop.callbacks import Interrupt
from memlm.training.loop.checkpoint import newest
from memlm.training.loop.trainer import Interrupted

LOG = Path("stages", "00-reconstruction", "log.jsonl")
PROGRAM = """
import sys
from memlm.training import train_run
from memlm.training.config import make_run_config
from memlm.training.run_folder import RunFolder
import json, pathlib
out, settings = sys.argv[1], json.loads(sys.argv[2])
begun = (pathlib.Path(out) / "run.json").exists()
train_run(make_run_config(settings), out, resume=begun, progress=False)
"""


def log_without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).log()]


def written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def same_end(one: Path, other: Path) -> None:
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert log_without_seconds(one) == log_without_seconds(other)
    last = [next(folder.glob("stages/00-reconstruction/checkpoints/step-12")) for folder in (one, other)]
    for name in ("optimizer.safetensors", "random.safetensors"):  # torch draws the noise; nothing draws from the others
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()


@pytest.mark.parametrize("stop_after", [1, 5, 8])
def test_stopped_between_checkpoints_and_resumed(
    stop_after: int, tiny_config: RunConfig, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bang(Exception):
        pass

    from memlm.training.loop.callbacks import RunCallback

    original = RunCallback.on_step_end

    def explode(self: RunCallback, args: Any, state: Any, control: Any, **extra: Any) -> None:
        if state.global_step > stop_after:
            raise Bang
        original(self, args, state, control, **extra)

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", explode)
        with pytest.raises(Bang):
            train_run(tiny_config, tmp_path / "run", progress=False)
    train_run(tiny_config, tmp_path / "run", resume=True, progress=False)
    same_end(tmp_path / "run", finished_run)


@pytest.mark.slow
def test_killed_again_and_again(tiny_config: RunConfig, finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-c", PROGRAM, str(out), tiny_config.model_dump_json()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    generator = random.Random(0)
    for _ in range(3):
        before = written(out / LOG)
        process = subprocess.Popen(command, env=environment)
        while process.poll() is None and written(out / LOG) == before:
            time.sleep(0.01)  # imports and text come first; the log changes when training does
        time.sleep(generator.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True)
    same_end(out, finished_run)


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(
    tiny_config: RunConfig, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    original = Interrupt.listening

    def asked_at_once(self: Interrupt) -> Any:
        self.requested = not looks
        looks.append(1)
        return original(self)

    monkeypatch.setattr(Interrupt, "listening", asked_at_once)
    with pytest.raises(Interrupted, match=r"stopped at step 1 of 12; go on with: memlm train --resume --out"):
        train_run(tiny_config, tmp_path / "run", progress=False)
    train_run(tiny_config, tmp_path / "run", resume=True, progress=False)
    same_end(tmp_path / "run", finished_run)


def test_a_run_does_not_go_on_with_other_text(tiny_config: RunConfig, tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copytree(tiny_config.data.text, text)
    out = tmp_path / "run"
    train_run(merge_run(tiny_config, {"data": {"text": str(text)}}), out, progress=False)
    (out / "status.json").unlink()
    next(text.iterdir()).write_text("another speech altogether " * 60)
    with pytest.raises(DataError, match="has changed since this run began"):
        train_run(tiny_config, out, resume=True, progress=False)


def test_half_written_checkpoints_are_ignored_and_swept_away(tmp_path: Path) -> None:
    write_folder_atomic(tmp_path / "step-4", lambda folder: (folder / "a").write_text("whole") and None)
    half = tmp_path / ".step-8.draft"
    half.mkdir()
    assert newest(tmp_path) == tmp_path / "step-4"
    assert not half.exists()


def test_nothing_is_pickled(finished_run: Path) -> None:
    kinds = {p.suffix for p in finished_run.rglob("*") if p.is_file()}
    assert kinds <= {".safetensors", ".json", ".jsonl", ""}, kinds


def test_a_finished_run_is_left_as_it_is(finished_run: Path, tiny_config: RunConfig) -> None:
    before = (finished_run / "model.safetensors").stat().st_mtime_ns
    train_run(tiny_config, finished_run, resume=True, progress=False)
    assert (finished_run / "model.safetensors").stat().st_mtime_ns == before


def test_a_taken_folder_is_refused_and_unharmed(tmp_path: Path, tiny_config: RunConfig, finished_run: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunFolderError, match="exists and is not empty; choose another --out, or give --resume"):
        RunFolder.create(tmp_path, tiny_config)
    with pytest.raises(RunFolderError, match="is not a run of memlm, so --overwrite leaves it alone"):
        RunFolder.create(tmp_path, tiny_config, overwrite=True)
    assert (tmp_path / "letter.txt").read_text() == "dear"
    folder = RunFolder.open(finished_run)
    with folder.locked(), pytest.raises(RunFolderError, match="another process is training"), folder.locked():
        pass


def test_a_damaged_checkpoint_is_one_clear_error(tiny_config: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_run(tiny_config, out, progress=False)
    (out / "status.json").unlink()
    shutil.rmtree(out / "stages" / "00-reconstruction" / "end")
    optimizer = out / "stages" / "00-reconstruction" / "checkpoints" / "step-12" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors' is damaged: it is not what was written"):
        train_run(tiny_config, out, resume=True, progress=False)
    with ignoring_checksums(), pytest.raises(CheckpointError, match=r"cannot read .*optimizer.safetensors.* damaged"):
        train_run(tiny_config, out, resume=True, progress=False)


def test_more_steps_are_another_run(tiny_config: RunConfig) -> None:
    assert merge_run(tiny_config, {"training": {"steps": 13}}) != tiny_config


def test_overwrite_keeps_what_is_not_ours_and_waits_for_no_one(
    tiny_config: RunConfig, finished_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "notes.txt").write_text("mine")
    with RunFolder.open(run).locked(), pytest.raises(RunFolderError, match="another process is training"):
        RunFolder.create(run, tiny_config, overwrite=True)
    assert (run / "model.safetensors").is_file()
    RunFolder.create(run, tiny_config, overwrite=True)
    assert {p.name for p in run.iterdir()} == {"notes.txt", "run.json", ".lock"}


def test_a_start_that_failed_is_no_obstacle(tiny_config: RunConfig, tmp_path: Path) -> None:
    missing = tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update={"text": "none.txt"})})
    with pytest.raises(DataError, match="no text at"):
        train_run(missing, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.json.draft").write_text("{")
    RunFolder.create(tmp_path / "run", tiny_config)


def test_ctrl_c_in_a_real_process_ends_with_130_and_goes_on(tiny_config: RunConfig, tmp_path: Path) -> None:
    settings, out = tmp_path / "s.yaml", tmp_path / "run"
    long = tiny_config.model_copy(update={"training": tiny_config.training.model_copy(update={"steps": 100_000})})
    settings.write_text(long.model_dump_json())
    command = [sys.executable, "-m", "memlm", "train", "--config", str(settings), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("stages/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "go on with: memlm train --resume --out" in said
    assert "Traceback" not in said
