"""The checksums of what memlm writes: `checksums.json` names each file of a folder with its SHA-256.

They tell damage before anything is read, and what memlm may replace and delete: nothing that they do not name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from memlm.errors import CheckpointError
from memlm.switches import IGNORE_CHECKSUMS
from memlm.version import __version__

SUMS: Final = "checksums.json"
"""The file that names the files that memlm wrote into a folder."""
_FORMAT: Final = 1
ignoring_checksums = IGNORE_CHECKSUMS.here
"""A context in which files are read although they are not what was written."""


def sums_text(files: dict[str, str]) -> str:
    """Return the contents of `checksums.json` for files with these hashes."""
    return json.dumps({"format": _FORMAT, "memlm": __version__, "files": dict(sorted(files.items()))}, indent=1) + "\n"


def check_folder(folder: Path, names: Iterable[str] | None = None) -> None:
    """Check files against `checksums.json`, all or those with these names; a folder without it is of an older memlm.

    Raises:
        CheckpointError: a file is missing or not what was written, or a newer memlm wrote the folder.
    """
    if IGNORE_CHECKSUMS.is_on() or not os.path.lexists(folder / SUMS):
        return
    files = _sums(folder)
    for name in files if names is None else files.keys() & set(names):
        path = folder / name
        try:
            found = file_hash(path)
        except OSError as error:
            raise CheckpointError(f"cannot read '{path}' ({error.strerror}); {REMEDY}") from error
        if found != files[name]:
            raise CheckpointError(f"'{path}' is damaged: it is not what was written (its hash differs); {REMEDY}")


REMEDY: Final = "restore it, or go on regardless (--ignore-checksums)."
"""The way out of damage."""


def _sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        number, files = record["format"], dict(record["files"])
        outside = any(PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts for n in files)
        if not isinstance(number, int) or outside or not all(isinstance(h, str) for h in files.values()):
            raise ValueError("it is not a list of files")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"'{path}' is damaged ({' '.join(str(error).split())[:80]}); {REMEDY}") from error
    check_format(folder, number, _FORMAT)
    return files


def check_format(place: Path, found: object, newest: int) -> None:
    """Check that a format is not newer than what this memlm reads; None is the format before there were numbers.

    Raises:
        CheckpointError: it is newer, or no number.
    """
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise CheckpointError(f"'{place}' has format {str(found)[:40]!r}, which is no number; restore it.")
    if found is not None and found > newest:
        raise CheckpointError(f"'{place}' has format {found}, this memlm reads up to {newest}; install a newer memlm.")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_in(folder: Path) -> set[str]:
    """Return the names of everything in a folder but folders, with symbolic links."""
    found: set[str] = set()
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        found |= {os.path.relpath(Path(root, name), folder) for name in (*files, *links)}
    return found - {SUMS}


def written_files(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that memlm wrote into a folder, none where it does not say so."""
    with suppress(CheckpointError):
        return _sums(folder) if (folder / SUMS).is_file() else {}
    return {}
