"""Training: settings, data, optimizer, checkpoints, run folders. Names are bound when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlm.training.config import (
        DataConfig,
        OptimizerConfig,
        PretrainedDecoder,
        RunConfig,
        Stage,
        TrainingConfig,
        make_run_config,
        merge_run,
        with_steps,
    )
    from memlm.training.loop.optimizer import MuonAdamW, build_optimizer, learning_rate_factor
    from memlm.training.loop.trainer import Interrupted, MemlmTrainer
    from memlm.training.prepare import PreparedData, prepare_data, read_split
    from memlm.training.run import train_run
    from memlm.training.run_folder import RunFolder

_WHERE = {
    **dict.fromkeys(["DataConfig", "OptimizerConfig", "PretrainedDecoder", "RunConfig", "TrainingConfig"], "config"),
    **dict.fromkeys(["Stage", "make_run_config", "merge_run", "with_steps"], "config"),
    **dict.fromkeys(["MuonAdamW", "build_optimizer", "learning_rate_factor"], "loop.optimizer"),
    **dict.fromkeys(["PreparedData", "prepare_data", "read_split"], "prepare"),
    **dict.fromkeys(["Interrupted", "MemlmTrainer"], "loop.trainer"),
    "train_run": "run",
    "RunFolder": "run_folder",
}

__all__ = [
    "DataConfig",
    "Interrupted",
    "MemlmTrainer",
    "MuonAdamW",
    "OptimizerConfig",
    "PreparedData",
    "PretrainedDecoder",
    "RunConfig",
    "RunFolder",
    "Stage",
    "TrainingConfig",
    "build_optimizer",
    "learning_rate_factor",
    "make_run_config",
    "merge_run",
    "prepare_data",
    "read_split",
    "train_run",
    "with_steps",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
