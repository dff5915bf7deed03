"""Weights, gradients and optimizer states spread over all processes (PyTorch's FSDP2), a layer gathered at a time.

Another way is DeepSpeed's (`zero.py`).
Checkpoints are whole whatever trained them: any number of processes, sharded or not, goes on from them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from memlm.training.config import TrainingConfig
from memlm.training.loop import distributed
from memlm.training.loop.zero import ZERO_STAGES, gathered_weights


def shards(config: TrainingConfig) -> bool:
    """Whether weights are spread over the processes that are here."""
    return config.sharding != "none" and distributed.count() > 1


def shard(model: PreTrainedModel) -> None:
    """In place; every process must come here. Layers are what transformers' `_no_split_modules` name."""
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (distributed.count(),))
    names = {name for part in _models(model) for name in getattr(part, "_no_split_modules", None) or ()}
    for module in model.modules():
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; then every process must come here."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(model: nn.Module, config: TrainingConfig) -> dict[str, Tensor]:
    """A model's state, gathered; every process must come here."""
    if config.sharding in ZERO_STAGES:
        return gathered_weights(model)
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def spread_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded as another one is, or as it is where that one is whole."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def _models(model: PreTrainedModel) -> list[PreTrainedModel]:
    return [module for module in model.modules() if isinstance(module, PreTrainedModel)]
