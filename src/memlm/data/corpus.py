"""Documents from the bundled speeches, files, folders, globs, JSONL, Parquet and the Hub.

Sizes are bounded and text is checked while it is read. Anything that cannot be read raises a DataError that names the
position and the remedy.
"""

from __future__ import annotations

import bz2
import codecs
import glob
import gzip
import hashlib
import json
import lzma
import random
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final, cast

from memlm.errors import DataError, did_you_mean

BUNDLED: Final = {"sotu": "sotu.jsonl.xz"}
MAX_DOCUMENT_BYTES: Final = 512 * 2**20
"""The greatest size of a text file, which is read into memory at once."""
MAX_TOTAL_BYTES: Final = 4 * 2**30
"""The greatest number of characters that `load_documents` returns."""
_PACKED: Final[dict[str, Callable[..., object]]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


@dataclass(frozen=True)
class Document:
    """A text with an id that is unique in its corpus."""

    id: str
    text: str


@dataclass(frozen=True)
class TrainValTestSplit:
    """Three lists of whole documents; no document is in two of them."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    held_out: tuple[Document, ...]


def load_documents(source: str, *, text_field: str = "text", max_documents: int | None = None) -> list[Document]:
    """Return the documents of a source in a stable order, without empty ones.

    Args:
        source: "sotu" (bundled), a file (text or .jsonl, also as .gz, .xz, .bz2; .parquet), a folder, a glob, or a
            Hub id ("owner/name", "hub:owner/name:config@split").
        text_field: the field of a JSONL or Parquet record that holds the text.
        max_documents: the greatest number of documents to return.

    Raises:
        DataError: the source is missing, empty, binary, malformed or larger than MAX_TOTAL_BYTES, or max_documents is
            below 1.
    """
    if max_documents is not None and max_documents < 1:
        raise DataError(f"max_documents ({max_documents}) must be at least 1.")
    documents: list[Document] = []
    total = 0
    found = (document for document in _open_source(source, text_field) if document.text.strip())
    for document in islice(found, max_documents):
        total += len(document.text)
        if total > MAX_TOTAL_BYTES:
            raise DataError(f"'{source}' holds over {MAX_TOTAL_BYTES} characters; set max_documents.")
        documents.append(document)
    if not documents:
        raise DataError(f"'{source}' holds no text; give a source with at least one document that is not empty.")
    return documents


def _open_source(source: str, text_field: str) -> Iterator[Document]:
    if not source.strip():
        raise DataError(f"the source is empty (''); give a file, a folder, a Hub id or one of {', '.join(BUNDLED)}.")
    if source in BUNDLED:
        with resources.as_file(resources.files("memlm.data") / "corpora" / BUNDLED[source]) as path:
            yield from _read_jsonl(path, path.name, "text")
        return
    if paths := _local_paths(source):
        for path in paths:
            yield from _read_file(path, text_field)
    elif source.startswith("hub:") or _looks_like_hub_id(source):
        yield from _read_hub(source.removeprefix("hub:"), text_field)
    else:
        raise DataError(f"no text at '{source}'. {_nearby(source)}")


def _local_paths(source: str) -> list[Path]:
    path = Path(source)
    try:
        path.lstat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        # too long, not permitted, or with a NUL: a glob would fail in the same way
        raise DataError(f"cannot look for '{source[:80]}' ({type(error).__name__}); give another path.") from error
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    if path.exists():
        return [path]
    return sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())  # noqa: PTH207 (absolute globs)


def _looks_like_hub_id(source: str) -> bool:
    plain = source.split("@")[0].split(":")[0]
    return plain.count("/") == 1 and not plain.startswith((".", "/", "~")) and not Path(plain).suffix


def _nearby(source: str) -> str:
    folder = Path(source).parent
    siblings = [str(p) for p in islice(folder.iterdir(), 20)] if folder.is_dir() else []
    return did_you_mean(source, BUNDLED if len(siblings) == 20 else [*BUNDLED, *siblings])


def _read_file(path: Path, text_field: str) -> Iterator[Document]:
    kind = next((s for s in reversed(path.suffixes) if s not in _PACKED), "")
    if kind in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path, str(path), text_field)
    elif kind == ".parquet":
        yield from _read_parquet(path, text_field)
    else:
        yield Document(str(path), _read_text(path))


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    """Open a file, which may be compressed."""
    try:
        file = cast("IO[bytes]", _PACKED.get(path.suffix, open)(path, "rb"))
    except OSError as error:
        raise DataError(f"cannot read '{path}': {error.strerror or error}.") from error
    with file:
        try:
            yield file
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"cannot unpack '{path}': {error}; fetch the file again.") from error


def _read_text(path: Path) -> str:
    with _opened(path) as file:
        content = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(content) > MAX_DOCUMENT_BYTES:
        raise DataError(f"'{path}' is larger than {MAX_DOCUMENT_BYTES} bytes; cut it into documents (lines of JSONL).")
    if not content:
        raise DataError(f"'{path}' is empty (0 bytes); give a file with text.")
    if (nul := content.find(b"\0")) >= 0:
        raise DataError(f"'{path}' is not text: byte {nul} is NUL; give UTF-8 text, JSONL or Parquet.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 at byte {error.start}; convert it to UTF-8 first.") from error


def _read_jsonl(path: Path, name: str, text_field: str) -> Iterator[Document]:
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_DOCUMENT_BYTES + 1), b""), start=1):
            if line.strip():
                yield _json_document(line, f"{name}:{number}", text_field)


def _json_document(line: bytes, where: str, text_field: str) -> Document:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON ({error}); every line must be one JSON object.") from error
    if not isinstance(record, dict):
        raise DataError(f"{where} holds a {type(record).__name__}, not an object with a '{text_field}' field.")
    fields = cast("dict[str, Any]", record)
    return Document(str(fields.get("id", where)), _text_of(fields, where, text_field))


def _text_of(fields: dict[str, Any], where: str, text_field: str) -> str:
    if text_field not in fields:
        raise DataError(f"{where} has no field '{text_field}'. {did_you_mean(text_field, fields)}")
    text = fields[text_field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field '{text_field}' is a {type(text).__name__}, not text; set another text_field.")
    if has_surrogates(text):
        raise DataError(f"{where}: field '{text_field}' holds half of a surrogate pair; correct that record.")
    return text


def _read_parquet(path: Path, text_field: str) -> Iterator[Document]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
        names = table.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"'{path}' is not a Parquet file that can be read ({reason}); write it again.") from error
    if text_field not in names:
        raise DataError(f"'{path}' has no column '{text_field}'. {did_you_mean(text_field, names)}")
    rows = (record for batch in table.iter_batches(columns=[text_field]) for record in batch.to_pylist())
    try:
        for row, record in enumerate(rows):
            yield Document(f"{path}:{row}", _text_of(record, f"{path}:{row}", text_field))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path}' is damaged ({str(error).splitlines()[0]}); write it again.") from error


def _read_hub(name: str, text_field: str) -> Iterator[Document]:
    """Stream a dataset through `datasets`: "owner/name", optionally with ":config" and "@split"."""
    name, _, split = name.partition("@")
    name, _, config = name.partition(":")
    try:
        import datasets

        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, record in enumerate(cast("Iterable[dict[str, Any]]", rows)):
            yield Document(f"{name}:{number}", _text_of(record, f"{name}:{number}", text_field))
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"cannot read '{name}' from the Hub ({reason}); check the name and the network, or give a file."
        ) from error


def pieces_of(document: Document, *, piece_bytes: int) -> list[Document]:
    """Cut a long document into documents of about `piece_bytes` characters, preferably between paragraphs."""
    pieces: list[Document] = []
    start, text = 0, document.text
    while start < len(text):
        end = min(start + piece_bytes, len(text))
        paragraph = text.rfind("\n\n", start + piece_bytes // 2, end)
        if end < len(text) and paragraph > 0:
            end = paragraph + 2
        pieces.append(Document(f"{document.id}#{len(pieces)}", text[start:end]))
        start = end
    return pieces


def split_documents(
    documents: Sequence[Document], *, held_out: float = 0.05, validation: float = 0.05, seed: int = 0
) -> TrainValTestSplit:
    """Split whole documents at random into training, validation and held-out documents.

    Choices are made on validation documents; figures come from held-out documents.

    Args:
        documents: at least three.
        held_out: the share of held-out documents, between 0 and 1; at least one document is held out.
        validation: the share of validation documents among the others, between 0 and 1; at least one document.
        seed: the seed of the choice; which documents are held out does not depend on `validation`.

    Raises:
        DataError: a share lies outside (0, 1), or there are fewer than three documents.
    """
    for name, share in (("held_out", held_out), ("validation", validation)):
        if not 0 < share < 1:
            raise DataError(f"{name} ({share}) must lie between 0 and 1; 0.05 takes one document in twenty.")
    if len(documents) < 3:
        found = "1 document" if len(documents) == 1 else f"{len(documents)} documents"
        raise DataError(f"{found} cannot be split three ways; give at least 3 (a file or a JSONL line each).")
    others, tested = _drawn(documents, held_out, seed)
    train, validated = _drawn(others, validation, seed + 1)
    return TrainValTestSplit(train, validated, tested)


def _drawn(documents: Sequence[Document], share: float, seed: int) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Return the documents that stay and a share that is drawn, both in their order and at least one each."""
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)  # noqa: S311 (a split, not a secret)
    drawn = set(order[: min(max(1, round(share * len(documents))), len(documents) - 1)])
    stay = tuple(d for i, d in enumerate(documents) if i not in drawn)
    return stay, tuple(d for i, d in enumerate(documents) if i in drawn)


