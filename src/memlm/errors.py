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
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

LONGEST_LIST: Final = 16
"""The greatest number of choices that a message lists."""
_LONGEST_WORD: Final = 200
_LONGEST_NUMBER: Final = 40
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

    def check(self, name: str, value: int | float | str, *, whole: bool = False) -> None:
        """Check a number, or a word that should be one.

        Args:
            name: of the option or the argument.
            value: a number, or its text.
            whole: the number must be whole.

        Raises:
            ConfigError: it is no number, not finite, or out of the range.
        """
        try:
            value = number = value if not isinstance(value, str) else int(value) if whole else float(value)
        except ValueError:
            number = math.nan
        if not self.low <= number <= self.high:
            shown = str(value)[:_LONGEST_NUMBER] + ("..." if len(str(value)) > _LONGEST_NUMBER else "")
            kind = "whole number" if whole else "number"
            raise ConfigError(f"{name} ({shown}) must be a {kind} from {self.low} to {self.high}.")


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
    shown = short[:LONGEST_LIST] if len(known) > LONGEST_LIST else short
    others = len(known) - len(shown)
    return f"Choose from: {', '.join(shown)}{f' and {others} others' if others else ''}."


def one_line(text: str) -> str:
    r"""Return a text on one line without characters that move the cursor or change colours of a terminal.

    >>> one_line("red:\x1b[31m\nnext")
    'red:\\x1b[31m next'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
