"""What an evaluation gives, whatever was evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from memlm.errors import DataError
from memlm.evaluation.cost import Cost
from memlm.evaluation.passages import Passage
from memlm.measurement import Measurement

_PRINT = "fingerprint_"
Report = Callable[[str], None]
"""Told what is being measured."""


@dataclass(frozen=True)
class Evaluation:
    """Measurements, and what a report draws beside them."""

    measurements: list[Measurement]
    accuracy_by_position: list[float]
    passages: list[Passage]
    costs: list[Cost]


def check_text_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], source: str) -> None:
    """Held-out text must be what it was when the run was trained."""
    if any(now[_PRINT + half] != before[_PRINT + half] for half in ("held_out", "train")):
        raise DataError(f"'{source}' has changed since the run was trained; measure it by name with --text.")
