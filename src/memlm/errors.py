"""The errors of memlm.

    MemlmError
    └── UserError (also a ValueError)     the caller can correct it; the command line prints it and exits with 2
        ├── ConfigError                   a recipe, a setting, a flag
        ├── DataError                     a text source, a corpus too small to split
        ├── TokenizerError                a tokenizer that is missing or does not fit
        ├── EncoderError                  an encoder that cannot be loaded, or has no such layer
        ├── CheckpointError               a model or training checkpoint that cannot be read
        ├── RunFolderError                a run folder that exists, is missing or cannot be written
        ├── StoreError                    a store of memories that is missing, taken, full, or of another model
        │   └── DamagedStoreError         a store whose bytes are not what was written
        └── MemoryShapeError              memories of another width or rank, or not finite

Any other exception is a defect of memlm.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Any, Final, cast, get_args, get_type_hints

LONGEST_LIST: Final = 16
"""The greatest number of choices that a message lists."""
_LONGEST_WORD: Final = 200
_LONGEST_NUMBER: Final = 40
_LONGEST_VALUE: Final = 80
_COMPARED: Final = 10_000
"""Choices that a word is compared with; a comparison takes about 20 microseconds."""


class MemlmError(Exception):
    """The base class of all errors that memlm raises on purpose."""


class UserError(MemlmError, ValueError):
    """An error that the caller can correct; the message is one line that names the values and the remedy."""


class ConfigError(UserError):
    """A recipe, a setting or a flag is wrong."""


class DataError(UserError):
    """A text source cannot be read, or holds too little."""


class TokenizerError(UserError):
    """A tokenizer is missing, or does not fit the model."""


class EncoderError(UserError):
    """An encoder cannot be loaded, or has no such layer or pooling."""


class CheckpointError(UserError):
    """A model or a training checkpoint cannot be read."""


class RunFolderError(UserError):
    """A run folder exists already, is missing, or cannot be written."""


class StoreError(UserError):
    """A store of memories is missing, in use, cannot be written, or belongs to another model."""


class DamagedStoreError(StoreError):
    """The bytes of a store are not what was written."""


class MemoryShapeError(UserError):
    """Memories have another shape than the model's, or values that are not finite."""


@dataclass(frozen=True)
class Within:
    """The range of a number from outside, with both ends.

    >>> Within(0, 1).check("fidelity", 2.0)
    Traceback (most recent call last):
    memlm.errors.ConfigError: fidelity (2.0) must be a number from 0 to 1.
    """

    low: int | float
    high: int | float

    def check(self, name: str, value: object, *, whole: bool = False) -> None:
        """Check a number.

        Args:
            name: of the option or the argument.
            value: a number; anything else is refused.
            whole: the number must be whole.

        Raises:
            ConfigError: it is no number, not finite, or out of the range.
        """
        fits = not isinstance(value, bool) and isinstance(value, Integral if whole else Real)
        if not fits or not self.low <= cast(float, value) <= self.high:
            raise self._error(name, shown(value), whole=whole)

    def check_word(self, name: str, word: str, *, whole: bool = False) -> None:
        """Check a word that should be a number; the arguments and the error are those of `check`."""
        try:
            value = int(word) if whole else float(word)
        except ValueError:
            raise self._error(name, word, whole=whole) from None
        self.check(name, value, whole=whole)

    def _error(self, name: str, word: str, *, whole: bool) -> ConfigError:
        word = word if len(word) <= _LONGEST_NUMBER else f"{word[:_LONGEST_NUMBER]}..."
        kind = "whole number" if whole else "number"
        return ConfigError(f"{name} ({word}) must be a {kind} from {self.low} to {self.high}.")


def check_numbers(settings: object) -> None:
    """Check the fields of a dataclass that are annotated with `Within`; None passes where a field's type has it.

    Raises:
        ConfigError: a number is out of its range, or no number.
    """
    for name, (within, types) in _ranges_of(type(settings)).items():
        value = getattr(settings, name)
        if not (value is None and type(None) in types):
            within.check(name, value, whole=float not in types)


@cache
def _ranges_of(kind: type) -> dict[str, tuple[Within, set[Any]]]:
    """Return the ranges of a class's fields and the types that they may have."""
    found: dict[str, tuple[Within, set[Any]]] = {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        within = next((mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Within)), None)
        if within is not None:
            plain = get_args(hint)[0]
            found[name] = (within, {plain, *get_args(plain)})
    return found


def shown(value: object) -> str:
    """Return a value for a message: as Python writes it where that is short, otherwise cut, or its type."""
    try:
        word = repr(value)
    except Exception:  # an integer of thousands of digits, or an object that cannot be shown
        word = f"of type {type(value).__name__}"
    word = " ".join(word.split())
    return word if len(word) <= _LONGEST_VALUE else f"{word[:_LONGEST_VALUE]}..."


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return a sentence that suggests the nearest choice, or lists the choices, at most LONGEST_LIST of them.

    >>> did_you_mean("autoencoder-tinny", ["autoencoder-tiny", "autoencoder-small"])
    "Did you mean 'autoencoder-tiny'?"
    """
    known = sorted(choices)
    short = [choice for choice in known[:_COMPARED] if len(choice) <= _LONGEST_WORD]
    near = difflib.get_close_matches(word[:_LONGEST_WORD], short, n=1)
    if near:
        return f"Did you mean '{near[0]}'?"
    listed = short[:LONGEST_LIST] if len(known) > LONGEST_LIST else short
    others = len(known) - len(listed)
    return f"Choose from: {', '.join(listed)}{f' and {others} others' if others else ''}."


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of Python or of torch says that memory ran out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(x in said for x in ("can't allocate memory", "out of memory"))


def one_line(text: str) -> str:
    r"""Return a text on one line without characters that move the cursor or change colours of a terminal.

    >>> one_line("red:\x1b[31m\nnext")
    'red:\\x1b[31m next'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
