"""One reader of files for every command: plain text, JSONL, JSON, CSV, TSV and Parquet, also compressed.

A file gives values: a text, or a record with fields. A value that cannot be read is left out and counted (`LeftOut`),
and the values behind it are read; sizes are bounded while a file is unpacked.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import stat
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from memlm.data.corpus import LeftOut, has_surrogates
from memlm.errors import DataError, did_you_mean

MAX_DOCUMENT_BYTES: Final = 512 * 2**20
"""The greatest size of a text file, a JSON file or a line, which are read into memory at once."""
_MARKS: Final = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by the byte order mark that a file begins with; the longer marks come first."""
_DELIMITERS: Final = ",;\t|"
_PATIENCE: Final = 5.0
"""Seconds in which another program opens a pipe to write."""


class Value(NamedTuple):
    """A text, or the value of a record, and its place in the source, such as "notes.jsonl:3"."""

    place: str
    value: Any


def kind_of_file(path: Path) -> str:
    """Return the suffix that names a file's format in lower case, such as ".jsonl"; compression does not count."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in _UNPACKERS), "")


def is_plain(path: Path) -> bool:
    """Return True for a file of text that is neither compressed nor made of records."""
    return path.suffix.lower() not in _UNPACKERS and kind_of_file(path) not in _READERS


def read_values(
    path: Path, left_out: LeftOut, *, columns: Iterable[str] = (), name: str | None = None
) -> Iterator[Value]:
    """Yield the values of a file in order.

    Args:
        path: a file; its suffix, in any case, names the format. Every other file is plain text, which is one value.
        left_out: receives the values that cannot be read.
        columns: the fields that are used; Parquet files are read without their other columns.
        name: the file's name in places; by default its path.

    Raises:
        DataError: the file as a whole cannot be read, or the reader is strict and a value cannot be read.
    """
    shown = shown_path(path) if name is None else name
    with _opened(path) as file:
        if kind_of_file(path) == ".parquet":
            packed = path.suffix.lower() in _UNPACKERS  # pyarrow seeks, which compressed files cannot do
            yield from _read_parquet(io.BytesIO(_whole(file, shown)) if packed else file, shown, tuple(columns))
        else:
            yield from _READERS.get(kind_of_file(path), _read_text)(_as_utf8(file, shown), shown, left_out)


def shown_path(path: Path) -> str:
    """Return a path as text; bytes of a name that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def text_of(value: Value, text_field: str) -> str:
    """Return the text of a value.

    Args:
        value: a text, or a record that has one.
        text_field: the field of a record; "meta.body" is the field "meta.body", or "body" of the record in "meta".

    Raises:
        DataError: there is no such field, or it does not hold text.
    """
    place, found = value
    if not isinstance(found, str):
        if not isinstance(found, dict):
            raise DataError(f"{place} holds {_kind(found)}, not an object with a '{text_field}' field.")
        fields = cast("dict[str, Any]", found)
        found = field_of(fields, text_field)
        if found is _MISSING:
            names = did_you_mean(text_field, _names(fields)) if fields else "It has no fields."
            remedy = "Name another field (--text-field, or text_field)."
            raise DataError(f"{place} has no field '{text_field}'. {names} {remedy}")
    if not isinstance(found, str):
        raise DataError(f"{place}: field '{text_field}' is {_kind(found)}, not text; set another text_field.")
    if has_surrogates(found):
        raise DataError(f"{place}: field '{text_field}' holds half of a surrogate pair; correct that record.")
    return found


_MISSING: Final = object()


def field_of(record: Any, name: str) -> Any:
    """Return a field of nested records and lists by its dotted name, or `_MISSING`."""
    if isinstance(record, dict) and name in record:
        return cast("dict[str, Any]", record)[name]
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        inner = _entry(record, ".".join(parts[:count]))
        if inner is not _MISSING:
            return field_of(inner, ".".join(parts[count:]))
    return _entry(record, name)


def _entry(record: Any, key: str) -> Any:
    if isinstance(record, dict):
        return cast("dict[str, Any]", record).get(key, _MISSING)
    if isinstance(record, list) and key.isdecimal() and len(key) < 10:
        entries = cast("list[Any]", record)
        return entries[int(key)] if int(key) < len(entries) else _MISSING
    return _MISSING


