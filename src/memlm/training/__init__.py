"""Training: settings, data, optimizer, checkpoints, run folders."""

from memlm.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from memlm.training.optimizer import MuonAdamW, build_optimizer, learning_rate_factor
from memlm.training.prepare import PreparedData, prepare_data, read_split
from memlm.training.run_folder import RunFolder
from memlm.training.trainer import Interrupted, MemlmTrainer, build_model, train_run

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
