"""Files and folders that are there whole or not at all, and the checksums by which damage is found.

A folder is written under another name beside its place, flushed to the disk, and renamed:

    .talk.HOST-PID-0.draft    the new folder, until it is complete
    .talk.HOST-PID-0.old      the old one, until the new one has taken its place

A process that is killed between the two renames leaves the old folder aside; whoever opens or replaces the folder next
moves it back. `checksums.json` names the files that memlm wrote with their SHA-256: nothing else is ever deleted.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from memlm.checksums import SUMS, check_folder, file_hash, files_in, sums_text, written_files
from memlm.errors import CheckpointError, UserError

_LONGEST_NAME: Final = 120
_WAIT: Final = 2.0
"""Seconds in which a living process ends its two renames."""
_HOST: Final = re.sub(r"[^A-Za-z0-9]", "", platform.node())[:16] or "host"
_numbers = itertools.count()
_logger = logging.getLogger(__name__)
Found = TypeVar("Found")


def write_folder_atomic(folder: Path, write: Callable[[Path], object], *, owned: bool = False) -> None:
    """Create a folder, or replace one that memlm wrote; `write` fills a draft, which then takes the folder's name.

    Args:
        folder: the place; a symbolic link is followed.
        write: receives the draft, an empty folder beside the place.
        owned: the place lies inside a folder of memlm's own, and whatever is there may be replaced.

    Raises:
        UserError: the place is a file, or holds files that memlm did not write, or cannot be written; nothing is
            changed.
        OSError: the disk is full, or an owned place cannot be written; nothing is changed.
    """
    place = _followed(folder)
    if not owned:
        require_replaceable(place)
    try:
        with _draft_beside(place) as draft:
            write(draft)
            seal_folder(draft)
            _swap(draft, place, owned=owned)
    except OSError as error:
        if owned:
            raise
        reason = error.strerror or error
        raise UserError(f"cannot write to '{folder}' ({reason}); what was there is as it was.") from error


def create_folder(
    folder: str | Path, write: Callable[[Path], object], error: type[UserError], *, sealed: bool = True
) -> None:
    """Create a folder as `write_folder_atomic` does; of several processes, one creates it and the others get an error.

    Args:
        folder: the place, where an empty folder may be.
        write: receives the draft.
        error: is raised where the folder exists, or cannot be written.
        sealed: write `checksums.json`.
    """
    place = _followed(Path(folder))
    taken = error(f"'{folder}' exists already; give another folder.")
    if not is_vacant(place):
        raise taken
    try:
        with _draft_beside(place) as draft:
            write(draft)
            if sealed:
                seal_folder(draft)
            flush_tree(draft)
            draft.rename(place)
            flush(place.parent)
    except OSError as reason:
        if reason.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and not is_vacant(place):
            raise taken from reason
        raise error(f"cannot write to '{folder}' ({reason.strerror or reason}).") from reason


def is_vacant(folder: Path) -> bool:
    """Return whether a place is free: nothing is there, or an empty folder."""
    try:
        return not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    except OSError:
        return False


def require_replaceable(folder: Path) -> None:
    """Check that a place is free, or holds nothing but files that memlm wrote.

    Raises:
        UserError: it holds something else.
    """
    if is_vacant(folder):
        return
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file, not a folder; give another folder.")
    written = written_files(folder)
    foreign = sorted(name for name in files_in(folder) if name not in written)
    if foreign:
        raise UserError(
            f"'{folder}' holds something else than memlm wrote there ('{foreign[0]}'); give another folder."
        )


def require_place(folder: Path) -> None:
    """Check that a folder can be written or replaced, before the work whose result it will hold.

    Raises:
        UserError: it holds something else than memlm wrote, or its place cannot be written.
    """
    place = _followed(folder)
    require_replaceable(place)
    above = next(parent for parent in place.parents if os.path.lexists(parent))
    try:
        with suppress(FileNotFoundError):
            place.lstat()
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"cannot write to '{folder}' ('{above}' is no folder that can be written); give another.")
    except OSError as error:
        raise UserError(f"cannot write to '{folder}' ({error.strerror}); give another folder.") from error


def read_folder(folder: Path, read: Callable[[Path], Found]) -> Found:
    """Read a folder that another process may replace meanwhile, after its checksums are checked.

    Raises:
        CheckpointError: a file is not what was written.
    """
    recover_folder(folder)
    while True:
        before = _identity(folder)
        try:
            check_folder(folder)
            found = read(folder)
        except CheckpointError:
            if _identity(folder) == before:
                raise
            recover_folder(folder)
            continue
        if _identity(folder) == before:
            return found


def recover_folder(folder: Path) -> None:
    """Move a folder back that a killed process left aside when it replaced it."""
    place, end = _followed(folder), time.monotonic() + _WAIT
    while not os.path.lexists(place) and (aside := _leftovers(place, "old")) and time.monotonic() < end:
        dead = [old for old in aside if not _is_alive(old) and _is_whole(old)]
        if dead:
            with suppress(OSError):  # another process was first
                max(dead, key=lambda old: old.stat().st_ctime_ns).rename(place)
        elif any(map(_is_alive, aside)):
            time.sleep(0.01)
        else:
            return


def seal_folder(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the checksums of a folder's files, of all or of these; others that were written before stay.

    The files get the permissions that the umask gives.
    """
    found = sorted(files_in(folder) if names is None else names)
    mode = _usual_mode(folder)
    for name in found:
        (folder / name).chmod(mode)
    before = {} if names is None else written_files(folder)
    add_sums(folder, before | {name: file_hash(folder / name) for name in found})


