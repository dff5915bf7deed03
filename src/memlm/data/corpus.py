"""Documents: what a reader left out, their split into three parts, their fingerprint, and long texts in parts."""

from __future__ import annotations

import codecs
import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from memlm.errors import DataError


@dataclass(frozen=True)
class Document:
    """A text with an id that is unique in its corpus."""

    id: str
    text: str


class UniqueIds:
    """Ids that are given once; `repeated` counts those that were given before and got a number."""

    def __init__(self) -> None:
        self.repeated = 0
        self._times: dict[str, int] = {}

    def of(self, name: str) -> str:
        """Return the id, with a number where it was given before."""
        if name not in self._times:
            self._times[name] = 1
            return name
        self.repeated += 1
        self._times[name] += 1
        while (other := f"{name}#{self._times[name]}") in self._times:
            self._times[name] += 1
        self._times[other] = 1
        return other


class LeftOut:
    """Items that a reader left out, counted by reason.

    Args:
        strict: raise the first error of an item that cannot be read, instead of counting it.
    """

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.ids = UniqueIds()
        self._first: dict[bool, DataError] = {}

    def add(self, kind: str, error: DataError, *, expected: bool = False) -> None:
        """Count one item.

        Args:
            kind: a word for the count, such as "unreadable".
            error: what is wrong with the item.
            expected: sources hold such items as a rule (hidden folders, empty files), so that strict readers pass, too.

        Raises:
            DataError: `error`, where the reader is strict and the item is not expected.
        """
        if self.strict and not expected:
            raise error
        self.counts[kind] += 1
        self._first.setdefault(expected, error)

    @property
    def reason(self) -> DataError | None:
        """The first error, if possible of an item that cannot be read."""
        return self._first.get(False) or self._first.get(True)

    def sentence(self, source: str, *, read: int) -> str:
        """Return what was left out of a source in one line, or "" if everything was read.

        Args:
            source: the name of the source.
            read: the number of documents that were read.
        """
        parts: list[str] = []
        if total := self.counts.total():
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
            reason = f". The first: {str(self._first[False]).rstrip('.')}" if False in self._first else ""
            parts.append(f"left out {total} of {total + read} items of '{source}': {kinds}{reason}.")
        if self.ids.repeated:
            parts.append(f"{self.ids.repeated} ids of '{source}' repeat and got a number.")
        return " ".join(parts)


@dataclass(frozen=True)
class TrainValTestSplit:
    """Three lists of whole documents; no document is in two of them."""

    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    held_out: tuple[Document, ...]


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
