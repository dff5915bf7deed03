"""Two processes train what one does: sums over both, divided by what both were asked for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
