"""The seal: a hash of the whole index at rest, so that a flipped bit is seen even where no row stands.

It is written after each commit. Between the two a crash leaves an older seal, which says so by its number of commits;
then the rows' own seals are what is checked, and the next writer seals again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from memlm.errors import DamagedStoreError
from memlm.files import write_file_whole
from memlm.store.format import index
from memlm.store.format.segments import file_hash

NAME = "seal.json"


@dataclass(frozen=True)
class Seal:
    """The index after so many commits."""

    commits: int
    index_sha256: str | None
    """None where a reader kept the last commits from the main file."""


def write_seal(folder: Path, commits: int, *, settled: bool) -> None:
    """Of the index as it is now."""
    seal = Seal(commits, file_hash(folder / index.NAME) if settled else None)
    write_file_whole(folder / NAME, _text(seal))


def read_seal(folder: Path) -> Seal:
    """Read and check it.

    Raises:
        DamagedStoreError: missing, or not what was written.
    """
    path = folder / NAME
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        seal = Seal(values["commits"], values["index_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedStoreError(f"'{path}' is damaged or missing ({' '.join(str(error).split())[:80]}).") from error
    if text != _text(seal):
        raise DamagedStoreError(f"'{path}' is not what was written (its hash differs).")
    return seal


def _text(seal: Seal) -> str:
    values = asdict(seal)
    own = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps({**values, "sha256": own}) + "\n"
