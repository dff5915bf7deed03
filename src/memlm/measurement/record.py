"""One measured figure, with everything needed to read it rightly."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from memlm.errors import DataError


class Baseline(BaseModel):
    """What a figure is measured against."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float
    unit: str


class Measurement(BaseModel):
    """A figure with unit, interval, denominator, baseline, the text it was taken on and how.

    Attributes:
        name: what was measured, e.g. "token_accuracy".
        value: the figure, in `unit`; shares are fractions between 0 and 1.
        unit: e.g. "fraction", "nats/token", "bits/byte".
        low, high: 95 % interval, None where there is none to give.
        count: how many things the figure is a mean over (tokens, chunks).
        baseline: what it is relative to, None where it stands alone.
        split: "held_out", "train", "out_of_distribution", "random_tokens".
        protocol: how the prediction was made, e.g. "one_pass" (all positions at once, no token shown).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: FiniteFloat
    unit: str
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    count: int
    baseline: Baseline | None = None
    split: str
    protocol: str

    def to_json_line(self) -> str:
        """One line of JSON, without the line's end."""
        return self.model_dump_json()

    @classmethod
    def from_json_line(cls, line: str) -> Measurement:
        """The measurement that a line holds.

        Raises:
            DataError: not such a line.
        """
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "the line"
            raise DataError(
                f"not a measurement ({place}: {problem['msg']}); the file was not written by memlm."
            ) from error
