"""Segments: safetensors files that hold documents one after the other; they are written once and never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memlm.checksums import file_hash
from memlm.errors import DamagedStoreError
from memlm.files import reason_of, tensors_hash, write_tensors_atomic
from memlm.store.format.document import StoredDocument, document_of, tensors_of
from memlm.store.format.header import StoreHeader

FOLDER = "segments"
_BYTES = "corrections"


@dataclass(frozen=True)
class Entry:
    """The index's row of a document, in the order of its columns.

    Attributes:
        id: the document, or a part of a long one.
        order: its position in the order of writing.
        segment: the number of the segment that holds it.
        first_chunk, chunks: its first chunk in the segment, and the number of its chunks.
        first_byte, num_bytes: the first byte of its corrections in the segment, and their size.
        text_sha256: hash of its text in UTF-8.
        text_bytes: size of its text in UTF-8.
        tokens: number of its tokens.
        num_correct: tokens that its memories alone give back.
        data_sha256: hash of its tensors.
    """

    id: str
    order: int
    segment: int
    first_chunk: int
    chunks: int
    first_byte: int
    num_bytes: int
    text_sha256: str
    text_bytes: int
    tokens: int
    num_correct: int
    data_sha256: str

    @property
    def fidelity(self) -> float:
        """The share of tokens that the memories alone give back; 1 for a document without tokens."""
        return self.num_correct / self.tokens if self.tokens else 1.0


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
    folder: Path, number: int, documents: Sequence[StoredDocument], order: int
) -> tuple[Segment, list[Entry]]:
    """Write documents as one file, atomically; return the index's rows, the first document with this order."""
    parts = [tensors_of(document) for document in documents]
    path = segment_path(folder, number)
    joined = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
    write_tensors_atomic(path, joined, sealed=False)  # the index holds the hash of the file
    entries: list[Entry] = []
    chunk = byte = 0
    for document, part in zip(documents, parts, strict=True):
        entry = Entry(
            id=document.id,
            order=order + len(entries),
            segment=number,
            first_chunk=chunk,
            chunks=len(part["values"]),
            first_byte=byte,
            num_bytes=len(part[_BYTES]),
            text_sha256=document.text_sha256,
            text_bytes=document.text_bytes,
            tokens=int(document.tokens.sum()),
            num_correct=int(document.num_correct.sum()),
            data_sha256=tensors_hash(part),
        )
        entries.append(entry)
        chunk, byte = chunk + entry.chunks, byte + entry.num_bytes
    return Segment(number, file_hash(path), path.stat().st_size, chunk), entries


def read_segment(folder: Path, number: int, *, chunks: slice, corrections: slice) -> dict[str, Tensor]:
    """Read these chunks and these bytes of corrections, and nothing else of the segment.

    Raises:
        DamagedStoreError: the file is missing, cut short or not a segment.
    """
    path = segment_path(folder, number)
    try:
        with safe_open(path, "pt") as file:
            names: list[str] = list(file.keys())
            # copies, since a slice keeps the whole file mapped
            return {name: file.get_slice(name)[corrections if name == _BYTES else chunks].clone() for name in names}
    except (OSError, SafetensorError, RuntimeError, ValueError, IndexError) as error:
        raise DamagedStoreError(f"'{path}' cannot be read ({reason_of(error)}); restore it from a copy.") from error


def read_entry(folder: Path, header: StoreHeader, entry: Entry) -> StoredDocument:
    """Read a document and check its data against the hash in the index.

    Raises:
        DamagedStoreError: the data is not what was written.
    """
    tensors = read_segment(
        folder,
        entry.segment,
        chunks=slice(entry.first_chunk, entry.first_chunk + entry.chunks),
        corrections=slice(entry.first_byte, entry.first_byte + entry.num_bytes),
    )
    if tensors_hash(tensors) != entry.data_sha256:
        name = f"document {ascii(entry.id)[:80]} in '{folder}'"
        raise DamagedStoreError(f"{name} is damaged; restore the store from a copy, or delete the document.")
    return document_of(tensors, header, name=entry.id, text_sha256=entry.text_sha256, text_bytes=entry.text_bytes)
