"""Cost of retention: validation next-token loss of a mixture relative to next tokens alone, at equal steps.

    python -m benchmarks.retention_cost runs/next runs/memory

Reads the runs' logs, whose loss is measured on `evaluate_rows` validation rows every `evaluate_every` steps, and shows
the second run's blank-copy accuracy beside it. `memlm evaluate` measures bits per byte on all held-out text.
"""

from __future__ import annotations

import argparse
from typing import Any

from memlm.training import RunFolder

_LOSS, _COPY = "validation_loss/next_token", "validation_accuracy/blank_copy"


def looks(path: str) -> dict[int, dict[str, Any]]:
    """Return the lines of a log with a validation next-token loss, by step."""
    return {line["step"]: line for line in RunFolder.open(path).log() if _LOSS in line}


def main() -> None:
    """Print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alone", help="run folder of next tokens alone")
    parser.add_argument("mixture", help="run folder of the mixture")
    options = parser.parse_args()
    alone, mixture = looks(options.alone), looks(options.mixture)
    print("| step | next tokens alone, nats | mixture, nats | retention cost | blank copy |")
    print("| --- | --- | --- | --- | --- |")
    for step in sorted(alone.keys() & mixture.keys()):
        before, after = alone[step][_LOSS], mixture[step][_LOSS]
        copied = mixture[step].get(_COPY, 0.0)
        print(f"| {step} | {before:.4f} | {after:.4f} | {100 * (after / before - 1):+.2f} % | {100 * copied:.2f} % |")


if __name__ == "__main__":
    main()
