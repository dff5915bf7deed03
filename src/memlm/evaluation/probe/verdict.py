"""Verdicts of the readings of a vector: something was found, nothing was found, or the reading itself did not work.

A reading counts as a find where its interval lies above those of all controls: blank vectors (or a guess that needs no
vector), other texts' vectors, and the vectors of an untrained encoder. Without a find, nothing was found only if the
same reading works on vectors that are known to hold their text; otherwise the measurement is inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from memlm.measurement import Measurement

Status = Literal["found", "nothing found", "inconclusive"]
_WORKS = 0.5
"""Share that a reading must find in the positive control's vectors for its silence to mean something."""
_FEW = 500
"""Training passages below which the silence of a reading means nothing."""


class Kind(NamedTuple):
    """A kind of reading: the name of its measurement, what it reads, and what it is without a vector."""

    name: str
    what: str
    guess: str


KINDS = (
    Kind("token_accuracy", "of the tokens", "unigram"),
    Kind("position_accuracy", "of the tokens, by a linear reading", "unigram"),
    Kind("word_f1", "of the content words (F1)", "guess"),
)
_CONTROL_WORDS = {
    "unigram": "guessing the commonest token",
    "guess": "guessing common words",
    "blank_memory": "a blank vector",
    "shuffled_memory": "another text's vector",
    "untrained": "an untrained encoder",
}
_CONTROLS = ("blank_memory", "shuffled_memory", "untrained")


@dataclass(frozen=True)
class Reading:
    """The finding of one kind of reading.

    Attributes:
        kind: of the reading.
        status: what it says.
        reason: why it is inconclusive; empty otherwise.
        value: share of what is read.
        control: name and share of the control that comes closest.
    """

    kind: Kind
    status: Status
    reason: str
    value: float
    control: tuple[str, float]

    def __str__(self) -> str:
        name, share = self.control
        reason = f" ({self.reason})" if self.reason else ""
        beside = f"{percent(self.value)} {self.kind.what}; {_CONTROL_WORDS[name]} gives {percent(share)}"
        return f"{beside}: {self.status}{reason}"

    @property
    def margin(self) -> float:
        """The share of what the closest control leaves open that was read."""
        return (self.value - self.control[1]) / max(1e-9, 1 - self.control[1])


def readings(measurements: Sequence[Measurement], split: str, passages: int) -> list[Reading]:
    """Return the readings of a split, the clearest first.

    Args:
        measurements: of a measurement of retention.
        split: name of the passages.
        passages: number of training passages.
    """
    found = {m.name: m for m in measurements if m.split == split}
    made = [_reading(kind, found, passages) for kind in KINDS if kind.name in found]
    return sorted(made, key=lambda reading: (reading.status != "found", -reading.margin))


def _reading(kind: Kind, found: Mapping[str, Measurement], passages: int) -> Reading:
    value, controls = found[kind.name], dict(_controls(kind, found))
    name, closest = max(controls.items(), key=lambda item: item[1].value)
    status, reason = _status(value, controls, found.get(f"{kind.name}/autoencoder"), passages)
    return Reading(kind, status, reason, value.value, (name, closest.value))


def _controls(kind: Kind, found: Mapping[str, Measurement]) -> Iterator[tuple[str, Measurement]]:
    names = {name: f"{kind.name}/{name}" for name in (kind.guess, *_CONTROLS)}
    names |= {"unigram": "token_accuracy/unigram"} if kind.guess == "unigram" else {}
    yield from ((name, found[measured]) for name, measured in names.items() if measured in found)


def _status(
    value: Measurement, controls: Mapping[str, Measurement], positive: Measurement | None, passages: int
) -> tuple[Status, str]:
    ends = [control.high for control in controls.values()]
    if value.low is None or any(end is None for end in ends):
        return "inconclusive", value.interval_note or "no interval"
    if value.low > max(end for end in ends if end is not None):
        return "found", ""
    if value.low > max(control.high or 0.0 for name, control in controls.items() if name != "untrained"):
        return "inconclusive", "an untrained encoder's vectors give as much"
    if positive is not None and positive.value < _WORKS:
        read = percent(positive.value)
        return "inconclusive", f"the probe did not learn: it reads {read} of vectors that hold their text"
    if passages < _FEW:
        return "inconclusive", f"{passages} training passages are too few"
    if positive is None:
        return "inconclusive", "no positive control was measured"
    return "nothing found", ""


def headline(found: Sequence[Reading], *, encoder: str, numbers: int, length: int, passages: int) -> str:
    """Return the verdict in one sentence."""
    vector = f"one {numbers}-number vector of {encoder}"
    first = found[0]
    if first.status == "found":
        name, share = first.control
        return (
            f"At least {percent(first.value)} {first.kind.what} of a {length}-token passage can be read from {vector}; "
            f"{_CONTROL_WORDS[name]} gives {percent(share)}."
        )
    unsure = [reading for reading in found if reading.status == "inconclusive"]
    if not unsure:
        return f"Nothing was found: {vector} gives no more than {_CONTROL_WORDS[first.control[0]]}."
    return (
        f"Inconclusive: nothing can be said of {vector} ({unsure[0].reason}; {passages} training passages); try more "
        "passages, more steps or a larger probe."
    )


def percent(share: float) -> str:
    """Return a share in percent with one digit."""
    return f"{100 * share:.1f} %"
