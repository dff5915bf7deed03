"""A cache of vectors on disk: the vectors of a list of texts are computed once and stored in shards.

A folder belongs to one encoder and one list of texts, identified by their fingerprints. Texts are sorted by length to
save padding, and cut into shards. Each shard is written atomically, so an interrupted run continues with the first
missing one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.data import texts_fingerprint
from memlm.encoders import Encoder
from memlm.errors import CheckpointError, DataError
from memlm.files import read_json, read_tensors, write_file_atomic, write_tensors_atomic

FORMAT = 1
_SHARD = 512
"""Texts in a shard."""
Progress = Callable[[int, int], None]
"""A callback that receives the number of texts done and of texts in all."""


def default_cache() -> Path:
    """Return the folder of cached vectors and probes: $MEMLM_CACHE, or memlm in the user's cache folder."""
    folder = os.environ.get("MEMLM_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memlm"


def embed(
    encoder: Encoder, texts: Sequence[str], *, cache: Path | None = None, progress: Progress | None = None
) -> Float[Tensor, "texts numbers"]:
    """Return one vector per text, (texts, numbers); vectors that are not on disk are computed.

    The folder `cache` is by default "vectors" in `default_cache()`; `progress` is called after each shard.

    Raises:
        CheckpointError: a shard is damaged, or the folder belongs to another encoder.
        DataError: the encoder returned NaN or infinity, or the folder cannot be written.
    """
    key = hashlib.sha256(f"{FORMAT} {encoder.fingerprint} {texts_fingerprint(texts)}".encode()).hexdigest()[:40]
    folder = (cache or default_cache() / "vectors") / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, encoder, texts)
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        parts: list[Tensor] = []
        for first in range(0, len(order), _SHARD):
            chosen = [texts[i] for i in order[first : first + _SHARD]]
            parts.append(_shard(folder / f"shard-{first // _SHARD:06d}.safetensors", encoder, chosen))
            if progress is not None:
                progress(first + len(chosen), len(texts))
    except OSError as error:
        raise DataError(f"cannot store vectors in '{folder}': {error.strerror or error}; set MEMLM_CACHE.") from error
    vectors = torch.empty(len(texts), encoder.width)
    vectors[torch.tensor(order)] = torch.cat(parts) if parts else vectors
    return vectors


def _claim(folder: Path, encoder: Encoder, texts: Sequence[str]) -> None:
    """Write the description of a new folder, or check that of an existing one."""
    description = {
        "format": FORMAT,
        "encoder": encoder.fingerprint,
        "texts": texts_fingerprint(texts),
        "count": len(texts),
        "width": encoder.width,
    }
    path = folder / "vectors.json"
    if not path.exists():
        write_file_atomic(path, json.dumps(description, indent=2) + "\n")
        return
    found = read_json(path)
    for name, value in description.items():
        if found.get(name) != value:
            values = f"({str(found.get(name))[:16]}, not {str(value)[:16]})"
            raise CheckpointError(f"'{folder}' was made with another {name} {values}; remove it or set MEMLM_CACHE.")


def _shard(path: Path, encoder: Encoder, texts: list[str]) -> Tensor:
    if path.exists():
        stored = read_tensors(path).get("vectors")
        if stored is None or stored.shape != (len(texts), encoder.width):
            shape = None if stored is None else tuple(stored.shape)
            expected = (len(texts), encoder.width)
            raise CheckpointError(f"'{path}' holds vectors of shape {shape}, not {expected}; remove that file.")
        return stored
    vectors = encoder.encode(texts)
    bad = int((~torch.isfinite(vectors)).any(1).sum())
    if bad:
        raise DataError(f"{encoder.name} returned NaN or infinity for {bad} of {len(texts)} texts; try another layer.")
    write_tensors_atomic(path, {"vectors": vectors.contiguous()})
    return vectors
