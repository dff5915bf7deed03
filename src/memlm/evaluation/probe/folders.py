"""Finished folders, kept under a fingerprint of all that decides them, so that no measurement makes one twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from memlm.errors import CheckpointError, DataError
from memlm.files import read_json, write_file_atomic, write_folder_atomic
from memlm.version import __version__

_RECORD = "kept.json"
_checkpoints = shutil.ignore_patterns("checkpoints", _RECORD)


class ProbeCache:
    """Where finished folders are kept.

    Args:
        root: folder of all of them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def fill(self, folder: Path, key: str, *, finished: str) -> bool:
        """Fill a folder with what is kept; False where nothing whole is.

        Args:
            folder: what stands there is replaced, unless it is finished itself.
            key: of `fingerprint`.
            finished: the file or folder that only a finished one has.
        """
        kept = self.root / key
        if (folder / finished).exists():
            return True
        if not _whole(kept):
            return False
        write_folder_atomic(folder, partial(_copy, kept))
        return True

    def keep(self, folder: Path, key: str) -> None:
        """Keep a finished folder, all but its checkpoints.

        Raises:
            DataError: the shelf cannot be written.
        """
        if _whole(self.root / key):
            return
        try:
            write_folder_atomic(self.root / key, partial(_copy_with_record, folder))
        except OSError as error:
            raise DataError(
                f"cannot keep '{folder.name}' in '{self.root}': {error.strerror}; set MEMLM_CACHE."
            ) from error


def fingerprint(**deciding: Any) -> str:
    """40 hexadecimal digits of this version and everything given; tensors by their numbers, the rest as JSON."""
    digest = hashlib.sha256(__version__.encode())
    for name, value in sorted(deciding.items()):
        digest.update(f"\0{name}\0".encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy().tobytes())
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()[:40]


def _whole(kept: Path) -> bool:
    """Whether every file of it is as it was written."""
    try:
        return _hashes(kept) == read_json(kept / _RECORD)
    except (CheckpointError, OSError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != _RECORD)
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _copy(source: Path, draft: Path) -> None:
    shutil.copytree(source, draft, ignore=_checkpoints, dirs_exist_ok=True)


def _copy_with_record(source: Path, draft: Path) -> None:
    _copy(source, draft)
    write_file_atomic(draft / _RECORD, json.dumps(_hashes(draft), indent=2) + "\n")
