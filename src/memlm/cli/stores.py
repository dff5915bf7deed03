"""What the commands on stores share: which model reads a store, and ids of files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memlm.errors import StoreError

if TYPE_CHECKING:
    from memlm.store import TextStore


def open_texts(folder: str, model: str | None, *, retrieval: bool = False) -> TextStore:
    """A store for reading, with the model it was made with unless another folder is given.

    Raises:
        StoreError: no store, or its model is not where it was.
    """
    from memlm.store import TextStore, read_header

    header = read_header(Path(folder))
    encoder = header.retrieval_model if retrieval else None
    return TextStore.open(folder, model or model_of(folder), retrieval=encoder)


def one_line(text: str) -> str:
    """A text for the terminal: spaces as one, and nothing in it that would move a cursor or change a colour."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def model_of(folder: str) -> str:
    """Where the model of a store lies.

    Raises:
        StoreError: it is not there any more.
    """
    from memlm.store import read_header

    hint = read_header(Path(folder)).model
    if hint is None or not Path(hint).is_dir():
        raise StoreError(f"the model of '{folder}' is not at '{hint}'; say where it is (--model RUN).")
    return hint