def add_sums(folder: Path, files: dict[str, str]) -> None:
    """Write `checksums.json` for files with these hashes."""
    write_file_atomic(folder / SUMS, sums_text(files))


def write_file_atomic(path: Path, text: str) -> None:
    """Create or replace a text file atomically."""
    with draft_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def draft_file(path: Path) -> Generator[Path]:
    """Yield an empty draft beside a file; it takes the file's name when the block has filled it."""
    draft = _name_beside(path, "draft")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = draft.stat().st_mode & 0o777
    try:
        yield draft
        draft.chmod(mode)  # some libraries give files to their owner alone
        flush(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    flush(path.parent)


def append_text(path: Path, text: str) -> None:
    """Append whole lines to a text file in one write, which is on the disk before this returns.

    Where a crash cut the last line short, the new lines begin behind a line end.
    """
    cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if cut_short else "") + text)
        stream.flush()
        os.fsync(stream.fileno())


def flush_tree(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _followed(folder: Path) -> Path:
    """Return the place that a path names, behind symbolic links."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"'{folder}' is a symbolic link that leads to itself; give another folder.") from error


@contextmanager
def _draft_beside(place: Path) -> Generator[Path]:
    place.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(place)
    for leftover in (*_leftovers(place, "draft"), *_leftovers(place, "old")):
        if not _is_alive(leftover):
            _remove(leftover, owned=leftover.suffix == ".draft")
    draft = _name_beside(place, "draft")
    draft.mkdir()
    try:
        yield draft
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _swap(draft: Path, place: Path, *, owned: bool) -> None:
    """Give a draft its place; what is there is moved aside first, and removed last."""
    flush_tree(draft)
    old = draft.with_suffix(".old")
    try:
        while not _moved_in(draft, place, old, owned=owned):
            _remove(old, owned=owned)  # another process was faster: its folder is replaced now
    except BaseException:
        if old.exists() and not os.path.lexists(place):
            old.rename(place)
        raise
    flush(place.parent)
    if old.exists():
        _remove(old, owned=owned)


def _moved_in(draft: Path, place: Path, old: Path, *, owned: bool) -> bool:
    """Move the old folder aside and the draft to its place; return False where another process filled the place."""
    if not owned:
        require_replaceable(place)
    with suppress(FileNotFoundError):
        place.rename(old)
    try:
        draft.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _remove(folder: Path, *, owned: bool) -> None:
    """Remove a folder that memlm wrote; files that it did not write stay, and are named."""
    if owned:
        return shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError, UserError):
        written = written_files(folder)
        for name in [name for name in files_in(folder) if name in written and name != SUMS]:
            (folder / name).unlink(missing_ok=True)
        if files_in(folder) <= {SUMS}:
            shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        _logger.warning("files that memlm did not write were left in '%s'", folder)
    return None


def _is_whole(folder: Path) -> bool:
    written = written_files(folder)
    return bool(written) and written.keys() <= files_in(folder)


def _usual_mode(folder: Path) -> int:
    """Return the permissions that a new file gets, by the umask."""
    probe = folder / f".mode-{os.getpid()}-{next(_numbers)}"
    os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    return mode


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns


def _key(path: Path) -> str:
    size = len(os.fsencode(path.name))
    return path.name if size <= _LONGEST_NAME else hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]


def _name_beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{_key(path)}.{_HOST}-{os.getpid()}-{next(_numbers)}.{kind}")


def _leftovers(place: Path, kind: str) -> list[Path]:
    """Return what other writers of a place have beside it, or left there."""
    pattern = re.compile(rf"\.{re.escape(_key(place))}\.\w+-\d+-\d+\.{kind}")
    try:
        return [entry for entry in place.parent.iterdir() if pattern.fullmatch(entry.name)]
    except OSError:
        return []


def _is_alive(leftover: Path) -> bool:
    """Return whether the process that made a draft may still run; processes of other machines are not known."""
    host, process, _ = leftover.name.rsplit(".", 2)[1].split("-")
    if host != _HOST:
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
