"""Changes of a store on disk: the writer's lock, segments that appear with their commit, recovery and verification.

A change writes new segments first and then makes one commit of the index. Files that no commit names are not part of
the store; the next writer removes them. A file that a commit names is never changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from memlm.checksums import file_hash
from memlm.errors import DamagedStoreError, StoreError
from memlm.store.format.header import NAME as HEADER
from memlm.store.format.header import StoreHeader, read_header
from memlm.store.format.index import NAME as INDEX
from memlm.store.format.index import SEAL, Index, read_seal, write_seal
from memlm.store.format.segments import FOLDER, Entry, read_entries, segment_path

_LOCK = "writer.lock"


Progress = Callable[[int, int], None]
"""A callback that receives the number of documents done and of documents in all."""
_MOST_NAMED = 5
"""Damaged documents that one line names."""


def lock_store(folder: Path, wait: float) -> FileLock:
    """Acquire the lock of a store's only writer, and wait so many seconds for another writer.

    Raises:
        StoreError: another process holds the lock, removed the store, or the lock cannot be created.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise StoreError(f"another process writes to '{folder}'; wait for it (--wait SECONDS).") from None
    except OSError as error:
        if folder.is_dir():
            raise write_error(folder, error) from error
    if not (folder / HEADER).is_file():
        lock.release()
        with suppress(OSError):  # what waiting for the lock has left
            (folder / _LOCK).unlink(missing_ok=True)
            folder.rmdir()
        raise StoreError(f"another process removed '{folder}' while this one waited for it; try again.")
    return lock


def write_error(folder: Path, error: OSError, *, committed: bool = False) -> StoreError:
    """Return the error that says whether a failed write changed the store."""
    state = "the documents are stored" if committed else "the store is unchanged"
    return StoreError(f"cannot write to '{folder}' ({error.strerror or error}); {state}.")


@contextmanager
def transaction(folder: Path, index: Index) -> Generator[None]:
    """Remove segments that no commit names if the block fails.

    Raises:
        StoreError: the folder cannot be written; the store is unchanged.
    """
    try:
        yield
    except BaseException as error:
        sweep(folder, index)
        if isinstance(error, OSError):
            raise write_error(folder, error) from error
        raise


def settle(folder: Path, index: Index, *, closing: bool = True) -> None:
    """Move commits into the index's main file and write their number, with the hash of that file at the end.

    Hashing takes time that grows with the store, so that a writer does it once.

    Raises:
        StoreError: the folder cannot be written; the commits are kept.
    """
    try:
        write_seal(folder, index.state().commits, settled=index.settle() and closing)
    except OSError as error:
        raise write_error(folder, error, committed=True) from error


def recover(folder: Path, index: Index) -> None:
    """Finish or undo what an interrupted writer left: an index without its seal, segments that no commit names.

    Raises:
        DamagedStoreError: the index is not as it was written.
        StoreError: the folder cannot be written.
    """
    commits, digest = read_seal(folder)
    if commits != index.state().commits or digest is None:
        if problems := index.problems():
            raise DamagedStoreError(problems[0])
        settle(folder, index)
    sweep(folder, index)


def sweep(folder: Path, index: Index) -> None:
    """Remove segments that no commit names, and drafts of files."""
    named = {segment_path(folder, segment.number) for segment in index.segments()}
    for file in (folder / FOLDER).iterdir():
        if file not in named:
            file.unlink(missing_ok=True)
    for file in folder.glob(".*.draft"):
        file.unlink(missing_ok=True)


def remove_files(folder: Path, lock: FileLock) -> None:
    """Remove a store's own files and release its lock; files that memlm did not write stay."""
    names = (HEADER, INDEX, f"{INDEX}-wal", f"{INDEX}-shm", SEAL, _LOCK)
    segments = folder / FOLDER
    for file in (*(folder / name for name in names), *segments.glob(f"{'[0-9]' * 10}.safetensors")):
        file.unlink(missing_ok=True)
    lock.release()
    for emptied in (segments, folder):
        with suppress(OSError):  # another file is in it
            emptied.rmdir()


def verify_store(folder: Path, *, wait: float = 0.0, progress: Progress | None = None) -> list[str]:
    """Check every file of a store and return one line for each problem.

    Nothing may change during the check, so it waits for a writer, at most `wait` seconds.

    Raises:
        StoreError: the folder is not a store, has a newer format, or another process writes to it.
    """
    try:
        header = read_header(folder)
        lock = lock_store(folder, wait)
    except DamagedStoreError as error:
        return [str(error)]
    try:
        with closing(Index(folder, write=False)) as index:
            found = _seal_problems(folder, index)
            return found + (index.problems() or _segment_problems(folder, header, index, progress))
    except StoreError as error:
        return [str(error)]
    finally:
        lock.release()


def _seal_problems(folder: Path, index: Index) -> list[str]:
    """Compare the index's file with its seal."""
    sealed, digest = read_seal(folder)
    commits = index.state().commits
    if commits < sealed:
        return [f"'{folder / INDEX}' has lost commits ({commits} of {sealed}); restore it from a copy."]
    if commits == sealed and digest not in (None, file_hash(folder / INDEX)):
        return [f"'{folder / INDEX}' is not what was written (its hash differs); restore it from a copy."]
    return []


def _segment_problems(folder: Path, header: StoreHeader, index: Index, progress: Progress | None) -> list[str]:
    """Compare segments with their hashes, and name the documents that a damaged segment affects."""
    documents: dict[int, list[Entry]] = {}
    for entry in index.entries():
        documents.setdefault(entry.segment, []).append(entry)
    total = sum(map(len, documents.values()))
    found: list[str] = []
    done = 0
    for segment in index.segments():
        path = segment_path(folder, segment.number)
        inside = documents.get(segment.number, [])
        if not path.is_file() or file_hash(path) != segment.sha256:
            lost: list[str] = []
            for entry in inside:
                try:
                    next(read_entries(folder, header, [entry]))
                except DamagedStoreError:
                    lost.append(ascii(entry.id))
            more = " ..." if len(lost) > _MOST_NAMED else ""
            names = f"; damaged documents: {', '.join(lost[:_MOST_NAMED])}{more}" if lost else ""
            reason = "its hash differs" if path.is_file() else "missing"
            found.append(f"'{path}' is not what was written ({reason}){names}")
        done += len(inside)
        if progress is not None:
            progress(done, total)
    return found
