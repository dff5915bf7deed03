"""Training tokens after which runs first reached 50, 90 and 99 % validation token accuracy.

    python -m benchmarks.curves runs/tiny runs/paper

Reads the runs' logs, whose accuracy is measured on `evaluate_rows` validation rows every `evaluate_every` steps.
"""

from __future__ import annotations

import argparse

from benchmarks.ablation import SHARES, tokens_to
from memlm.training import RunFolder


def row(path: str) -> str:
    """Return the row of a run."""
    folder = RunFolder.open(path)
    log = [line for line in folder.log() if "validation_token_accuracy" in line]
    last = log[-1]
    reached = [tokens_to(log, share) for share in SHARES]
    cells = [
        folder.config().recipe,
        *("not reached" if r is None else f"{r / 1e6:.2f} M" for r in reached),
        f"{last['tokens'] / 1e6:.2f} M",
        f"{100 * last['validation_token_accuracy']:.2f} %",
        f"{last['seconds'] / 60:.1f} min",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders")
    print("| recipe | to 50 % | to 90 % | to 99 % | trained on | accuracy then | training time |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for path in parser.parse_args().runs:
        print(row(path))


if __name__ == "__main__":
    main()
