"""Records of an evaluation: figures with what is needed to read them, passages, costs, and journals of figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from memlm.errors import DataError
from memlm.files import append_text


class _OneLine(type(BaseModel)):
    """Raises a DataError of one line where a record is made of wrong values."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            [problem, *_] = error.errors()
            raise DataError(f"{cls.__name__}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}.") from error


class Baseline(BaseModel, metaclass=_OneLine):
    """A reference value that a figure is compared with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float
    unit: str


class Measurement(BaseModel, metaclass=_OneLine):
    """A figure with its unit, interval, denominator and baseline, and the text and protocol it was measured with.

    Attributes:
        name: the measured quantity, e.g. "token_accuracy".
        value: the figure, in `unit`; shares are fractions between 0 and 1.
        unit: e.g. "fraction", "nats/token", "bits/byte".
        low, high: 95 % interval over documents or pieces of documents, None where there are too few.
        exact_low, exact_high: exact binomial 95 % interval of a share, which takes tokens or chunks as independent.
        interval_note: the units that `low` and `high` resample, or the reason why there is no interval.
        count: the number of tokens or chunks that the figure is a mean over.
        baseline: the reference value, None where the figure stands alone.
        split: "held_out", "train", "out_of_distribution", "random_tokens", or the name of another text.
        protocol: how predictions were made, e.g. "one_pass" (all positions at once, no token shown).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: FiniteFloat
    unit: str
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    exact_low: FiniteFloat | None = None
    exact_high: FiniteFloat | None = None
    interval_note: str = ""
    count: int
    baseline: Baseline | None = None
    split: str
    protocol: str

    def to_json_line(self) -> str:
        """Return the measurement as one line of JSON, without a line end."""
        return self.model_dump_json()

    @classmethod
    def from_json_line(cls, line: str) -> Measurement:
        """Read a measurement from a line of JSON.

        Raises:
            DataError: the line is not a measurement.
        """
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the line"
            raise DataError(
                f"not a measurement ({place}: {problem['msg']}); the file was not written by memlm."
            ) from error


@dataclass(frozen=True)
class Passage:
    """A text beside the text that was decoded from its memory.

    Attributes:
        name: the document that the text comes from.
        pieces: (original, returned, equal) for each token or group of tokens.
    """

    name: str
    pieces: list[tuple[str, str, bool]]

    @property
    def verdict(self) -> str:
        """The number of wrong pieces, in words."""
        wrong = sum(not equal for _, _, equal in self.pieces)
        return "every token came back" if not wrong else f"{wrong} of {len(self.pieces)} pieces wrong"


@dataclass(frozen=True)
class SavedPassage:
    """A text and what memories of the text before it saved at each token.

    Attributes:
        name: the document that the text comes from.
        pieces: (text, nats) for each token or group of tokens: its loss without memories less its loss behind them.
    """

    name: str
    pieces: list[tuple[str, float]]

    @property
    def total(self) -> float:
        """The nats saved on the whole text."""
        return sum(nats for _, nats in self.pieces)


@dataclass(frozen=True)
class PartRead:
    """Consecutive characters of a document that a decoder read in one way.

    Attributes:
        document: id of the document.
        start: the number of characters of the document before the part.
        text: its characters.
        tokens_per_memory: tokens for each memory; None where the part was not read as memories.
        shown: True where the part stood in the prompt as tokens.
    """

    document: str
    start: int
    text: str
    tokens_per_memory: float | None
    shown: bool

    @property
    def how(self) -> str:
        """How the part was read, in words."""
        if self.tokens_per_memory is None:
            return "as tokens alone" if self.shown else "left out"
        return f"{self.tokens_per_memory:.1f} tokens per memory" + (", and as tokens" if self.shown else "")


@dataclass(frozen=True)
class Cost:
    """Bits per byte of text that a way of storing the text takes."""

    name: str
    bits_per_byte: float


def to_json_lines(measurements: Iterable[Measurement]) -> str:
    """Return measurements as JSON lines, each with a line end."""
    return "".join(m.to_json_line() + "\n" for m in measurements)


def append_journal(path: str | Path, measurements: Iterable[Measurement]) -> None:
    """Append measurements to a file of JSON lines, all in one write that is on the disk before this returns."""
    append_text(Path(path), to_json_lines(measurements))


def read_journal(path: str | Path) -> list[Measurement]:
    """Return the measurements of a file in the order in which they were appended; lines cut by a crash are left out.

    Raises:
        DataError: there is no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no measurements at '{path}'; make some with `memlm evaluate {file.parent}`.")
    found: list[Measurement] = []
    for line in file.read_bytes().split(b"\n"):
        # a crash may cut a line anywhere, also inside a character
        with contextlib.suppress(DataError):
            found.append(Measurement.from_json_line(line.decode("utf-8", "replace")))
    return found
