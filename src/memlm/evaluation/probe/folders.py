"""Folders of measurements, and a cache of finished ones under a fingerprint of everything that determines them."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from memlm.checksums import SUMS, check_folder
from memlm.errors import CheckpointError, DataError, RunFolderError
from memlm.files import read_json, write_file_atomic, write_folder_atomic
from memlm.version import __version__

_checkpoints = shutil.ignore_patterns("checkpoints")


def claim_folder(out: Path, record: dict[str, Any]) -> None:
    """Reserve a folder for one measurement, which may continue there later.

    Args:
        out: the folder; it is made where it does not exist.
        record: the settings that identify the measurement, by name.

    Raises:
        RunFolderError: the folder holds another measurement or other files, or cannot be written.
    """
    path = out / "probe.json"
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"'{out}' is a file, not a folder; choose another --out.")
    if path.is_file():
        before = read_json(path)
        changed = sorted(k for k in record if before.get(k) != record[k])
        if changed:
            raise RunFolderError(
                f"'{out}' holds the probe of another {changed[0]}; choose another --out, or remove that folder."
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise RunFolderError(f"'{out}' is not empty and holds no probe; choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_file_atomic(path, json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise RunFolderError(f"cannot write to '{out}': {error.strerror or error}; choose another --out.") from error


def restore(folder: Path, cached: Path, *, finished: str) -> bool:
    """Fill a folder with the cached one; return False where there is none, or a damaged one.

    Args:
        folder: the folder to fill; its content is replaced, unless it is finished itself.
        cached: the folder in the cache, named by its `fingerprint`.
        finished: the name of a file or folder that only a finished folder has.
    """
    if (folder / finished).exists():
        return True
    if not _intact(cached):
        return False
    write_folder_atomic(folder, partial(_copy, cached), owned=True)
    return True


def save(folder: Path, cached: Path) -> None:
    """Copy a finished folder to the cache, without its checkpoints.

    Raises:
        DataError: the cache cannot be written.
    """
    if _intact(cached):
        return
    try:
        write_folder_atomic(cached, partial(_copy, folder), owned=True)
    except OSError as error:
        raise DataError(
            f"cannot keep '{folder.name}' in '{cached.parent}': {error.strerror}; set MEMLM_CACHE."
        ) from error


def fingerprint(**deciding: Any) -> str:
    """Return 40 hexadecimal digits for the arguments and the version; tensors by their bytes, the rest as JSON."""
    digest = hashlib.sha256(__version__.encode())
    for name, value in sorted(deciding.items()):
        digest.update(f"\0{name}\0".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()[:40]


def _intact(cached: Path) -> bool:
    try:
        check_folder(cached)
    except CheckpointError:
        return False
    return (cached / SUMS).is_file()


def _copy(source: Path, draft: Path) -> None:
    shutil.copytree(source, draft, ignore=_checkpoints, dirs_exist_ok=True)
