"""Memories on disk: one writer, many readers, and no half-written state after a crash or a loss of power.

store.json                      the models that wrote it (format/header.py)  writer.lock
index.sqlite                    documents and where they are stored          seal.json  hash of the index at rest
segments/0000000000.safetensors memories and corrections (format/segments.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filelock import FileLock

from memlm.data.given import folder_of, list_of_texts, one_text
from memlm.durable import is_vacant
from memlm.errors import DamagedStoreError, StoreError, did_you_mean
from memlm.files import create_folder
from memlm.store.format.document import PART, StoredDocument, check_id, is_part, memories_of, named_parts, vectors_of
from memlm.store.format.header import StoreHeader, read_header, write_header
from memlm.store.format.index import Index, write_seal
from memlm.store.format.segments import (
    FOLDER,
    Entry,
    Segment,
    grouped,
    joined_rows,
    read_entries,
    read_segment,
    write_segment,
)
from memlm.store.format.transaction import (
    Progress,
    lock_store,
    recover,
    remove_files,
    settle,
    sweep,
    transaction,
    verify_store,
)
from memlm.store.quantize import QuantizedMemories

_NEAR = 10_000
"""The number of documents that are searched for an id similar to a mistyped one."""


@dataclass(frozen=True)
class StoreStats:
    """The size of a store.

    Attributes:
        documents: number of documents; a long document counts once.
        chunks: number of chunks of these documents.
        tokens: number of tokens.
        text_bytes: size of the texts in UTF-8.
        correction_bytes: size of all corrections.
        segment_bytes: size of the segment files.
        dead_chunks: chunks of deleted documents that still take space.
        fidelity: share of tokens that the memories alone give back, 0 to 1.
    """

    documents: int
    chunks: int
    tokens: int
    text_bytes: int
    correction_bytes: int
    segment_bytes: int
    dead_chunks: int
    fidelity: float


class MemoryStore:
    """A folder of documents that are stored as memories.

    Example:
        >>> with MemoryStore.open("notes.mem", write=True) as store:
        ...     store.add([document])
        >>> MemoryStore.open("notes.mem").read("a.md")
    """

    def __init__(self, folder: Path, header: StoreHeader, index: Index, lock: FileLock | None) -> None:
        self.folder = folder
        self.header = header
        self._index = index
        self._lock = lock

    def __repr__(self) -> str:
        header = self.header
        size = f"{header.memories_per_chunk} x {header.numbers} numbers a chunk, {header.bits} bits"
        return f"MemoryStore('{self.folder}', {len(self)} documents, {size})"

    @staticmethod
    def create(folder: str | Path, header: StoreHeader) -> None:
        """Create an empty store, in a new or an empty folder; on failure nothing remains.

        Raises:
            StoreError: the folder exists already, or cannot be written.
        """

        def fill(draft: Path) -> None:
            write_header(draft, header)
            (draft / FOLDER).mkdir()
            Index.create(draft)
            write_seal(draft, 0, settled=True)

        create_folder(folder, fill, StoreError, sealed=False)

    @classmethod
    def open(cls, folder: str | Path, *, write: bool = False, wait: float = 0.0) -> MemoryStore:
        """Open an existing store.

        With `write`, become the store's only writer, after waiting at most `wait` seconds for another one; files that
        an interrupted writer left are removed.

        Raises:
            StoreError: there is no store, it has a newer format, or another process writes to it.
            DamagedStoreError: a file is not what was written.
        """
        path = folder_of(folder, name="store")
        header = read_header(path)
        lock = lock_store(path, wait) if write else None
        try:
            index = Index(path, write=write)
            if write:
                recover(path, index)
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return cls(path, header, index, lock)

    @classmethod
    def open_or_create(
        cls, folder: str | Path, header: StoreHeader | None, *, wait: float = 0.0
    ) -> tuple[MemoryStore, bool]:
        """Open a store, as its only writer where a header is given, with which it is created if it does not exist.

        Of several processes that do so, one creates the store and the others open it.

        Returns:
            The store, and whether this call created it.
        """
        while header is not None:
            created = False
            if is_vacant(Path(folder)):
                try:
                    cls.create(folder, header)
                    created = True
                except StoreError:
                    if is_vacant(Path(folder)):
                        raise
            try:
                return cls.open(folder, write=True, wait=wait), created
            except StoreError:
                if not is_vacant(Path(folder)):
                    raise  # otherwise its creator failed and removed it, and it is created anew
        return cls.open(folder), False

    def __enter__(self) -> MemoryStore:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Close the files and release the writer's lock."""
        try:
            if self._lock is not None and self._index.settle():
                settle(self.folder, self._index)
        finally:
            self._index.close()
            if self._lock is not None:
                self._lock.release()

    def discard(self) -> None:
        """Close the store, and remove it if it has no commit; files that memlm did not write stay."""
        lock = self._require_lock()
        if self.commits:
            return self.close()
        self._index.close()
        return remove_files(self.folder, lock)

    @property
    def commits(self) -> int:
        """The number of changes that were committed."""
        return self._index.state().commits

    def __len__(self) -> int:
        """Return the number of documents; a long document counts once."""
        return self._index.count(without=PART)

    def __contains__(self, name: str) -> bool:
        """Return True if a document has this id."""
        return self._index.find(name) is not None

    def documents(self) -> Iterator[Entry]:
        """Iterate over the index's entries in the order of writing; the parts of long documents are left out."""
        return (entry for entry in self._index.entries() if not is_part(entry.id))

    def entries(self) -> Iterator[Entry]:
        """Iterate over all entries, the parts of long documents included."""
        return self._index.entries()

    def segments(self) -> list[Segment]:
        """Return the index's rows of segments."""
        return self._index.segments()

    def entry(self, name: str) -> Entry:
        """Return the index's entry of one document.

        Raises:
            StoreError: there is no such document.
        """
        found = self._index.find(one_text(name, name="an id"))
        if found is None:
            ids = [e.id for e in islice(self.documents(), _NEAR)]
            hint = did_you_mean(name, ids) if ids else "It is empty."
            raise StoreError(f"no document {ascii(name)[:80]} in '{self.folder}'. {hint[:200]}")
        return found

    def read(self, name: str) -> StoredDocument:
        """Read a document and check its data against the hash in the index.

        Raises:
            StoreError: there is no such document.
            DamagedStoreError: its data is not what was written.
        """
        entry = self.entry(name)
        try:
            return self._read(entry)
        except DamagedStoreError:
            # a compaction between the two reads moves documents: read again before reporting damage
            again = self._index.find(name)
            if again is None or again == entry:
                raise
            return self._read(again)

    def add(self, documents: Sequence[StoredDocument], *, replace: bool = False, remove: Sequence[str] = ()) -> None:
        """Write documents with distinct ids and remove those with the ids in `remove`, in one commit.

        With `replace`, stored documents that have the ids of new ones are replaced.

        Raises:
            StoreError: an id exists already or is given twice, memories have another shape, or the disk is full.
        """
        self._require_lock()
        if not documents and not remove:
            return
        names = [document.id for document in documents]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise StoreError(f"document {ascii(twice)[:80]} is given twice; give each an id of its own.")
        for document in documents:
            if not is_part(document.id):
                check_id(document.id)
            self._check_shape(document)
        existing = [name for name in names if name in self]
        if existing and not replace:
            raise StoreError(f"document {ascii(existing[0])[:80]} is in '{self.folder}' already; replace or delete it.")
        self._commit(documents, remove=[*existing, *remove])

    def delete(self, names: Sequence[str]) -> None:
        """Remove documents with their parts in one commit; `compact` frees their space.

        Raises:
            StoreError: one of them does not exist; then none is removed.
        """
        self._require_lock()
        ids = dict.fromkeys(list_of_texts(names, name="ids"))
        for name in list(ids):
            ids |= dict.fromkeys(self.part_ids(self.entry(name)))
        self._index.change(remove=ids)
        settle(self.folder, self._index, closing=False)

    def part_ids(self, entry: Entry) -> list[str]:
        """Return the ids of a long document's parts in order; none for a short document."""
        # only documents without chunks of their own can name parts
        return [] if entry.chunks or not entry.num_bytes else named_parts(self.read(entry.id))

    def compact(self, *, progress: Progress | None = None) -> None:
        """Write the documents into new segments and remove the old ones; readers see either all old or all new."""
        self._require_lock()
        entries, old = list(self._index.entries()), self._index.segments()
        first = self._index.state().next_segment
        added: list[Segment] = []
        moved: list[Entry] = []
        with transaction(self.folder, self._index):
            for group in grouped(entries, old):
                documents = list(read_entries(self.folder, self.header, group))
                segment, written = write_segment(self.folder, first + len(added), documents, 0)
                added.append(segment)
                moved += [new._replace(order=entry.order) for new, entry in zip(written, group, strict=True)]
                if progress is not None:
                    progress(len(moved), len(entries))
            removed, old_numbers = [entry.id for entry in entries], [segment.number for segment in old]
            self._index.change(add=moved, remove=removed, add_segments=added, remove_segments=old_numbers)
        settle(self.folder, self._index, closing=False)
        sweep(self.folder, self._index)

    def search_vectors(self, entries: Iterable[Entry]) -> Iterator[tuple[list[Entry], QuantizedMemories]]:
        """Iterate over the segments of documents: those in it, and its vectors that search compares.

        These are the vectors of a retrieval encoder, or the memories, of all chunks of the segment.

        Raises:
            DamagedStoreError: a segment is not what was written.
        """
        names = ("values", "scale") if self.header.retrieval_numbers is None else ("vectors", "vector_scale")
        for inside, tensors in self._columns(entries, names):
            yield inside, vectors_of(tensors, self.header) or memories_of(tensors, self.header)

    def chunks_below(self, fidelity: float) -> tuple[int, int]:
        """Return how many chunks have a lower fidelity than this, and how many chunks there are.

        Raises:
            DamagedStoreError: a segment is not what was written.
        """
        below = total = 0
        for inside, tensors in self._columns(self._index.entries(), ("tokens", "right")):
            for rows in joined_rows(inside):
                shares = tensors["right"][rows] / tensors["tokens"][rows].clamp(min=1)
                below, total = below + int((shares < fidelity).sum()), total + len(shares)
        return below, total

    def _columns(self, entries: Iterable[Entry], names: Sequence[str]) -> Iterator[tuple[list[Entry], dict[str, Any]]]:
        """Iterate over the segments of documents: those in it, and its tensors of these names."""
        documents: dict[int, list[Entry]] = {}
        for entry in entries:
            documents.setdefault(entry.segment, []).append(entry)
        for segment in (one for one in self._index.segments() if one.number in documents):
            try:
                tensors = read_segment(self.folder, segment, names)
            except DamagedStoreError:
                if segment in self._index.segments():
                    raise
                break  # its file was removed meanwhile
            yield documents.pop(segment.number), tensors
        if documents:
            raise StoreError(f"'{self.folder}' was compacted while it was read; try again.")

    def stats(self) -> StoreStats:
        """Return the size of the store at one moment."""
        with self._index.snapshot():
            entries, segments = list(self._index.entries()), self._index.segments()
        tokens, chunks = sum(e.tokens for e in entries), sum(e.chunks for e in entries)
        return StoreStats(
            documents=sum(not is_part(e.id) for e in entries),
            chunks=chunks,
            tokens=tokens,
            text_bytes=sum(e.text_bytes for e in entries if not is_part(e.id)),
            correction_bytes=sum(e.num_bytes for e in entries),
            segment_bytes=sum(s.size for s in segments),
            dead_chunks=sum(s.chunks for s in segments) - chunks,
            fidelity=sum(e.num_correct for e in entries) / tokens if tokens else 1.0,
        )

    @staticmethod
    def verify(folder: str | Path, *, wait: float = 0.0, progress: Progress | None = None) -> list[str]:
        """Check every file of a store; see `memlm.store.format.transaction.verify_store`."""
        return verify_store(Path(folder), wait=wait, progress=progress)

    def _read(self, entry: Entry) -> StoredDocument:
        return next(read_entries(self.folder, self.header, [entry]))

    def _commit(self, documents: Sequence[StoredDocument], *, remove: list[str]) -> None:
        state = self._index.state()
        segments: list[Segment] = []
        entries: list[Entry] = []
        with transaction(self.folder, self._index):
            for group in grouped(documents):
                number, order = state.next_segment + len(segments), state.next_place + len(entries)
                segment, written = write_segment(self.folder, number, group, order)
                segments.append(segment)
                entries += written
            self._index.change(add=entries, remove=remove, add_segments=segments)
        settle(self.folder, self._index, closing=False)

    def _require_lock(self) -> FileLock:
        if self._lock is None:
            raise StoreError(f"'{self.folder}' is open for reading; open it with write=True.")
        return self._lock

    def _check_shape(self, document: StoredDocument) -> None:
        header, memories = self.header, document.memories
        expected = (header.memories_per_chunk, header.numbers, header.bits)
        found = (memories.values.shape[1] if memories.values.ndim == 3 else None, memories.numbers, memories.bits)
        numbers, width = None if document.vectors is None else document.vectors.numbers, header.retrieval_numbers
        if numbers != width:
            raise StoreError(f"vectors of {numbers} numbers do not fit '{self.folder}' of {width}; use its encoder.")
        if found != expected:
            sizes = "a chunk's vectors, numbers, bits"
            raise StoreError(f"memories of {found} ({sizes}) do not fit '{self.folder}' of {expected}; use its model.")
