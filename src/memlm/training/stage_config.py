"""Settings of a stage: one part of a run's training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from memlm.errors import ConfigError
from memlm.objectives import LinearSchedule, Mixture, ObjectiveName
from memlm.training.schema import Count, Settings, Share

Weights = dict[ObjectiveName, Annotated[float, Field(ge=0)] | LinearSchedule]


class Stage(Settings):
    """One part of the training: its objectives, and the weights that it may change."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    """Name of the stage's folder and of its lines in the log."""
    objectives: Weights
    """Weight of each objective, a number or a linear schedule."""
    steps: Count | None = None
    """Number of updates; training.steps by default."""
    train: Literal["all", "decoder", "readout"] = "all"
    """Weights that may change: all except a frozen encoder's, decoder and readout, or the readout with positions and
    the head for blanks (a warm-up)."""
    start: Literal["previous", "fresh"] = "previous"
    """Decoder and readout continue from the previous stage, or start from new weights."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate of this stage; the run's by default."""
    decay_share: Share | None = None
    """Share of the stage's steps in which the learning rate falls to zero; the run's by default."""
    row_share: dict[ObjectiveName, Annotated[float, Field(gt=0, le=1)] | LinearSchedule] = Field(default_factory=dict)
    """Share of the rows that an objective is computed on (every n-th row, n a whole number), which maintains what has
    been learned at a part of its cost."""
    distances: Literal["half", "every"] = "half"
    """Chunks between a token and the blank that asks for it in blank_copy: half of all, or each number in turn."""
    max_targets: Count | LinearSchedule | None = None
    """Number of leading tokens of each chunk that blank_copy asks for, which may grow over the stage (LOG.md); all by
    default."""
    random_share: Share | LinearSchedule = 0.0
    """Share of blank_copy's tokens that are replaced by random ones: memories then keep facts that no text implies."""
    dropout_share: Share = 0.5
    """Share of the second half's tokens that token_dropout hides."""

    @property
    def mixture(self) -> Mixture:
        """Objectives with their weights."""
        return Mixture({str(name): weight for name, weight in self.objectives.items()})

    @property
    def draws_random(self) -> bool:
        """True if any of blank_copy's tokens are replaced by random ones."""
        share = self.random_share
        return max(share.start, share.end) > 0 if isinstance(share, LinearSchedule) else share > 0

    @property
    def changes_chunks(self) -> ObjectiveName | None:
        """Name of an objective whose chunks differ from the text's, so that cached memories do not fit; else None."""
        changed: dict[ObjectiveName, bool] = {"token_dropout": True, "blank_copy": self.draws_random}
        return next((name for name in self.objectives if changed.get(name)), None)

    def random_share_at(self, step: int) -> float:
        """Return the share of random tokens in blank_copy at a step of the stage, the first being 0."""
        share = self.random_share
        return share.at(step) if isinstance(share, LinearSchedule) else share

    def max_targets_at(self, step: int) -> int | None:
        """Return how many tokens of each chunk blank_copy asks for at a step of the stage; None for all."""
        targets = self.max_targets
        return max(1, round(targets.at(step))) if isinstance(targets, LinearSchedule) else targets

    def row_interval_at(self, objective: str, step: int) -> int:
        """Return n where an objective is computed on every n-th row at a step of the stage."""
        share = {str(name): value for name, value in self.row_share.items()}.get(objective, 1.0)
        return round(1 / (share.at(step) if isinstance(share, LinearSchedule) else share))

    @model_validator(mode="after")
    def _fits(self) -> Stage:
        if not self.objectives:
            raise ConfigError(f"stage '{self.name}' has no objectives; name at least one, such as next_token.")
        self._check_row_share()
        share = self.random_share
        if isinstance(share, LinearSchedule) and max(share.start, share.end) > 1:
            raise ConfigError(
                f"random_share of stage '{self.name}' (from {share.start} to {share.end}) must be between 0 and 1."
            )
        for end in ("start", "end"):
            if not sum(getattr(w, end) if isinstance(w, LinearSchedule) else w for w in self.objectives.values()) > 0:
                raise ConfigError(
                    f"the weights of stage '{self.name}' sum to 0 at its {end}; at least one must be above 0."
                )
        return self

    def _check_row_share(self) -> None:
        for name, share in self.row_share.items():
            ends = (share.start, share.end) if isinstance(share, LinearSchedule) else (share, share)
            if not 0 < min(ends) <= max(ends) <= 1:
                raise ConfigError(
                    f"row_share of {name} in stage '{self.name}' (from {ends[0]} to {ends[1]}) must lie above 0 and "
                    "not above 1."
                )
            if name not in self.objectives or name == "reconstruction":
                what = "which reads the others' rows" if name == "reconstruction" else "which it does not ask for"
                raise ConfigError(f"row_share of stage '{self.name}' names {name}, {what}; leave it out.")
        if self.row_share and self.objectives.keys() - {"reconstruction"} <= self.row_share.keys():
            raise ConfigError(
                f"row_share of stage '{self.name}' leaves rows that nothing is asked of; give one objective all."
            )