def _names(fields: dict[str, Any]) -> list[str]:
    """Return the names of a record's fields, and those of the records in it by their dotted names."""
    nested = [
        f"{k}.{n}" for k, inner in fields.items() if isinstance(inner, dict) for n in cast("dict[str, Any]", inner)
    ]
    return [*map(str, fields), *nested]


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


@contextmanager
def _opened(path: Path) -> Generator[io.BufferedIOBase]:
    """Open a file, which may be compressed.

    Raises:
        DataError: there is no such file, it is a device, or it cannot be unpacked.
    """
    shown = shown_path(path)
    with open_bytes(path) as plain:
        try:
            unpack = _UNPACKERS.get(path.suffix.lower())
            file = plain if unpack is None else cast(io.BufferedIOBase, unpack(plain))
            with file:
                yield file
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"cannot unpack '{shown}': {error}; fetch the file again.") from error


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file or a pipe, of which reading ends.

    Raises:
        DataError: there is no such file, it is a device, or a pipe that no program writes to.
    """
    shown = shown_path(path)
    try:
        mode = path.stat().st_mode
        if (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)) and str(path) != "/dev/stdin":
            raise DataError(f"'{shown}' is a device, which never ends; give a file.")
        return _open_pipe(path) if stat.S_ISFIFO(mode) else path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read '{shown}': {error.strerror or error}.") from error


def _open_pipe(path: Path) -> io.BufferedReader:
    found: list[io.BufferedReader] = []
    opening = threading.Thread(target=lambda: found.append(path.open("rb")), daemon=True)
    opening.start()  # opening a pipe waits for a program that writes to it
    opening.join(_PATIENCE)
    if opening.is_alive():
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        opening.join()
        found[0].close()
        raise DataError(f"'{shown_path(path)}' is a pipe that no program writes to; give a file.")
    return found[0]


def _open_zst(file: io.BufferedReader) -> io.BufferedIOBase:
    """Open a file of Zstandard, which pyarrow unpacks."""
    import pyarrow as pa

    return cast(io.BufferedIOBase, io.BufferedReader(cast(Any, pa.input_stream(file, compression="zstd"))))


_UNPACKERS: Final[dict[str, Callable[..., object]]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _open_zst,
}


def _as_utf8(file: io.BufferedIOBase, name: str) -> io.BufferedIOBase:
    """Return the content as UTF-8 without a byte order mark; other files are returned as they are."""
    head = cast(Any, file).peek(4)[:4]
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    encoding = next((found for mark, found in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None:
        return file
    content = _whole(file, name)
    try:
        return io.BytesIO(content.decode(encoding).encode())
    except UnicodeError:
        return io.BytesIO(content)  # the mark is a coincidence; what the bytes are is found out by the reader


def _whole(file: io.BufferedIOBase, name: str) -> bytes:
    content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DataError(f"'{name}' is larger than {MAX_DOCUMENT_BYTES} bytes; cut it into documents (lines of JSONL).")
    return content


def _read_text(file: io.BufferedIOBase, name: str, left_out: LeftOut) -> Iterator[Value]:
    content = _whole(file, name)
    if not content:
        left_out.add("empty", DataError(f"'{name}' is empty (0 bytes); give a file with text."), expected=True)
    elif (nul := content.find(b"\0")) >= 0:
        message = f"'{name}' is not text: byte {nul} is NUL; give UTF-8 text, JSON, CSV or Parquet."
        left_out.add("binary", DataError(message), expected=True)
    else:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            text = _readable_lines(
                content, DataError(f"'{name}' is not UTF-8 at byte {error.start}; convert it."), left_out
            )
        if text is not None:
            yield Value(name, text)


def _readable_lines(content: bytes, error: DataError, left_out: LeftOut) -> str | None:
    """Return the lines that are UTF-8 where they are most of the lines; count the others, or the file."""
    lines = content.splitlines(keepends=True)
    found = [text for line in lines if (text := _decoded(line)) is not None]
    bad = len(lines) - len(found)
    if 2 * bad >= len(lines):
        left_out.add("not UTF-8", error)
        return None
    for _ in range(bad):
        left_out.add("not UTF-8", error)
    return "".join(found)


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _read_jsonl(file: io.BufferedIOBase, name: str, left_out: LeftOut) -> Iterator[Value]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
        place = f"{name}:{number}"
        if len(line) > MAX_DOCUMENT_BYTES:
            raise DataError(f"{place} is longer than {MAX_DOCUMENT_BYTES} bytes; cut it into several records.")
        if line.strip():
            try:
                value = json.loads(line.decode())
            except UnicodeDecodeError as error:
                left_out.add("unreadable", DataError(f"{place} is not UTF-8 at byte {error.start}; convert the file."))
            except (ValueError, RecursionError) as error:
                message = f"{place} is not JSON ({error}); every line must be one JSON object."
                left_out.add("unreadable", DataError(message))
            else:
                yield Value(place, value)


def _read_json(file: io.BufferedIOBase, name: str, left_out: LeftOut) -> Iterator[Value]:
    """Yield the entries of an array, one object, or what lines of JSON hold."""
    content = _whole(file, name)
    if not content.strip():
        left_out.add("empty", DataError(f"'{name}' is empty; give a file with text."), expected=True)
        return
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            yield from _read_jsonl(io.BytesIO(content), name, left_out)
        else:
            left_out.add("unreadable", DataError(f"'{name}' is not JSON ({error}); give an array of objects."))
        return
    if isinstance(value, list):
        entries = cast("list[Any]", value)
        yield from (Value(f"{name}:{number}", entry) for number, entry in enumerate(entries))
    else:
        yield Value(name, value)


def _read_csv(file: io.BufferedIOBase, name: str, left_out: LeftOut, delimiter: str | None = None) -> Iterator[Value]:
    """Yield rows by the names in the first one; a row that the names do not fit is left out."""
    # bytes that are not UTF-8 become halves of surrogate pairs, which `text_of` refuses record by record
    lines = (line.decode(errors="surrogateescape") for line in iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b""))
    head = next(lines, "")
    if not head.strip():
        left_out.add("empty", DataError(f"'{name}' is empty; give rows below a row of names."), expected=True)
        return
    csv.field_size_limit(MAX_DOCUMENT_BYTES)  # the standard limit of 131,072 characters is below many documents
    counts = {sign: head.count(sign) for sign in _DELIMITERS}
    rows = csv.reader(_chained(head, lines), delimiter=delimiter or max(counts, key=counts.__getitem__), strict=True)
    names: list[str] = []
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            left_out.add("unreadable", DataError(f"{name}:{rows.line_num} is not CSV ({error}); correct that row."))
            continue
        place = f"{name}:{rows.line_num}"
        if row is None:
            return
        if not names:
            names = [part.strip() for part in row]
        elif len(row) not in (0, len(names)):
            message = f"{place} has {len(row)} fields and the first row {len(names)}; quote texts that hold delimiters."
            left_out.add("unreadable", DataError(message))
        elif row:
            yield Value(place, dict(zip(names, row, strict=True)))


def _chained(first: str, others: Iterator[str]) -> Iterator[str]:
    yield first
    yield from others


def _read_tsv(file: io.BufferedIOBase, name: str, left_out: LeftOut) -> Iterator[Value]:
    return _read_csv(file, name, left_out, "\t")


def _read_parquet(file: io.BufferedIOBase, name: str, columns: tuple[str, ...]) -> Iterator[Value]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(cast(Any, file))
        names = table.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"'{name}' is not a Parquet file that can be read ({reason}); write it again.") from error
    wanted = [top for top in names if any(f"{column}.".startswith(f"{top}.") for column in columns)]
    if columns and not any(f"{columns[0]}.".startswith(f"{top}.") for top in wanted):
        raise DataError(f"'{name}' has no column '{columns[0]}'. {did_you_mean(columns[0], names)}")
    rows = (
        record
        for batch in table.iter_batches(columns=wanted if columns else None, batch_size=1024)
        for record in batch.to_pylist()
    )
    try:
        yield from (Value(f"{name}:{row}", record) for row, record in enumerate(rows))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{name}' is damaged ({str(error).splitlines()[0]}); write it again.") from error


_READERS: Final[dict[str, Callable[[io.BufferedIOBase, str, LeftOut], Iterator[Value]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": cast(Any, _read_parquet),
}
