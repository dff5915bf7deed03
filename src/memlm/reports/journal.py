"""Measurements in a file, one JSON line each; what a crash cut short is never read as a figure."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from memlm.errors import DataError
from memlm.measurement import Measurement


def append(path: str | Path, measurements: Iterable[Measurement]) -> None:
    """Add measurements to a journal, all lines in one write, on the disk before returning."""
    lines = "".join(m.to_json_line() + "\n" for m in measurements)
    file = Path(path)
    cut_short = file.exists() and file.stat().st_size and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if cut_short else "") + lines)
        stream.flush()
        os.fsync(stream.fileno())


def read(path: str | Path) -> list[Measurement]:
    """All measurements of a journal in the order they were added; lines that a crash cut short are left out.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no measurements at '{path}'; make some with `memlm evaluate {file.parent}`.")
    found: list[Measurement] = []
    for line in file.read_bytes().split(b"\n"):
        # a crash may cut a line anywhere, also inside a character
        with contextlib.suppress(DataError):
            found.append(Measurement.from_json_line(line.decode("utf-8", "replace")))
    return found


def latest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The last measurement of each name, split and protocol, in the order in which they first came."""
    last = {(m.split, m.name, m.protocol): m for m in measurements}
    return list(last.values())
