"""What is probed, and how thoroughly."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from memlm.errors import ConfigError
from memlm.evaluation.probe.training import ProbeTraining
from memlm.training.config import Count, Settings


class ProbeSettings(Settings):
    """What is probed and how thoroughly."""

    lengths: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (32,)
    """Tokens per passage; one capacity point each."""
    passages: Annotated[int, Field(ge=8)] = 16384
    """Training passages at most."""
    held_out_passages: Annotated[int, Field(ge=1)] = 1024
    """Held-out passages at most; half as many for early stopping."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of documents held out, and again for early stopping."""
    vocabulary: Literal["encoder", "bpe"] = "encoder"
    """Tokens that are asked for: the encoder's own, or a BPE of 1,024 trained on the training documents."""
    bits: Literal["none", "fp16", "int8", "int4", "binary"] = "none"
    """Round the vectors before probing."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Probes trained, their figures averaged."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the split, the passages and the first probe."""
    controls: bool = True
    """Train the controls too."""
    audit: bool = False
    """Also probe the vectors as fp16, int8 and binary, and count names and numbers that come back."""
    control_steps: Count = 400
    """Updates of the positive control's autoencoder."""
    probe: ProbeTraining = ProbeTraining()
    """The probe decoder."""


def check_lengths(text: str) -> tuple[int, ...]:
    """'16,32,64' as numbers.

    Raises:
        ConfigError: something else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--lengths ({text!r}) must be whole numbers with commas, as in 16,32,64.") from error
