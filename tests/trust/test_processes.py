"""Children end with their parent, signals give one line, and no environment gives a traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trust import KILLS

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


COMMANDS = {
    "remember": "remember {corpus} --store {out} --model {run}",
    "train": "train autoencoder-tiny --text {corpus} --data.vocab_size 300 --steps 40 --out {out}",
    "probe": "probe --encoder {run} --text {corpus} --lengths 8 --no-controls --steps 5 --out {out}",
    "claims": "claims --workers 2 --seeds 1 --out {out}",
}


def stopped_after(delay: float, number: int, command: list[str]) -> None:
    """Send a signal so many seconds after Python can hand it to memlm, and check the answer."""
    running = subprocess.Popen([*MEMLM, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert until(lambda: handles(running.pid, number))
    time.sleep(delay)
    running.send_signal(number)
    _, err = running.communicate(timeout=120)
    told = [line for line in err.splitlines() if line.startswith("memlm: ") and ": note:" not in line]
    assert "Traceback" not in err
    assert (running.returncode, len(told)) in ((128 + number, 1), (0, 0)), (delay, err)


def handles(process: int, number: int) -> bool:
    """Return whether a process has a function for a signal; Python itself has one for SIGINT, none for SIGTERM."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return all(int(caught, 16) >> (each - 1) & 1 for each in (number, signal.SIGTERM))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("name", "delay", "number"),
    [("remember", 0.0, 2), ("remember", 0.3, 15), ("train", 0.1, 2), ("probe", 1.0, 15), ("claims", 2.0, 2)],
)
def test_a_command_stops_while_its_modules_are_imported(
    name: str, delay: float, number: int, finished_run: Path, corpus: Path, tmp_path: Path
) -> None:
    command = COMMANDS[name].format(run=finished_run, corpus=corpus, out=tmp_path / "out")
    stopped_after(delay, number, command.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_stops_at_any_moment(name: str, finished_run: Path, corpus: Path, tmp_path: Path) -> None:
    draw = random.Random(name)
    for trial in range(KILLS):
        command = COMMANDS[name].format(run=finished_run, corpus=corpus, out=tmp_path / f"{trial}")
        stopped_after(draw.choice([draw.uniform(0, 3), draw.uniform(3, 20)]), draw.choice([2, 15]), command.split())


def test_an_interrupt_within_an_import_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    for _ in range(10**6): pass\nexcept BaseException: pass\nprint('went on')\n"
    )
    start = "import sys; import memlm.cli; sys.argv = ['memlm', 'recipes']; import memlm.__main__ as m; "
    change = "memlm.cli._command = lambda name: __import__('swallows'); sys.exit(m.main())"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", start + change], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "memlm: stopped.\n")


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