def fingerprint(documents: Iterable[Document]) -> str:
    """Return the SHA-256 over ids and texts in order, in hexadecimal digits."""
    return texts_fingerprint(part for document in documents for part in (document.id, document.text))


def texts_fingerprint(texts: Iterable[str]) -> str:
    """Return the SHA-256 over texts and their lengths in order, in hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def has_surrogates(text: str) -> bool:
    """Return True if a text holds half of a surrogate pair, which UTF-8 cannot encode."""
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def bundled_notice() -> str:
    """Return the licence notice of the bundled corpus."""
    return (resources.files("memlm.data") / "corpora" / "NOTICE.txt").read_text(encoding="utf-8")


PART: Final = 2**17
"""The greatest number of characters in a part."""
_BYTES: Final = 2**20
"""Bytes that are read at once."""


def parts_of(stream: Iterable[str]) -> Iterator[str]:
    """Yield parts of at most PART characters, cut before the last line end or space in their second half.

    A byte-level tokenizer joins a space with the word behind it, so a cut before the space keeps the tokens. The cuts
    depend only on the text and not on the pieces in which it arrives. An empty text is one empty part.
    """
    buffer, first = "", True
    for piece in stream:
        buffer += piece
        while len(buffer) > PART:
            cut = max(buffer.rfind("\n", PART // 2, PART), buffer.rfind(" ", PART // 2, PART))
            cut = cut if cut > 0 else PART
            yield buffer[:cut]
            buffer, first = buffer[cut:], False
    if buffer or first:
        yield buffer


def stream_file(path: Path) -> Iterator[str]:
    """Yield a UTF-8 file in pieces, with every byte of it (also a byte order mark and line ends).

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    read, piece = 0, b""
    try:
        with path.open("rb") as file:
            while piece := file.read(_BYTES):
                yield decoder.decode(piece)
                read += len(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        # the decoder may have held back bytes of the piece before
        position = read + len(piece) - len(error.object) + error.start
        raise DataError(f"'{path}' is not UTF-8 near byte {position}; convert it first.") from error
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror or error}).") from error
