"""Ablation of `autoencoder-tiny`: one change at a time, and the design of arXiv 2602.13466, at equal tokens.

    python -m benchmarks.ablation --out runs/ablation            # 11 variants, 3 seeds; may be interrupted
    python -m benchmarks.ablation --out runs/ablation --steps 400

Prints a Markdown table of the validation token accuracy (mean over seeds, lowest and highest) and of the training
tokens after which it first reached 50, 90 and 99 %.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from memlm.recipes import get_recipe
from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig, merge_run

ADAMW = {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.999]}
PAPER = {"num_heads": 4, "bottleneck": "last_token", "readout": "windowed"}
VARIANTS: dict[str, dict[str, Any]] = {
    "autoencoder-tiny": {},
    "AdamW": {"training": {"optimizer": ADAMW}},
    "bottleneck last_token": {"model": {"bottleneck": "last_token"}},
    "readout windowed": {"model": {"readout": "windowed"}},
    "both positionwise": {"model": {"bottleneck": "positionwise", "readout": "positionwise"}},
    "4 heads": {"model": {"num_heads": 4}},
    "1 head (flat)": {"model": {"num_heads": 1}},
    "two-sided": {"model": {"causal": False}},
    "Llama layers": {"model": {"backbone": "llama"}},
    "paper, with Muon": {"model": {**PAPER, "noise_bits": None, "memory_activation": "none"}},
    "paper (AdamW)": {
        "model": {**PAPER, "noise_bits": None, "memory_activation": "none"},
        "training": {"optimizer": ADAMW},
    },
}
SHARES = (0.5, 0.9, 0.99)


def variant(name: str, *, seed: int, steps: int) -> RunConfig:
    """Return the tiny recipe with one change."""
    base = merge_run(get_recipe("autoencoder-tiny"), VARIANTS[name])
    # split, weights and order of rows all follow the seed; variants of one seed share their split
    times = {"seed": seed, "steps": steps, "evaluate_every": 10, "evaluate_rows": 256, "checkpoint_every": steps}
    return merge_run(base, {"recipe": f"ablation {name}", "training": times})


def run(name: str, *, seed: int, steps: int, out: Path) -> list[dict[str, Any]]:
    """Return the log of one variant and seed, which is trained unless it is finished."""
    folder = out / f"{name.replace(' ', '-').replace('(', '').replace(')', '').replace(',', '')}-{steps}-seed{seed}"
    begun = (folder / "run.json").is_file()
    train_run(variant(name, seed=seed, steps=steps), folder, resume=begun, progress=False)
    return [line for line in RunFolder(folder).log() if "validation_token_accuracy" in line]


def tokens_to(log: list[dict[str, Any]], share: float) -> float | None:
    """Return the training tokens after which validation accuracy first reached a share."""
    reached = [line["tokens"] for line in log if line["validation_token_accuracy"] >= share]
    return reached[0] if reached else None


def row(name: str, logs: list[list[dict[str, Any]]]) -> str:
    """Return one row of the table."""
    ends = sorted(100 * log[-1]["validation_token_accuracy"] for log in logs)
    cells = [name, f"{sum(ends) / len(ends):.2f} % ({ends[0]:.2f} to {ends[-1]:.2f})"]
    for share in SHARES:
        reached = [tokens_to(log, share) for log in logs]
        known = [r for r in reached if r is not None]
        cells.append(f"{sum(known) / len(known) / 1e6:.2f} M" if len(known) == len(logs) else "not reached")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Train missing variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    given = parser.parse_args()
    print(f"| {given.steps} steps, {given.seeds} seeds | validation token accuracy | to 50 % | to 90 % | to 99 % |")
    print("| --- | --- | --- | --- | --- |")
    for name in given.only:
        logs = [run(name, seed=seed, steps=given.steps, out=given.out) for seed in range(given.seeds)]
        print(row(name, logs), flush=True)


if __name__ == "__main__":
    main()
