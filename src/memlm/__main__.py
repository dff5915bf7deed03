"""The command line begins here, also as `python -m memlm`: a signal has its answer before anything else is imported."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from types import FrameType


def main() -> int:
    """Run the command of this process's arguments, and return its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    return import_module("memlm.cli").main()


def _end(number: int, _frame: FrameType | None) -> None:
    """End at once with one line: nothing has begun yet, or all is done."""
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"memlm: stopped.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
