"""Children end with their parent, signals give one line, and no environment gives a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MEMLM = [sys.executable, "-m", "memlm"]
PARENT = """
import os, sys, time
from memlm.processes import stoppable, worker_pool
from tests.trust.test_processes import told

def main():
    with stoppable(), worker_pool(2) as pool:
        jobs = [pool.run(told, sys.argv[1], number) for number in range(2)]
        [job.result() for job in jobs]

if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("stopped")
"""


def told(folder: str, number: int) -> None:
    """Write this process's id to a file, and wait."""
    Path(folder, f"{number}.tmp").write_text(str(os.getpid()))
    Path(folder, f"{number}.tmp").rename(Path(folder, f"{number}.pid"))
    time.sleep(60)


def alive(number: int) -> bool:
    """Return True for a process that runs."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(check: Callable[[], object], seconds: float = 60.0) -> bool:
    """Wait for something to become true; return whether it did."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(number: int, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    children = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert all(map(alive, children))
    parent.send_signal(number)
    out, err = parent.communicate(timeout=60)
    assert until(lambda: not any(map(alive, children)), 20)
    assert "Traceback" not in err
    assert out == ("" if number == signal.SIGKILL else "stopped\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_gives_one_line(number: int, code: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # holds the command where it reads
    command = [*MEMLM, "train", "autoencoder-tiny", "--text", str(tmp_path / "pipe"), "--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    opened = Path(f"/proc/{running.pid}/fd")
    assert until(lambda: any(os.path.realpath(link).endswith("/pipe") for link in opened.iterdir()))
    running.send_signal(number)
    out, err = running.communicate(timeout=60)
    os.close(writer)
    assert (running.returncode, out, err) == (code, "", "memlm: stopped.\n")


ENVIRONMENTS = {
    "an ASCII stdout on a narrow terminal": ("recipes", {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"}, "", 0),
    "closed stdin and stdout": ("recipes", {"COLUMNS": "x"}, "<&- >&-", 0),
    "a full stdout": ("recipes", {}, ">/dev/full", 2),
    "an unusable rank": ("recipes", {"RANK": "abc"}, "", 2),
    "an unusable number of processes": ("recipes", {"WORLD_SIZE": "-1"}, "", 2),
    "closed stdout and an error": ("recipes a b", {}, ">&-", 2),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_no_environment_gives_a_traceback(name: str) -> None:
    arguments, changes, closed, code = ENVIRONMENTS[name]
    command = f"{sys.executable} -m memlm {arguments} {closed}"
    done = subprocess.run(["/bin/sh", "-c", command], env={**os.environ, **changes}, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


FORKS = """
import multiprocessing
from memlm.processes import stoppable

with stoppable():
    for _ in range(40):
        # most of its processes are told to end, by SIGTERM, before they have begun
        with multiprocessing.get_context("fork").Pool(8) as pool:
            pool.map(abs, [-1])
print("behind", flush=True)
"""


def test_processes_that_a_library_forks_end_as_it_asks_them_to() -> None:
    run = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=60)
    assert run.stdout == "behind\n", run.stderr
