"""Documents of a source: the bundled speeches, a file, a folder, a glob, or a dataset of the Hub.

Items that cannot be read are left out with a note to the log "memlm.data"; a source without anything to read raises a
DataError that names the first item and the remedy.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from importlib import resources
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, cast

from huggingface_hub import constants

from memlm.data.corpus import Document, LeftOut, has_surrogates, stream_file
from memlm.data.given import list_of_texts
from memlm.data.records import Value, field_of, is_plain, read_values, shown_path, text_of
from memlm.errors import DataError, Within, did_you_mean

BUNDLED: Final = {"sotu": "sotu.jsonl.xz"}
MAX_TOTAL_CHARACTERS: Final = 4 * 2**30
"""The greatest number of characters that `load_documents` returns."""
_LOG = logging.getLogger(__name__)
_INSTALLED: Final = ("__pycache__", "node_modules", "site-packages")
"""Folders of programs that a folder of texts does not mean."""
_SHOWN_SIBLINGS = 20
_BEGINNING = 2**16
"""Bytes in which a binary file has a NUL."""
Stream = tuple[str, Iterable[str]]
"""An id, and a text in pieces."""


def load_documents(
    source: str | Sequence[str], *, text_field: str = "text", max_documents: int | None = None, strict: bool = False
) -> list[Document]:
    """Return the documents of a source, or of several, in a stable order and without empty ones.

    A folder is read without hidden files and folders, virtual environments and binary files. An id that repeats gets a
    number. What is left out is counted in one line of the log "memlm.data".

    Args:
        source: "sotu" (bundled), a file (text, .jsonl, .json, .csv, .tsv or .parquet, also as .gz, .xz, .bz2 or .zst),
            a folder, a glob, or a Hub id ("owner/name", "hub:owner/name:config@split").
        text_field: the field of a record that holds the text; a dotted name reaches into records within it.
        max_documents: the greatest number of documents to return.
        strict: raise at the first item that cannot be read.

    Raises:
        DataError: a source is missing or larger than MAX_TOTAL_CHARACTERS, or nothing can be read.
        ConfigError: max_documents is out of its range.
    """
    if max_documents is not None:
        Within(1, 2**31 - 1).check("max_documents", max_documents, whole=True)
    sources = _names(source)
    documents: list[Document] = []
    total, left_out = 0, LeftOut(strict=strict)
    found = (d for name in sources for d in _documents(name, text_field, left_out, alone=len(sources) == 1))
    for document in islice(found, max_documents):
        total += len(document.text)
        if total > MAX_TOTAL_CHARACTERS:
            raise DataError(f"'{sources[0]}' holds over {MAX_TOTAL_CHARACTERS} characters; set max_documents.")
        documents.append(document)
    _finish(sources, left_out, len(documents))
    return documents


def stream_documents(
    source: str | Sequence[str], *, text_field: str = "text", strict: bool = False
) -> Iterator[Stream]:
    """Yield the id of each document and its text in pieces.

    A file of plain text keeps every byte, and its path is its id; the id of a record begins with its file's path.

    Args:
        source: as for `load_documents`.
        text_field: as for `load_documents`.
        strict: as for `load_documents`.

    Raises:
        DataError: as for `load_documents`.
    """
    sources = _names(source)
    left_out, read = LeftOut(strict=strict), 0
    for stream in (s for name in sources for s in _streams(name, text_field, left_out, alone=len(sources) == 1)):
        read += 1
        yield stream
    _finish(sources, left_out, read)


def _names(source: str | Sequence[str]) -> list[str]:
    names = [str(source)] if isinstance(source, Path) else list_of_texts(source, name="source")
    if not names:
        raise DataError("no source of text; give at least one file, folder, glob or Hub id.")
    return names


def _streams(source: str, text_field: str, left_out: LeftOut, *, alone: bool) -> Iterator[Stream]:
    paths = [] if source in BUNDLED else find_files(source, left_out)
    if not paths:
        yield from ((d.id, [d.text]) for d in _documents(source, text_field, left_out, alone=alone))
    for path in paths:
        if is_plain(path) and path.is_file():  # a pipe is read once, so that it is not checked first
            if _is_text(path, left_out, named=path == Path(source)):
                yield shown_path(path), stream_file(path)
            continue
        values = _file_values(path, text_field, left_out, alone=alone and len(paths) == 1)
        for document in _documents_of(values, text_field, left_out, below=shown_path(path)):
            yield document.id, [document.text]


def _is_text(path: Path, left_out: LeftOut, *, named: bool) -> bool:
    """Return True for UTF-8 that is neither empty nor binary, or that is named itself; count every other file."""
    try:
        with path.open("rb") as file:
            binary = b"\0" in file.read(_BEGINNING)
        filled = (binary and not named) or sum(bool(piece.strip()) for piece in stream_file(path))
    except (DataError, OSError) as error:
        message = f"cannot read '{shown_path(path)}' ({error})."
        left_out.add("unreadable", error if isinstance(error, DataError) else DataError(message))
        return False
    if named or (filled and not binary):
        return True
    kind = "binary" if binary else "empty"
    left_out.add(kind, DataError(f"'{shown_path(path)}' is {kind}; name it itself to read it."), expected=True)
    return False


def _finish(sources: list[str], left_out: LeftOut, read: int) -> None:
    """Tell what was left out.

    Raises:
        DataError: nothing was read.
    """
    name = sources[0] if len(sources) == 1 else f"{sources[0]}' to '{sources[-1]}"
    if not read:
        raise left_out.reason or DataError(f"'{name}' holds no text; give a source with at least one document.")
    if sentence := left_out.sentence(name, read=read):
        _LOG.warning("%s", sentence)


def _documents(source: str, text_field: str, left_out: LeftOut, *, alone: bool) -> Iterator[Document]:
    field = "text" if source in BUNDLED else text_field
    yield from _documents_of(_source_values(source, field, left_out, alone=alone), field, left_out)


def _documents_of(
    values: Iterator[Value], text_field: str, left_out: LeftOut, *, below: str | None = None
) -> Iterator[Document]:
    """Yield the documents of values; with `below`, ids begin with that name."""
    for value in values:
        try:
            text = text_of(value, text_field)
        except DataError as error:
            left_out.add("unreadable", error)
            continue
        if text.strip():
            name = _id_of(value)
            name = name if below is None or name.startswith(below) else f"{below}:{name}"
            yield Document(left_out.ids.of(name), text)
        else:
            message = f"{value.place} holds no text; give a source with at least one document that is not empty."
            left_out.add("empty", DataError(message), expected=True)


def _id_of(value: Value) -> str:
    """Return the id that a record names, or its place where it names none that can be one."""
    found = field_of(value.value, "id") if isinstance(value.value, dict) else None
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        return value.place
    name = str(found)
    return name if name.strip() and not has_surrogates(name) else value.place


def _source_values(source: str, text_field: str, left_out: LeftOut, *, alone: bool) -> Iterator[Value]:
    if source in BUNDLED:
        with resources.as_file(resources.files("memlm.data") / "corpora" / BUNDLED[source]) as path:
            yield from read_values(path, left_out, name=path.name)
    elif paths := find_files(source, left_out):
        for path in paths:
            yield from _file_values(path, text_field, left_out, alone=alone and len(paths) == 1)
    elif source.startswith("hub:") or _looks_like_hub_id(source):
        yield from _read_hub(source.removeprefix("hub:"))
    elif Path(source).is_dir():
        left_out.add("empty", DataError(f"'{source}' holds no files; give a folder of texts."), expected=True)
    else:
        raise DataError(f"no text at '{source}'. {_nearby(source)}")


def _file_values(path: Path, text_field: str, left_out: LeftOut, *, alone: bool) -> Iterator[Value]:
    """Yield the values of a file; one file among several that cannot be read is counted."""
    try:
        yield from read_values(path, left_out, columns=(text_field, "id"))
    except DataError as error:
        if alone:
            raise
        left_out.add("unreadable", error)


def find_files(source: str, left_out: LeftOut) -> list[Path]:
    """Return the files that a source names, in a stable order.

    Args:
        source: a file, a folder or a glob.
        left_out: receives hidden entries of a folder, virtual environments, broken links and what is no file.

    Raises:
        DataError: the source is empty, or cannot be looked for.
    """
    if not source.strip():
        raise DataError(f"the source is empty (''); give a file, a folder, a Hub id or one of {', '.join(BUNDLED)}.")
    path = Path(source)
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        # too long, not permitted, or with a NUL: a glob would fail in the same way
        raise DataError(f"cannot look for '{source[:80]}' ({type(error).__name__}); give another path.") from error
    if path.is_dir():
        return sorted(_files_below(path, left_out))
    if path.exists():
        return [path]
    if path.is_symlink():
        raise DataError(f"'{source}' is a link to '{path.readlink()}', which is not there; give the file itself.")
    # linked folders may lead back to themselves, so that one file has many paths
    paths = sorted((Path(p) for p in glob.glob(source, recursive=True)), key=lambda p: (len(p.parts), p))  # noqa: PTH207 (absolute globs)
    found = sorted({os.path.realpath(p): p for p in reversed(paths)}.values())
    return [p for p in found if p.is_file() and not _is_installed(p, source, left_out)]


def _is_installed(path: Path, source: str, left_out: LeftOut) -> bool:
    """Return True for a file that a glob found in a folder of programs which it does not name."""
    for folder in path.parents:
        if folder.name and folder.name not in Path(source).parts and (reason := _why_not(folder)):
            _leave_out(reason, folder, left_out)
            return True
    return False


def _files_below(folder: Path, left_out: LeftOut) -> Generator[Path]:
    def unreadable(error: OSError) -> None:
        left_out.add("unreadable", DataError(f"cannot read '{error.filename}' ({error.strerror}); permit it."))

    for root, folders, files in os.walk(folder, onerror=unreadable):
        for name in sorted(folders):
            if reason := "linked folders" if (Path(root) / name).is_symlink() else _why_not(Path(root) / name):
                _leave_out(reason, Path(root) / name, left_out)
                folders.remove(name)
        for name in files:
            path = Path(root) / name
            if name.startswith("."):
                _leave_out("hidden", path, left_out)
            elif path.is_file():
                yield path
            else:
                what = "a broken link" if path.is_symlink() else "neither a file nor a folder"
                left_out.add("unreadable", DataError(f"'{shown_path(path)}' is {what}; give a file."))


def _why_not(folder: Path) -> str | None:
    """Return what kind of folder is left out, or None."""
    if folder.name.startswith("."):
        return "hidden"
    if folder.name in _INSTALLED:
        return "of installed programs"
    environment = (folder / "pyvenv.cfg").exists() or (folder / "conda-meta").is_dir()
    return "of virtual environments" if environment else None


def _leave_out(reason: str, path: Path, left_out: LeftOut) -> None:
    message = f"'{shown_path(path)}' is {reason}; name it itself to read it."
    left_out.add(reason, DataError(message), expected=True)


def _looks_like_hub_id(source: str) -> bool:
    plain = source.split("@")[0].split(":")[0]
    return plain.count("/") == 1 and not plain.startswith((".", "/", "~")) and not Path(plain).suffix


def _nearby(source: str) -> str:
    folder = Path(source).parent
    siblings = [str(p) for p in islice(folder.iterdir(), _SHOWN_SIBLINGS)] if folder.is_dir() else []
    return did_you_mean(source, BUNDLED if len(siblings) == _SHOWN_SIBLINGS else chain(BUNDLED, siblings))


def _read_hub(name: str) -> Iterator[Value]:
    """Stream a dataset through `datasets`: "owner/name", optionally with ":config" and "@split"."""
    name, _, split = name.partition("@")
    name, _, config = name.partition(":")
    if constants.HF_HUB_OFFLINE:
        raise DataError(
            f"cannot read '{name}' from the Hub (HF_HUB_OFFLINE is set); unset it, or give a file (--text)."
        )
    try:
        import datasets

        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(cast("Iterable[dict[str, Any]]", rows)):
            yield Value(f"{name}:{number}", record)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"cannot read '{name}' from the Hub ({reason}); check the name and the network, or give a file."
        ) from error
