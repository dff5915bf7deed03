"""Segments: safetensors files that hold documents one after the other, written once and never changed."""

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


@dataclass(frozen=True)
class SegmentSlice:
    """Where a document stands: its segment, its chunks and its corrections there."""

    segment: int
    first_chunk: int
    chunks: int
    first_byte: int
    num_bytes: int


@dataclass(frozen=True)
class Segment:
    """What the index knows of a segment."""

    number: int
    sha256: str
    size: int
    chunks: int


def segment_path(folder: Path, number: int) -> Path:
    """Its file."""
    return folder / FOLDER / f"{number:010d}.safetensors"


def write_segment(
    folder: Path, number: int, documents: Sequence[StoredDocument]
) -> tuple[Segment, list[tuple[SegmentSlice, str]]]:
    """Documents as one file, there whole or not at all; each one's place and the hash of its data."""
    parts = [tensors_of(document) for document in documents]
    path = segment_path(folder, number)
    write_tensors_atomic(path, {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]})
    places: list[tuple[SegmentSlice, str]] = []
    chunk = byte = 0
    for part in parts:
        place = SegmentSlice(number, chunk, len(part["values"]), byte, len(part[_BYTES]))
        places.append((place, data_hash(part)))
        chunk, byte = chunk + place.chunks, byte + place.num_bytes
    return Segment(number, file_hash(path), path.stat().st_size, chunk), places


def read_tensors_at(folder: Path, place: SegmentSlice) -> dict[str, Tensor]:
    """A document's tensors; nothing else of the segment is read.

    Raises:
        DamagedStoreError: the file is missing, cut short or not a segment.
    """
    path = segment_path(folder, place.segment)
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                first, count = (
                    (place.first_byte, place.num_bytes) if name == _BYTES else (place.first_chunk, place.chunks)
                )
                found[name] = file.get_slice(name)[first : first + count]
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DamagedStoreError(
            f"'{path}' cannot be read ({str(error).splitlines()[0]}); restore it from a copy, "
            "or delete the documents in it."
        ) from error
    return found


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
