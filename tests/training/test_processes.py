"""Two processes train what one does: sums over both, divided by what both were asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig, merge_run

ROOT = Path(__file__).parent.parent.parent
_SECONDS = 120
"""After which a process that waits for the other is a failure, not a hang."""


def trained(out: Path, processes: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights at the end, and the norm of each step's gradient."""
    out.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.training.two_processes", str(out), str(8 // processes)]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    running = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else shared,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        for process in running:
            out_text, error = process.communicate(timeout=_SECONDS)
            assert process.returncode == 0, error
            said = json.loads(out_text)
            assert said["processes"] == processes
    finally:
        for process in running:
            process.kill()
    return load_file(out / "model.safetensors"), said["norms"]


def test_two_processes_end_where_one_does(tmp_path: Path) -> None:
    (one, norms_of_one), (two, norms_of_two) = trained(tmp_path / "one", 1), trained(tmp_path / "two", 2)
    assert norms_of_two == pytest.approx(norms_of_one, rel=1e-4)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "memlm")


def launched(*arguments: str) -> subprocess.Popen[str]:
    """`memlm` in two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*LAUNCHER, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said."""
    try:
        _, said = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    return process.returncode, said


def losses(folder: Path) -> list[dict[str, float]]:
    """What the log says but times."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "stage")} for line in RunFolder(folder).log()]


@pytest.fixture(scope="module")
def quiet(memory_config: RunConfig) -> RunConfig:
    """Without the noise that every process draws for its own rows."""
    return merge_run(memory_config, {"model": {"encoder": {"noise_bits": None}}})


@pytest.fixture(scope="module")
def alone(quiet: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return train_run(quiet, tmp_path_factory.mktemp("alone") / "run", progress=False).path


@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_run_under_a_launcher_is_that_of_one_process(
    sharding: str, quiet: RunConfig, alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(quiet.model_dump_json())
    flags = ("--config", str(tmp_path / "run.yaml"), "--training.sharding", sharding)
    code, said = ended(launched("train", *flags, "--out", str(tmp_path / "two")))
    assert code == 0, said
    assert said.count("trained: ") == 1
    weights = load_file(tmp_path / "two" / "model.safetensors")
    for name, weight in load_file(alone / "model.safetensors").items():
        # rounding grows where the optimizer computes in bf16
        torch.testing.assert_close(weights[name], weight, rtol=0.05, atol=2e-3, msg=lambda m, n=name: f"{n}: {m}")
    for one, two in zip(losses(alone), losses(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-5)
    assert (tmp_path / "two" / "data.json").is_file()
    assert not list((tmp_path / "two").rglob("*.draft"))


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_a_process_that_is_killed_ends_all_and_the_run_goes_on(
    sharding: str, quiet: RunConfig, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    (tmp_path / "run.yaml").write_text(quiet.model_dump_json())
    flags = ("--config", str(tmp_path / "run.yaml"), "--training.sharding", sharding)
    running = launched("train", *flags, "--out", str(out))
    until = time.monotonic() + _SECONDS
    while not list(out.glob("stages/*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.02)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code, said = ended(running)
    assert code != 0
    assert "SIGKILL" in said or "Signal 9" in said
    assert not (out / "status.json").is_file()
    # checkpoints are whole: one process goes on where two were, too
    shutil.copytree(out, tmp_path / "in_one")
    train_run(quiet, tmp_path / "in_one", resume=True, progress=False)
    code, said = ended(launched("train", "--resume", "--out", str(out)))
    assert code == 0, said
    for folder in (out, tmp_path / "in_one"):
        for one, two in zip(losses(alone), losses(folder), strict=True):
            assert two == pytest.approx(one, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--training.batch_size", "9"), "training.batch_size (9) must be divisible by the 2 processes"),
        (("--data.text", "nowhere"), "nowhere"),
        (("--training.sharding", "zero3"), "training.sharding"),
    ],
)
def test_mistakes_end_all_processes(
    changes: tuple[str, ...], message: str, memory_config: RunConfig, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text(memory_config.model_dump_json())
    flags = ("--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "two"))
    code, said = ended(launched("train", *flags, *changes))
    assert code != 0
    assert f"memlm: error: {message}" in said or message in said
    assert "Traceback" not in said.split("ChildFailedError")[0].split("memlm: error")[0]
