"""Segments: safetensors files that hold documents one after the other; they are written once and never changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memlm.errors import DamagedStoreError
from memlm.files import write_tensors_atomic
from memlm.store.format.document import StoredDocument, data_hash, tensors_of

FOLDER = "segments"
_BYTES = "corrections"
_PIECE = 2**22
"""Bytes that are read at once."""


@dataclass(frozen=True)
class SegmentSlice:
    """The part of a segment that holds a document.

    Attributes:
        segment: number of the segment.
        first_chunk: its first chunk in the segment.
        chunks: number of its chunks.
        first_byte: the first byte of its corrections in the segment.
        num_bytes: size of its corrections.
    """

    segment: int
    first_chunk: int
    chunks: int
    first_byte: int
    num_bytes: int


@dataclass(frozen=True)
class Segment:
    """The index's row of a segment.

    Attributes:
        number: of the segment, from 0.
        sha256: hash of the file.
        size: of the file in bytes.
        chunks: number of chunks in it.
    """

    number: int
    sha256: str
    size: int
    chunks: int


def segment_path(folder: Path, number: int) -> Path:
    """Return the file of a segment."""
    return folder / FOLDER / f"{number:010d}.safetensors"


def write_segment(
    folder: Path, number: int, documents: Sequence[StoredDocument]
) -> tuple[Segment, list[tuple[SegmentSlice, str]]]:
    """Write documents as one file, atomically; return each document's slice and the hash of its data."""
    parts = [tensors_of(document) for document in documents]
    path = segment_path(folder, number)
    write_tensors_atomic(path, {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]})
    slices: list[tuple[SegmentSlice, str]] = []
    chunk = byte = 0
    for part in parts:
        own = SegmentSlice(number, chunk, len(part["values"]), byte, len(part[_BYTES]))
        slices.append((own, data_hash(part)))
        chunk, byte = chunk + own.chunks, byte + own.num_bytes
    return Segment(number, file_hash(path), path.stat().st_size, chunk), slices


def read_tensors_at(folder: Path, location: SegmentSlice) -> dict[str, Tensor]:
    """Read a document's tensors and nothing else of the segment.

    Raises:
        DamagedStoreError: the file is missing, cut short or not a segment.
    """
    path = segment_path(folder, location.segment)
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                chunks, size = (location.first_chunk, location.chunks), (location.first_byte, location.num_bytes)
                first, count = size if name == _BYTES else chunks
                found[name] = file.get_slice(name)[first : first + count]
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DamagedStoreError(
            f"'{path}' cannot be read ({str(error).splitlines()[0]}); restore it from a copy, "
            "or delete the documents in it."
        ) from error
    return found


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
