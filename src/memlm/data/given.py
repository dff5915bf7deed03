"""Checks of what callers give: texts, one text, names, token ids, folders and vectors; the one place for all of them.

A bare string is one text everywhere. What does not fit raises a DataError with one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from memlm.data.corpus import has_surrogates
from memlm.errors import DataError, MemoryShapeError, shown

_SHOWN = 80
_LISTS = ("tolist", "to_list")
"""Methods by which arrays and columns of tables give a list."""


def list_of_texts(texts: object, *, name: str = "texts") -> list[str]:
    """Return texts as a list; a bare string is one text.

    Args:
        texts: a string, a list or tuple of strings, a NumPy array of one dimension, or a column of a table (a Series).
        name: of the argument.

    Raises:
        DataError: it is something else, or an entry is no text.
    """
    found = _listed(texts)
    if found is None:
        raise DataError(f"{name} ({_shown(texts)}) must be a string, or a list of strings.")
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise DataError(f"{name}[{number}] ({_shown(text)}) must be a string.")
        if has_surrogates(text):
            raise DataError(f"{name}[{number}] holds half of a surrogate pair; decode it with errors='replace'.")
    return cast("list[str]", found)


def _listed(given: object) -> list[Any] | None:
    """Return the entries of a list, a tuple, an array or a column, or None."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list | tuple):
        return list(cast("Sequence[Any]", given))
    method = next((found for name in _LISTS if callable(found := getattr(given, name, None))), None)
    found = None if method is None or isinstance(given, type) else method()
    if isinstance(found, str):  # an array without dimensions
        return [found]
    return cast("list[Any]", found) if isinstance(found, list) else None


def one_text(text: object, *, name: str = "text", empty: bool = True) -> str:
    """Return a text.

    Args:
        text: a string.
        name: of the argument.
        empty: whether it may be empty.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(text, str):
        raise DataError(f"{name} ({_shown(text)}) must be a string.")
    if has_surrogates(text):
        raise DataError(f"{name} holds half of a surrogate pair; decode it with errors='replace'.")
    if not empty and not text.strip():
        raise DataError(f"{name} is empty; give at least one character.")
    return str(text)


def text_pieces(text: object, *, name: str = "text") -> Iterator[str]:
    """Yield a text in pieces.

    Args:
        text: a string, or an iterable of strings such as an open file.
        name: of the argument.

    Raises:
        DataError: it is something else, or a piece is no text.
    """
    if not isinstance(text, str) and (not isinstance(text, Iterable) or isinstance(text, dict | set | bytes | Tensor)):
        raise DataError(f"{name} ({_shown(text)}) must be a string, or an iterable of strings such as an open file.")
    for piece in [text] if isinstance(text, str) else cast("Iterable[object]", text):
        if not isinstance(piece, str):
            raise DataError(f"a piece of {name} ({_shown(piece)}) must be a string.")
        yield piece  # halves of surrogate pairs are refused where the text is encoded


def list_of_tokens(tokens: object, *, words: int, name: str = "tokens") -> list[int]:
    """Return token ids as a list.

    Args:
        tokens: a list, a tuple, or a tensor or array of one dimension.
        words: the number of tokens that the model knows.
        name: of the argument.

    Raises:
        DataError: it is something else, or an id is none of the model's.
    """
    found = None if isinstance(tokens, str) else _listed(tokens)
    if found is None:
        raise DataError(f"{name} ({_shown(tokens)}) must be a list of token ids.")
    for number, token in enumerate(found):
        if isinstance(token, bool) or not hasattr(token, "__index__"):
            raise DataError(f"{name}[{number}] ({_shown(token)}) must be a token id, a whole number.")
        if not 0 <= int(token) < words:
            raise DataError(f"{name}[{number}] ({_shown(token)}) is none of the model's {words} tokens.")
    return [int(token) for token in found]


def folder_of(path: object, *, name: str = "folder") -> Path:
    """Return a path.

    Raises:
        DataError: it is neither a string nor a path, empty, or holds a NUL.
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(cast(Any, path)), str):
        raise DataError(f"{name} ({_shown(path)}) must be a string or a path.")
    text = str(os.fspath(cast("os.PathLike[str]", path)))
    if not text.strip() or "\0" in text:
        raise DataError(f"{name} ({text[:_SHOWN]!r}) is {'empty' if not text.strip() else 'no path'}; name a folder.")
    return Path(text)


def check_kind(value: object, kind: type, *, name: str, instead: str) -> None:
    """Check that an argument is of a class.

    Args:
        value: the argument.
        kind: the class.
        name: of the argument.
        instead: what to give.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, kind):
        raise DataError(f"{name} ({_shown(value)}) must be a {kind.__name__}; give {instead}.")


def finite_tensor(vectors: object, *, name: str) -> Tensor:
    """Return numbers as a tensor of a floating-point type.

    Args:
        vectors: a tensor, an array, or nested lists of numbers.
        name: of the argument, in the plural.

    Raises:
        MemoryShapeError: they are no real numbers, or not finite.
    """
    try:
        found = vectors if isinstance(vectors, Tensor) else torch.as_tensor(vectors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MemoryShapeError(f"{name} ({_shown(vectors)}) must be a tensor of numbers.") from error
    if found.is_complex() or found.dtype is torch.bool:
        raise MemoryShapeError(f"{name} of type {str(found.dtype).removeprefix('torch.')} must be real numbers.")
    found = found if found.is_floating_point() else found.float()
    if bad := int((~torch.isfinite(found)).sum()):
        raise MemoryShapeError(f"{bad} of {found.numel()} numbers in the {name} are NaN or infinite; make them anew.")
    return found


def _shown(value: object) -> str:
    """Return a value, or where it is long or has many parts its type, for a message."""
    kind = f"of type {type(value).__name__}"
    return f"{shown(value)}, {kind}" if isinstance(value, bool | int | float | bytes | str) else kind
