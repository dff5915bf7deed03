"""Changes of a store on disk: the writer's lock, segments that appear with their commit, and recovery after a crash.

A change writes new segments first and then makes one commit of the index. Files that no commit names are not part of
the store; the next writer removes them. A file that a commit names is never changed in place.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from memlm.errors import DamagedStoreError, StoreError
from memlm.store.format.header import NAME as HEADER
from memlm.store.format.index import NAME as INDEX
from memlm.store.format.index import SEAL, Index, read_seal, write_seal
from memlm.store.format.segments import FOLDER, segment_path

_LOCK = "writer.lock"


def lock_store(folder: Path, wait: float) -> FileLock:
    """Acquire the lock of a store's only writer.

    Args:
        folder: the store.
        wait: seconds to wait for another writer.

    Raises:
        StoreError: another process holds the lock, or it cannot be created.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        raise StoreError(f"another process writes to '{folder}'; wait for it (--wait SECONDS).") from None
    except OSError as error:
        raise write_error(folder, error) from error
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
    except OSError as error:
        sweep(folder, index)
        raise write_error(folder, error) from error
    except BaseException:
        sweep(folder, index)
        raise


def settle(folder: Path, index: Index) -> None:
    """Move commits into the index's main file and write the seal of that file.

    Raises:
        StoreError: the folder cannot be written; the commits are kept.
    """
    try:
        settled = index.settle()
        write_seal(folder, index.state().commits, settled=settled)
    except OSError as error:
        raise write_error(folder, error, committed=True) from error


def recover(folder: Path, index: Index) -> None:
    """Finish or undo what an interrupted writer left: an index without its seal, segments that no commit names.

    Raises:
        DamagedStoreError: the index is not as it was written.
        StoreError: the folder cannot be written.
    """
    seal = read_seal(folder)
    if seal.commits != index.state().commits or seal.index_sha256 is None:
        problems = index.problems()
        if problems:
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
