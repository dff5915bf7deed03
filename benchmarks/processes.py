"""Throughput of a run in two processes with one core each, compared with one process; and its losses.

    python -m benchmarks.processes
    python -m benchmarks.processes --recipe autoencoder-tiny --steps 40
    python -m benchmarks.processes --changes training.precision=fp32 training.optimizer.name=adamw

Both train the same steps on the same rows; the first steps, in which processes start, are left out. The machine must be
otherwise idle, with a core for each process. Rounding differences are small in fp32 with AdamW; Muon computes in bf16
where the machine supports it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from memlm.training import RunFolder


@dataclass(frozen=True)
class Options:
    """The settings of the benchmark."""

    recipe: str = "memory-tiny"
    """Name of a recipe."""
    steps: int = 60
    """Updates of each run."""
    processes: int = 2
    """Number of processes, compared with one."""
    repeats: int = 3
    """Number of repetitions, both alternating."""
    text: str | None = None
    """Training text; the bundled speeches by default."""
    batch_size: int | None = None
    """Rows of a step over all processes; the recipe's by default."""
    changes: tuple[str, ...] = ()
    """Other settings of `memlm train`, such as training.precision=fp32."""


def trained(options: Options, folder: Path, *, processes: int) -> list[dict[str, float]]:
    """Train a run and return its log."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command = [sys.executable, "-m", *(launcher if processes > 1 else ()), "memlm", "train", options.recipe]
    command += ["--steps", str(options.steps), "--out", str(folder), "--training.log_every", "10"]
    # time steps alone, without evaluations and checkpoints
    command += ["--training.evaluate_every", str(10**6), "--training.checkpoint_every", str(10**6)]
    command += [word for change in options.changes for word in f"--{change}".split("=", 1)]
    command += [] if options.batch_size is None else ["--training.batch_size", str(options.batch_size)]
    command += [] if options.text is None else ["--text", options.text]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, capture_output=True)  # noqa: S603 - ours
    return RunFolder(folder).log()


def rate(log: list[dict[str, float]]) -> float:
    """Return the tokens per second between the first and the last line of a log."""
    return (log[-1]["tokens"] - log[0]["tokens"]) / (log[-1]["seconds"] - log[0]["seconds"])


def main(options: Options) -> None:
    """Train alternately and print the ratios."""
    ratios: list[float] = []
    apart = 0.0
    for number in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            logs = {n: trained(options, Path(folder) / str(n), processes=n) for n in (1, options.processes)}
        one, several = (rate(log) for log in logs.values())
        ratios.append(several / one)
        pairs = zip(*logs.values(), strict=True)
        apart = max(apart, *(abs(a["loss"] - b["loss"]) for a, b in pairs))
        print(f"{number + 1}: {one:,.0f} tokens/s in one, {several:,.0f} in several: {several / one:.2f} times")
    print(f"{options.recipe}: {sorted(ratios)[len(ratios) // 2]:.2f} times as fast per token (median), ", end="")
    print(f"from {min(ratios):.2f} to {max(ratios):.2f}; losses differ by {apart:.1e} nats at most")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
