"""Training: settings, data, optimizer, checkpoints, run folders.

Names are bound when first used: the command line reads settings alone, and must not wait for torch to do so.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memlm.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
    from memlm.training.loop.optimizer import MuonAdamW, build_optimizer, learning_rate_factor
    from memlm.training.loop.trainer import Interrupted, MemlmTrainer
    from memlm.training.prepare import PreparedData, prepare_data, read_split
    from memlm.training.run import build_model, train_run
    from memlm.training.run_folder import RunFolder

_WHERE = {
    **dict.fromkeys(["DataConfig", "ModelConfig", "OptimizerConfig", "RunConfig", "TrainingConfig"], "config"),
    **dict.fromkeys(["MuonAdamW", "build_optimizer", "learning_rate_factor"], "loop.optimizer"),
    **dict.fromkeys(["PreparedData", "prepare_data", "read_split"], "prepare"),
    **dict.fromkeys(["Interrupted", "MemlmTrainer"], "loop.trainer"),
    **dict.fromkeys(["build_model", "train_run"], "run"),
    "RunFolder": "run_folder",
}

__all__ = [
    "DataConfig",
    "Interrupted",
    "MemlmTrainer",
    "ModelConfig",
    "MuonAdamW",
    "OptimizerConfig",
    "PreparedData",
    "RunConfig",
    "RunFolder",
    "TrainingConfig",
    "build_model",
    "build_optimizer",
    "learning_rate_factor",
    "prepare_data",
    "read_split",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
