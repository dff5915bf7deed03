"""Memories on disk: one writer, many readers, and nothing half written, whenever the power goes.

    store.json                      what wrote the memories (header.py)
    index.sqlite                    documents and their places (index.py)        seal.json  its hash at rest (index.py)
    segments/0000000000.safetensors memories and corrections (segments.py)       writer.lock

A write makes new segments first and then one commit of the index; what the index does not name is not there, and is
swept away by the next writer. Nothing that is named is ever changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from memlm.errors import DamagedStoreError, StoreError, did_you_mean
from memlm.files import write_folder_atomic
from memlm.store.format.document import (
    StoredDocument,
    check_id,
    data_hash,
    document_of,
    is_part,
    named_parts,
    part_ids,
    vectors_of,
)
from memlm.store.format.header import NAME as HEADER
from memlm.store.format.header import StoreHeader, read_header, write_header
from memlm.store.format.index import NAME as INDEX
from memlm.store.format.index import SEAL, Entry, Index, read_seal, write_seal
from memlm.store.format.segments import (
    FOLDER,
    Segment,
    SegmentSlice,
    file_hash,
    read_tensors_at,
    segment_path,
    write_segment,
)
from memlm.store.quantize import QuantizedMemories

_LOCK = "writer.lock"
_NEAR = 10_000
"""Documents among which a mistyped id is looked for."""
_SEGMENT_CHUNKS = 2**16
"""Chunks after which a segment is closed and another begun."""
Item = TypeVar("Item", StoredDocument, Entry)
Progress = Callable[[int, int], None]
"""Told documents done and documents in all."""


@dataclass(frozen=True)
class StoreStats:
    """How much a store holds."""

    documents: int
    chunks: int
    tokens: int
    text_bytes: int
    correction_bytes: int
    segment_bytes: int
    dead_chunks: int
    fidelity: float


class MemoryStore:
    """Documents as memories in a folder.

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

    @staticmethod
    def create(folder: str | Path, header: StoreHeader) -> None:
        """An empty store, there whole or not at all.

        Raises:
            StoreError: something is there already, or it cannot be written.
        """
        path = Path(folder)
        if path.exists():
            raise StoreError(f"'{path}' exists already; open it, or give another folder.")

        def fill(draft: Path) -> None:
            write_header(draft, header)
            (draft / FOLDER).mkdir()
            Index.create(draft)
            write_seal(draft, 0, settled=True)

        try:
            write_folder_atomic(path, fill)
        except OSError as error:
            raise _cannot_write(path, error) from error

    @classmethod
    def open(cls, folder: str | Path, *, write: bool = False, wait: float = 0.0) -> MemoryStore:
        """An existing store.

        Args:
            folder: of the store.
            write: for the one writer; what an interrupted one left is swept away.
            wait: seconds to wait for another writer.

        Raises:
            StoreError: no store, of a newer format, or another process writes to it.
            DamagedStoreError: a file is not what was written.
        """
        path = Path(folder)
        header = read_header(path)
        lock = _locked(path, wait) if write else None
        try:
            store = cls(path, header, Index(path, write=write), lock)
            if write:
                store._recover()
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return store

    def __enter__(self) -> MemoryStore:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let go of the files, and of the lock."""
        if self._lock is not None and self._index.settle():
            write_seal(self.folder, self._index.state().commits, settled=True)
        self._index.close()
        if self._lock is not None:
            self._lock.release()

    def discard(self) -> None:
        """Remove a store that no commit changed, and close it; files that memlm did not write stay."""
        self._writing()
        if self.commits:
            return self.close()
        self._index.close()
        names = (HEADER, INDEX, f"{INDEX}-wal", f"{INDEX}-shm", SEAL, _LOCK)
        segments = self.folder / FOLDER
        for file in (*(self.folder / name for name in names), *segments.glob(f"{'[0-9]' * 10}.safetensors")):
            file.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()
        for folder in (segments, self.folder):
            with suppress(OSError):  # another file is in it
                folder.rmdir()
        return None

    @property
    def commits(self) -> int:
        """How often the store was changed."""
        return self._index.state().commits

    def __len__(self) -> int:
        """Documents, the parts of long ones not counted."""
        return sum(1 for _ in self.documents())

    def __contains__(self, name: str) -> bool:
        """Whether a document of this id is there."""
        return self._index.find(name) is not None

    def documents(self) -> Iterator[Entry]:
        """What the index knows of each document, in the order in which they came; parts of long ones are left out."""
        return (entry for entry in self._index.entries() if not is_part(entry.id))

    def entries(self) -> Iterator[Entry]:
        """As `documents`, with the parts of long ones."""
        return self._index.entries()

    def segments(self) -> list[Segment]:
        """What the index knows of each segment."""
        return self._index.segments()

    def is_whole(self, entry: Entry) -> bool:
        """Whether a document's data is what was written."""
        try:
            self._read(entry)
        except DamagedStoreError:
            return False
        return True

    def entry(self, name: str) -> Entry:
        """What the index knows of one document.

        Raises:
            StoreError: it is not there.
        """
        found = self._index.find(name)
        if found is None:
            near = (
                did_you_mean(name, ids) if (ids := [e.id for e in islice(self.documents(), _NEAR)]) else "It is empty."
            )
            raise StoreError(f"no document {ascii(name)[:80]} in '{self.folder}'. {near[:200]}")
        return found

    def read(self, name: str) -> StoredDocument:
        """A document, its data checked against the hash that was kept of it.

        Raises:
            StoreError: it is not there.
            DamagedStoreError: its data is not what was written.
        """
        entry = self.entry(name)
        try:
            return self._read(entry)
        except DamagedStoreError:
            # a compaction between the two reads moves documents: look again before damage is said
            again = self._index.find(name)
            if again is None or again == entry:
                raise
            return self._read(again)

    def add(self, documents: Sequence[StoredDocument], *, replace: bool = False, remove: Sequence[str] = ()) -> None:
        """Write documents and remove others, all of it or nothing.

        Args:
            documents: each with an id of its own.
            replace: whether they take the place of those of their ids.
            remove: ids that are there.

        Raises:
            StoreError: an id that is there already (or twice here), memories of another shape, a full disk.
        """
        self._writing()
        if not documents and not remove:
            return
        names = [document.id for document in documents]
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None) if _repeats(names) else None
        if twice is not None:
            raise StoreError(f"document {ascii(twice)[:80]} is given twice; give each an id of its own.")
        for document in documents:
            if not is_part(document.id):
                check_id(document.id)
            self._check_shape(document)
        there = [name for name in names if name in self]
        if there and not replace:
            raise StoreError(f"document {ascii(there[0])[:80]} is in '{self.folder}' already; replace or delete it.")
        self._commit(documents, remove=[*there, *remove])

    def delete(self, names: Sequence[str]) -> None:
        """Remove documents, all of them or none; `compact` gives their space back.

        Raises:
            StoreError: one that is not there.
        """
        self._writing()
        gone = list(dict.fromkeys(names))
        for name in gone:
            self.entry(name)
        self._index.change(remove=gone)
        self._settle()

    def compact(self, *, progress: Progress | None = None) -> None:
        """Write what is alive into new segments and remove the old ones; readers see the one or the other."""
        self._writing()
        entries, old = list(self._index.entries()), self._index.segments()
        state = self._index.state()
        groups = list(_grouped(entries))
        added: list[Segment] = []
        moved: list[Entry] = []
        with self._all_or_nothing():
            for group in groups:
                documents = [self._read(entry) for entry in group]
                segment, places = write_segment(self.folder, state.next_segment + len(added), documents)
                added.append(segment)
                moved += [replace(entry, **asdict(place)) for entry, (place, _) in zip(group, places, strict=True)]
                if progress is not None:
                    progress(len(moved), len(entries))
            self._index.change(
                add=moved,
                remove=[entry.id for entry in entries],
                add_segments=added,
                remove_segments=[segment.number for segment in old],
            )
        self._settle()
        self._sweep()

    def searched(self) -> Iterator[tuple[Segment, QuantizedMemories]]:
        """What is searched, segment by segment: vectors of a retrieval encoder, or memories (chunks, all numbers).

        Raises:
            DamagedStoreError: a segment is not what was written.
        """
        for segment in self._index.segments():
            yield segment, self._searched(segment)

    def _searched(self, segment: Segment) -> QuantizedMemories:
        path = segment_path(self.folder, segment.number)
        tensors = read_tensors_at(self.folder, SegmentSlice(segment.number, 0, segment.chunks, 0, 0))
        if file_hash(path) != segment.sha256:
            raise DamagedStoreError(f"'{path}' is not what was written (its hash differs); restore it from a copy.")
        vectors = vectors_of(tensors, self.header)
        return vectors or QuantizedMemories(
            tensors["values"], tensors.get("scale"), self.header.bits, self.header.numbers
        )

    def chunks_below(self, fidelity: float) -> tuple[int, int]:
        """How many chunks of documents that are there have a smaller share of right tokens, and how many there are."""
        below = total = 0
        for entry in self._index.entries():
            if entry.chunks:
                shares = self._read(entry).fidelity
                below, total = below + int((shares < fidelity).sum()), total + len(shares)
        return below, total

    def stats(self) -> StoreStats:
        """How much there is; of one moment."""
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
        """Every file and every document's data against the hashes that were kept; one line for each problem.

        Args:
            folder: of a store.
            wait: seconds to wait for a writer, as nothing may change meanwhile.
            progress: told documents done and documents in all.

        Raises:
            StoreError: no store, of a newer format, or another process writes to it.
        """
        path = Path(folder)
        try:
            read_header(path)
            lock = _locked(path, wait)
        except DamagedStoreError as error:
            return [str(error)]
        try:
            found = _seal_problems(path)
            index = Index(path, write=False)
            try:
                found += index.problems() or _content_problems(
                    MemoryStore(path, read_header(path), index, None), progress
                )
            finally:
                index.close()
        except StoreError as error:
            found = [str(error)]
        finally:
            lock.release()
        return found

    def _read(self, entry: Entry) -> StoredDocument:
        tensors = read_tensors_at(self.folder, entry.place)
        if data_hash(tensors) != entry.data_sha256:
            raise DamagedStoreError(
                f"document {ascii(entry.id)[:80]} in '{self.folder}' is damaged (its data is not what was written); "
                "restore the store from a copy, or delete the document."
            )
        return document_of(
            tensors, self.header, name=entry.id, text_sha256=entry.text_sha256, text_bytes=entry.text_bytes
        )

    def _commit(self, documents: Sequence[StoredDocument], *, remove: list[str]) -> None:
        state = self._index.state()
        segments: list[Segment] = []
        entries: list[Entry] = []
        with self._all_or_nothing():
            for group in _grouped(documents):
                segment, places = write_segment(self.folder, state.next_segment + len(segments), group)
                segments.append(segment)
                for document, (place, digest) in zip(group, places, strict=True):
                    order = state.next_place + len(entries)
                    entries.append(_entry_of(document, order, place, digest))
            self._index.change(add=entries, remove=remove, add_segments=segments)
        self._settle()

    @contextmanager
    def _all_or_nothing(self) -> Generator[None]:
        """Segments that no commit has named are swept away where something goes wrong."""
        try:
            yield
        except OSError as error:
            self._sweep()
            raise _cannot_write(self.folder, error) from error
        except BaseException:
            self._sweep()
            raise

    def _settle(self) -> None:
        try:
            settled = self._index.settle()
            write_seal(self.folder, self._index.state().commits, settled=settled)
        except OSError as error:
            raise _cannot_write(self.folder, error, done=True) from error

    def _recover(self) -> None:
        """What a stopped writer left: segments that no commit names, and an index without its seal."""
        kept = read_seal(self.folder)
        if kept.commits != self._index.state().commits or kept.index_sha256 is None:
            wrong = self._index.problems()
            if wrong:
                raise DamagedStoreError(wrong[0])
            self._settle()
        self._sweep()

    def _sweep(self) -> None:
        named = {segment_path(self.folder, segment.number) for segment in self._index.segments()}
        for file in (self.folder / FOLDER).iterdir():
            if file not in named:
                file.unlink(missing_ok=True)
        for file in self.folder.glob(".*.draft"):
            file.unlink(missing_ok=True)

    def _writing(self) -> None:
        if self._lock is None:
            raise StoreError(f"'{self.folder}' is open for reading; open it with write=True.")

    def _check_shape(self, document: StoredDocument) -> None:
        wanted = (self.header.memories_per_chunk, self.header.numbers, self.header.bits)
        memories = document.memories
        found = (memories.values.shape[1] if memories.values.ndim == 3 else None, memories.numbers, memories.bits)
        numbers = None if document.vectors is None else document.vectors.numbers
        if numbers != self.header.retrieval_numbers:
            raise StoreError(
                f"vectors of {numbers} numbers do not fit '{self.folder}' of {self.header.retrieval_numbers}; "
                "use the retrieval encoder that the store was made with."
            )
        if found != wanted:
            raise StoreError(
                f"memories of {found} (a chunk's vectors, numbers, bits) do not fit '{self.folder}' of {wanted}; "
                "use the model that the store was made with."
            )


