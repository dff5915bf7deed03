"""Checks of a store's bytes against the hashes that were kept of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from memlm.errors import DamagedStoreError, StoreError
from memlm.store.format.document import StoredDocument, data_hash, document_of
from memlm.store.format.header import StoreHeader, read_header
from memlm.store.format.index import NAME as INDEX
from memlm.store.format.index import Entry, Index, read_seal
from memlm.store.format.segments import file_hash, read_tensors_at, segment_path
from memlm.store.format.transaction import lock_store

Progress = Callable[[int, int], None]
"""A callback that receives the number of documents done and of documents in all."""
_MOST_NAMED = 5
"""Damaged documents that one line names."""


def read_entry(folder: Path, header: StoreHeader, entry: Entry) -> StoredDocument:
    """Read a document and check its data against the hash in the index.

    Raises:
        DamagedStoreError: the data is not what was written.
    """
    tensors = read_tensors_at(folder, entry.location)
    if data_hash(tensors) != entry.data_sha256:
        raise DamagedStoreError(
            f"document {ascii(entry.id)[:80]} in '{folder}' is damaged (its data is not what was written); "
            "restore the store from a copy, or delete the document."
        )
    return document_of(tensors, header, name=entry.id, text_sha256=entry.text_sha256, text_bytes=entry.text_bytes)


def verify_store(folder: Path, *, wait: float = 0.0, progress: Progress | None = None) -> list[str]:
    """Check every file of a store and return one line for each problem.

    Args:
        folder: the store.
        wait: seconds to wait for a writer, since nothing may change during the check.
        progress: receives documents done and documents in all.

    Raises:
        StoreError: the folder is not a store, has a newer format, or another process writes to it.
    """
    try:
        header = read_header(folder)
        lock = lock_store(folder, wait)
    except DamagedStoreError as error:
        return [str(error)]
    try:
        found = _seal_problems(folder)
        index = Index(folder, write=False)
        try:
            return found + (index.problems() or _segment_problems(folder, header, index, progress))
        finally:
            index.close()
    except StoreError as error:
        return [str(error)]
    finally:
        lock.release()


def _seal_problems(folder: Path) -> list[str]:
    """Compare the index's file with its seal."""
    seal = read_seal(folder)
    index = Index(folder, write=False)
    try:
        commits, digest = index.state().commits, file_hash(folder / INDEX)
    finally:
        index.close()
    if commits < seal.commits:
        return [f"'{folder / INDEX}' has lost commits ({commits} of {seal.commits}); restore it from a copy."]
    if commits == seal.commits and seal.index_sha256 not in (None, digest):
        return [f"'{folder / INDEX}' is not what was written (its hash differs); restore it from a copy."]
    return []


def _segment_problems(folder: Path, header: StoreHeader, index: Index, progress: Progress | None) -> list[str]:
    """Compare segments with their hashes, and name the documents that a damaged segment affects."""
    entries = list(index.entries())
    found: list[str] = []
    done = 0
    for segment in index.segments():
        path = segment_path(folder, segment.number)
        inside = [entry for entry in entries if entry.segment == segment.number]
        if not path.is_file() or file_hash(path) != segment.sha256:
            lost = [ascii(entry.id) for entry in inside if not _is_intact(folder, header, entry)]
            more = " ..." if len(lost) > _MOST_NAMED else ""
            names = f"; damaged documents: {', '.join(lost[:_MOST_NAMED])}{more}" if lost else ""
            reason = "its hash differs" if path.is_file() else "missing"
            found.append(f"'{path}' is not what was written ({reason}){names}")
        done += len(inside)
        if progress is not None:
            progress(done, len(entries))
    return found


def _is_intact(folder: Path, header: StoreHeader, entry: Entry) -> bool:
    try:
        read_entry(folder, header, entry)
    except DamagedStoreError:
        return False
    return True
