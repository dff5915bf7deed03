"""Training: settings, data, optimizer, checkpoints, run folders."""

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