def with_parts(store: MemoryStore, names: Sequence[str]) -> list[str]:
    """These ids, and those of the parts of long documents among them.

    Raises:
        StoreError: one that is not there.
    """
    found = list(names)
    for name in names:
        entry = store.entry(name)
        named = named_parts(store.read(name)) if not entry.chunks else None
        found += [] if named is None else part_ids(name, *named)
    return found


def _locked(folder: Path, wait: float) -> FileLock:
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise StoreError(f"another process writes to '{folder}'; wait for it (--wait SECONDS).") from None
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return lock


def _cannot_write(folder: Path, error: OSError, *, done: bool = False) -> StoreError:
    what = "what was written is there" if done else "the store is as it was"
    return StoreError(f"cannot write to '{folder}' ({error.strerror or error}); {what}.")


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _grouped(items: Iterable[Item]) -> Iterator[list[Item]]:
    """So many that their chunks fill a segment."""
    group: list[Item] = []
    chunks = 0
    for item in items:
        group.append(item)
        chunks += item.chunks if isinstance(item, Entry) else len(item.tokens)
        if chunks >= _SEGMENT_CHUNKS:
            yield group
            group, chunks = [], 0
    if group:
        yield group


def _entry_of(document: StoredDocument, order: int, place: SegmentSlice, digest: str) -> Entry:
    return Entry(
        id=document.id,
        order=order,
        **asdict(place),
        text_sha256=document.text_sha256,
        text_bytes=document.text_bytes,
        tokens=int(document.tokens.sum()),
        num_correct=int(document.num_correct.sum()),
        data_sha256=digest,
    )


