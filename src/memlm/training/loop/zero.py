"""DeepSpeed's ZeRO: gradients and AdamW's states (stage 2), weights too (stage 3), spread over all distributed.

Its engine is made here, as accelerate takes it up on graphics cards alone. What it holds is read and written whole,
through its public functions; its own checkpoints are pickled. Muon is not for it: a process has a stretch of all
parameters laid end to end there, in which no matrix is whole.
Source: S. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models", arXiv 1910.02054.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim import AdamW, Optimizer

from memlm.errors import ConfigError
from memlm.training.loop import distributed

ZERO_STAGES = {"zero2": 2, "zero3": 3}
"""Of DeepSpeed's, by the name of the setting."""
_MOMENTS = ("exp_avg", "exp_avg_sq")
_KEPT_WHOLE = 4096
"""Parameters of fewer numbers (norms, biases) are whole in every process: gathering them costs more than they weigh."""


class ZeroAdamW(Optimizer):
    """AdamW as DeepSpeed's engine moves it; its state is what AdamW's own would be, whole, parameter by parameter.

    Args:
        model: to spread, in place; every process must come here.
        optimizer: AdamW over the parameters that are trained.
        stage: 2 or 3.
        rows: of this process in a step.
        gradient_clip: largest norm of all gradients together; 0 clips nothing.
    """

    def __init__(self, model: nn.Module, optimizer: AdamW, *, stage: int, rows: int, gradient_clip: float) -> None:
        deepspeed = _deepspeed()
        self.trained: list[nn.Parameter] = [p for group in optimizer.param_groups for p in group["params"]]
        super().__init__(self.trained, {})
        settings = {
            "train_micro_batch_size_per_gpu": rows,
            "gradient_clipping": gradient_clip,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": _KEPT_WHOLE},
        }
        self.engine, self.spread, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        self.moved = optimizer
        # the very groups, so that a schedule's rates reach them
        self.param_groups = optimizer.param_groups

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Clip and move what backward has left."""
        self.engine.step()

    def state_dict(self) -> dict[str, Any]:
        """As AdamW's; every process must come here."""
        numbers = list(range(len(self.trained)))
        groups = [{**group, "params": numbers} for group in self.param_groups]
        return {"state": self._states(), "param_groups": groups}

    def _states(self) -> dict[int, dict[str, Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state as whole

        if not self.moved.state:
            return {}
        step = next(iter(self.moved.state.values()))["step"]
        moments = [{name: cast(Tensor, whole(p, name)) for name in _MOMENTS} for p in self.trained]
        return {number: {"step": step.clone(), **own} for number, own in enumerate(moments)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo `state_dict`, or go on from AdamW's.

        Raises:
            ValueError: of another model.
        """
        self._require_fit(state_dict)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        states = state_dict["state"]
        if not states:
            return
        self._begin_states(next(iter(states.values()))["step"])
        for number, own in states.items():
            for name in _MOMENTS:
                _set_share(self.trained[number], own[name], name)

    def _require_fit(self, state_dict: dict[str, Any]) -> None:
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        if numbers != list(range(len(self.trained))):
            raise ValueError(f"{len(numbers)} parameters instead of {len(self.trained)}")
        for number, own in state_dict["state"].items():
            wanted = tuple(getattr(self.trained[number], "ds_shape", self.trained[number].shape))
            if tuple(own[_MOMENTS[0]].shape) != wanted:
                raise ValueError(f"parameter {number} has {tuple(own[_MOMENTS[0]].shape)} instead of {wanted}")

    def _begin_states(self, step: Tensor) -> None:
        """Zeros where the first step would put them, to be filled."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state as link

        stage_2 = hasattr(self.spread, "single_partition_of_fp32_groups")
        shares = self.spread.single_partition_of_fp32_groups if stage_2 else self.spread.fp32_partitioned_groups_flat
        for share in shares:
            moments = {name: torch.zeros_like(share) for name in _MOMENTS}
            self.moved.state[share] = {"step": step.clone(), **moments}
        for group, share in zip(self.spread.bit16_groups, shares, strict=True) if stage_2 else ():
            link(group, share, self.moved.state)


def gathered_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's state, whole whether or not it is spread; every process must come here."""
    import deepspeed

    spread = [p for p in model.parameters() if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(spread):
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _set_share(parameter: nn.Parameter, value: Tensor, name: str) -> None:
    """What this process has of a moment. DeepSpeed's own setter takes no size that processes cannot share evenly."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    share = getattr(parameter, "ds_tensor", None)
    if share is None:
        safe_set_full_optimizer_state(parameter, value, name)
        return
    size = share.numel()
    padded = pad(value.flatten(), (0, size * distributed.count() - value.numel()))
    safe_set_local_optimizer_state(parameter, padded[size * distributed.rank() :][:size], name)


def require_deepspeed(sharding: str) -> None:
    """Raises ConfigError where it is asked for and is not installed."""
    if sharding in ZERO_STAGES and importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"training.sharding ('{sharding}') needs DeepSpeed; run `pip install 'memlm[deepspeed]'`.")


def quiet_deepspeed() -> None:
    """What it says as it is imported is of no use to who asked for a training, and goes to stdout.

    accelerate imports it wherever it is installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def _deepspeed() -> Any:
    quiet_deepspeed()
    import deepspeed

    if not torch.cuda.is_available():
        # it would compile a kernel for a minute, and needs a compiler for that
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
