"""Verdicts of the readings of a vector: something was found, nothing was found, or the reading itself did not work.

A verdict answers two questions apart. *What can be read?* A reading counts as a find where its interval lies above
those of all controls without the text's vector: blank vectors (or a guess that needs no vector) and other texts'
vectors. *Because of training?* Where it also lies above the reading of an untrained encoder's vectors, training put
more there than random weights pass on. Without a find, nothing was found only if the same reading works on vectors that
are known to hold their text in a form that it can read; otherwise the measurement is inconclusive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from memlm.measurement import Measurement

Status = Literal["found", "nothing found", "inconclusive"]
_LANGUAGE = 0.05
"""Share of the bits of token frequencies that a decoder must save without a vector to have learnt to write at all."""
_FEW = 500
"""Training passages below which the silence of a reading means nothing."""


class Kind(NamedTuple):
    """A kind of reading.

    Attributes:
        name: its measurement.
        label: of it in a figure.
        what: what it reads, behind a share.
        guess: its control without a vector.
        positive: its control of vectors that it can read.
        works: share that it must read of those for its silence to mean something.
    """

    name: str
    label: str
    what: str
    guess: str
    positive: str
    works: float = 0.5


_BITS = "usable_share"
KINDS = (
    Kind(_BITS, "usable information", "of the information", "shuffled_memory", "word_sums", 0.1),
    Kind("token_accuracy", "tokens, all at once", "of the tokens", "unigram", "autoencoder"),
    Kind("position_accuracy", "tokens, linear reading", "of the tokens, by a linear reading", "unigram", "autoencoder"),
    Kind("word_f1", "content words, F1", "of the content words (F1)", "guess", "word_sums"),
    Kind(
        "written_token_f1",
        "written text, F1 of tokens",
        "of the tokens of a text written from it (F1)",
        "shuffled_memory",
        "word_sums",
        0.25,
    ),
)
SERIES = ("this vector", "closest control", "untrained encoder", "positive control")
"""Names of what a reading is made of: its vectors, and those that it is compared with."""
_CONTROL_WORDS = {
    "unigram": "guessing the commonest token",
    "guess": "guessing common words",
    "blank_memory": "a blank vector",
    "shuffled_memory": "another text's vector",
}


@dataclass(frozen=True)
class Reading:
    """The finding of one kind of reading.

    Attributes:
        kind: of the reading.
        status: what can be read.
        reason: why it is inconclusive; empty otherwise.
        value: share of what is read.
        control: name and share of the control without the text's vector that comes closest.
        detail: the reading in bits, where it has some.
        untrained: share of what is read from an untrained encoder's vectors, None where that was not measured.
        from_training: True where more is read than from an untrained encoder's vectors, with intervals apart.
        series: the measurements of the vector, of its closest control without the text, of an untrained encoder and of
            the positive control, as far as they were made.
    """

    kind: Kind
    status: Status
    reason: str
    value: float
    control: tuple[str, float]
    detail: str
    untrained: float | None
    from_training: bool
    series: Mapping[str, Measurement]

    def __str__(self) -> str:
        # a share stands only where it was found, so that nobody takes another one for what a vector gives away
        if self.status == "found":
            return f"{self.read}; {self.beside}: found{self.because}"
        if self.status == "inconclusive":
            return f"nothing can be said {self.kind.what}: inconclusive ({self.reason})"
        return f"{_CONTROL_WORDS[self.control[0]]} gives as much {self.kind.what}: nothing found"

    @property
    def read(self) -> str:
        """The share of what is read, in words."""
        return f"{percent(self.value)} {self.kind.what}{self.detail}"

    @property
    def beside(self) -> str:
        """The closest control and its share, in words."""
        name, share = self.control
        return f"{_CONTROL_WORDS[name]} gives {percent(share)}"

    @property
    def because(self) -> str:
        """The share of training in what is read, in words; empty where nothing is read or that was not measured."""
        if self.untrained is None or self.status != "found":
            return ""
        more = "training adds to what can be read" if self.from_training else "this is no effect of training"
        return f"; an untrained encoder's vector gives {percent(self.untrained)}, so {more}"

    @property
    def margin(self) -> float:
        """The share of what the closest control leaves open that was read."""
        return (self.value - self.control[1]) / max(1e-9, 1 - self.control[1])


def readings(measurements: Sequence[Measurement], split: str, passages: int) -> list[Reading]:
    """Return the readings of a split: what was found first, usable information before the others, the clearest first.

    Args:
        measurements: of a measurement of retention.
        split: name of the passages.
        passages: number of training passages.
    """
    found = {m.name: m for m in measurements if m.split == split}
    made = [_reading(kind, found, passages) for kind in KINDS if kind.name in found]
    # bits say most, and are comparable between encoders
    return sorted(made, key=lambda found: (found.status != "found", found.kind.name != _BITS, -found.margin))


def _reading(kind: Kind, found: Mapping[str, Measurement], passages: int) -> Reading:
    value, controls = found[kind.name], dict(_controls(kind, found))
    name, closest = max(controls.items(), key=lambda item: item[1].value)
    status, reason = _status(value, controls, found.get(f"{kind.name}/{kind.positive}"), passages, kind.works)
    language = found.get(f"{kind.name}/language")
    if language is not None and (language.low is None or language.low < _LANGUAGE):
        saved = percent(language.value)
        status, reason = "inconclusive", f"the decoder did not learn to write: it saves {saved} of the bits by itself"
    untrained, positive = (found.get(f"{kind.name}/{control}") for control in ("untrained", kind.positive))
    series = zip(SERIES, (value, closest, untrained, positive), strict=True)
    return Reading(
        kind,
        status,
        reason,
        value.value,
        (name, closest.value),
        _in_bits(found) if kind.name == _BITS else "",
        None if untrained is None else untrained.value,
        untrained is not None and above(value, [untrained]),
        {name: measured for name, measured in series if measured is not None},
    )


def _in_bits(found: Mapping[str, Measurement]) -> str:
    """Return usable information beside the bits without a vector."""
    bits, plain = (found[name].value for name in ("usable_bits", "bits_without_vector"))
    return f" ({bits:.1f} of {plain:.1f} bits)"


def _controls(kind: Kind, found: Mapping[str, Measurement]) -> Iterator[tuple[str, Measurement]]:
    names = {name: f"{kind.name}/{name}" for name in _CONTROL_WORDS}
    names |= {"unigram": "token_accuracy/unigram"} if kind.guess == "unigram" else {}
    yield from ((name, found[measured]) for name, measured in names.items() if measured in found)


def above(value: Measurement, controls: Sequence[Measurement]) -> bool:
    """Return whether an interval lies above all others; False where one of them is missing."""
    low, ends = value.low, [control.high for control in controls]
    return low is not None and all(end is not None and low > end for end in ends)


def _status(
    value: Measurement, controls: Mapping[str, Measurement], positive: Measurement | None, passages: int, works: float
) -> tuple[Status, str]:
    if value.low is None or any(control.high is None for control in controls.values()):
        return "inconclusive", value.interval_note or "no interval"
    if above(value, list(controls.values())) and value.low > 0:
        return "found", ""
    if positive is not None and positive.value < works:
        read = percent(positive.value)
        return "inconclusive", f"the probe did not learn: it reads {read} of vectors that hold their text"
    if passages < _FEW:
        return "inconclusive", f"{passages} training passages are too few"
    if positive is None:
        return "inconclusive", "no positive control was measured"
    return "nothing found", ""


def headline(found: Sequence[Reading], *, encoder: str, numbers: int, length: int, passages: int) -> str:
    """Return the verdict in one or two sentences: what can be read, and whether training put it there."""
    vector = f"one {numbers}-number vector of {encoder}"
    first = found[0]
    if first.status == "found":
        return (
            f"At least {first.read} of a {length}-token passage can be read from {vector}; "
            f"{first.beside}{first.because}."
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
