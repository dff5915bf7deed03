"""Losses of rows, kept in a file as they come, so that a long measurement goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.errors import DataError
from memlm.files import append_text


@dataclass(frozen=True, eq=False)
class Losses:
    """Mean loss of each row's scored tokens behind one kind of context.

    Attributes:
        name: the context, such as "memories" or "truncation".
        ratio: old tokens for each entry of the cache; None where there is no such number.
        nats: (rows,).
    """

    name: str
    ratio: int | None
    nats: Float[Tensor, " rows"]


_START, _END = b'{"key": "', b"]]}"
"""Both ends of a line."""


class KeptLosses:
    """Losses of batches in a file of JSON lines, which several processes may append to.

    Args:
        path: the file, which need not exist; None keeps nothing.

    Raises:
        DataError: a complete line of the file is not one of ours.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._found: dict[str, list[Losses]] = {}
        if self.path is not None and self.path.exists():
            for number, line in enumerate(self.path.read_bytes().splitlines(), 1):
                # a crash may cut a line short, and a later process goes on behind it
                if line.endswith(_END) or not _START.startswith(line[: len(_START)]):
                    self._read(number, line)

    def _read(self, number: int, line: bytes) -> None:
        try:
            record = json.loads(line)
            losses = [Losses(name, ratio, torch.tensor(nats)) for name, ratio, nats in record["losses"]]
        except (ValueError, TypeError, KeyError, RuntimeError) as e:
            raise DataError(f"line {number} of '{self.path}' holds no losses; give another file.") from e
        self._found[record["key"]] = losses

    def of(self, key: str, compute: Callable[[], Iterable[Losses]]) -> list[Losses]:
        """Return the losses kept under a key, or compute and keep them."""
        if key not in self._found:
            self._found[key] = list(compute())
            if self.path is not None:
                self._append(self.path, key)
        return self._found[key]

    def _append(self, path: Path, key: str) -> None:
        losses = [(found.name, found.ratio, found.nats.tolist()) for found in self._found[key]]
        append_text(path, json.dumps({"key": key, "losses": losses}) + "\n")


def losses_key(ids: Int[Tensor, "rows tokens"], **what: Any) -> str:
    """Return a hash of rows and of everything else that their losses depend on."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode())
    digest.update(ids.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