def _seal_problems(folder: Path) -> list[str]:
    """Whether the index at rest is, byte for byte, what was sealed."""
    kept = read_seal(folder)
    index = Index(folder, write=False)
    try:
        commits, digest = index.state().commits, file_hash(folder / INDEX)
    finally:
        index.close()
    if commits < kept.commits:
        return [f"'{folder / INDEX}' has lost commits ({commits} of {kept.commits}); restore it from a copy."]
    if commits == kept.commits and kept.index_sha256 not in (None, digest):
        return [f"'{folder / INDEX}' is not what was written (its hash differs); restore it from a copy."]
    return []


def _content_problems(store: MemoryStore, progress: Progress | None) -> list[str]:
    """Segments that are not what was written, and the documents that this touches."""
    entries = list(store.entries())
    found: list[str] = []
    done = 0
    for segment in store.segments():
        path = segment_path(store.folder, segment.number)
        whole = path.is_file() and file_hash(path) == segment.sha256
        inside = [entry for entry in entries if entry.segment == segment.number]
        if not whole:
            lost = [ascii(entry.id) for entry in inside if not store.is_whole(entry)]
            names = f"; damaged documents: {', '.join(lost[:5])}" + (" ..." if len(lost) > 5 else "") if lost else ""
            found.append(
                f"'{path}' is not what was written ({'its hash differs' if path.is_file() else 'missing'}){names}"
            )
        done += len(inside)
        if progress is not None:
            progress(done, len(entries))
    return found
