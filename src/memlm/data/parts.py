"""Texts of any length as parts that fit in memory; the same text is always cut at the same places."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from memlm.errors import DataError

PART: Final = 2**17
"""Characters of a part, at most."""
_BYTES: Final = 2**20


def parts_of(stream: Iterable[str]) -> Iterator[str]:
    """Parts of at most PART characters, cut before the last line end or space in their second half where one is.

    A byte-level tokenizer keeps a space with the word behind it. Nothing is looked at but the text itself, so that it
    does not matter in which pieces it comes. An empty text is one empty part.
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
    """A UTF-8 file in pieces, every byte of it (a byte order mark and line ends too).

    Raises:
        DataError: missing, or not UTF-8.
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
        # what the decoder held back from the piece before counts
        place = read + len(piece) - len(error.object) + error.start
        raise DataError(f"'{path}' is not UTF-8 near byte {place}; convert it first.") from error
    except OSError as error:
        raise DataError(f"cannot read '{path}' ({error.strerror or error}).") from error
