"""Segments: safetensors files that hold documents one after the other; they are written once and never changed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memlm.checksums import file_hash
from memlm.errors import DamagedStoreError, StoreError
from memlm.files import reason_of, tensors_hash, write_tensors_atomic
from memlm.store.format.document import StoredDocument, document_of, tensors_of
from memlm.store.format.header import StoreHeader

FOLDER = "segments"
_BYTES = "corrections"
_MOST_CHUNKS, _MOST_DOCUMENTS, _MOST_BYTES = 2**16, 2**14, 2**27
"""The most that one segment holds: a segment is in memory while it is written."""


class Entry(NamedTuple):
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


class Segment(NamedTuple):
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


Item = TypeVar("Item", StoredDocument, Entry)


def grouped(items: Iterable[Item], stored: Sequence[Segment] = ()) -> Iterator[list[Item]]:
    """Yield lists of documents that fill one segment; the sizes of stored chunks are those of these segments."""
    size = sum(segment.size for segment in stored) // max(1, sum(segment.chunks for segment in stored))
    most = min(_MOST_CHUNKS, _MOST_BYTES // max(1, size))
    group: list[Item] = []
    chunks = 0
    for item in items:
        group.append(item)
        chunks += item.chunks if isinstance(item, Entry) else len(item.tokens)
        if chunks >= most or len(group) >= _MOST_DOCUMENTS:
            yield group
            group, chunks = [], 0
    if group:
        yield group


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


def read_segment(folder: Path, segment: Segment, names: Iterable[str]) -> dict[str, Tensor]:
    """Read the tensors of a segment that have these names; those that it does not have are left out.

    Raises:
        DamagedStoreError: the file is missing, or is not what was written.
    """
    path = segment_path(folder, segment.number)
    with _mapped(folder, segment.number) as tensors:
        if file_hash(path) != segment.sha256:
            raise DamagedStoreError(f"'{path}' is not what was written (its hash differs); restore it from a copy.")
        return {name: tensors[name].clone() for name in names if name in tensors}


def read_entries(folder: Path, header: StoreHeader, entries: Iterable[Entry]) -> Iterator[StoredDocument]:
    """Read documents and check their data against the hashes in the index; a segment's neighbours open it once.

    Raises:
        DamagedStoreError: the data is not what was written.
    """
    for number, inside in groupby(entries, key=lambda entry: entry.segment):
        with _mapped(folder, number) as tensors:
            for entry in inside:
                yield _document(folder, header, entry, tensors)


def joined_rows(entries: Iterable[Entry]) -> list[slice]:
    """Return the rows of a segment that documents have, in their order; those of neighbours are one slice."""
    found: list[slice] = []
    for entry in (entry for entry in entries if entry.chunks):
        first, last = entry.first_chunk, entry.first_chunk + entry.chunks
        if found and found[-1].stop == first:
            first = found.pop().start
        found.append(slice(first, last))
    return found


@contextmanager
def _mapped(folder: Path, number: int) -> Generator[dict[str, Tensor]]:
    """Yield a segment's tensors, which are the file itself in memory; only copies may be kept."""
    path = segment_path(folder, number)
    try:
        with safe_open(path, "pt") as file:
            yield {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
    except StoreError:  # what was read is not what was written
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError, IndexError) as error:
        raise DamagedStoreError(f"'{path}' cannot be read ({reason_of(error)}); restore it from a copy.") from error


def _document(folder: Path, header: StoreHeader, entry: Entry, segment: dict[str, Tensor]) -> StoredDocument:
    rows = slice(entry.first_chunk, entry.first_chunk + entry.chunks)
    inside = slice(entry.first_byte, entry.first_byte + entry.num_bytes)
    # copies, since a slice keeps the whole file mapped
    tensors = {name: tensor[inside if name == _BYTES else rows].clone() for name, tensor in segment.items()}
    if tensors_hash(tensors) != entry.data_sha256:
        name = f"document {ascii(entry.id)[:80]} in '{folder}'"
        raise DamagedStoreError(f"{name} is damaged; restore the store from a copy, or delete the document.")
    return document_of(tensors, header, name=entry.id, text_sha256=entry.text_sha256, text_bytes=entry.text_bytes)
