"""Measurements in a file, one JSON line each; what a crash cut short is never read as a figure."""

from __future__ import annotations

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
    """All measurements of a journal, the latest of each name, split and protocol last; broken lines are left out.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no measurements at '{path}'; make some with `memlm evaluate {file.parent}`.")
    found: list[Measurement] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Measurement.from_json_line(line))
        except DataError:
            continue
    return found


def latest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """The last measurement of each name, split and protocol, in the order in which they first came."""
    last = {(m.split, m.name, m.protocol): m for m in measurements}
    return list(last.values())
