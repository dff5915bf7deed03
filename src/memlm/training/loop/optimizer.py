"""Muon for matrices, AdamW for the rest, in one optimizer, so that schedulers, Trainer and checkpoints see one.

Departures from torch.optim.Muon: parameters of three and more dimensions are stacks of matrices (a mixer's heads, a map
per position), orthogonalised together in one batched product. For two dimensions a step is the same as torch's with
`adjust_lr_fn="match_rms_adamw"` (tested).
Sources: K. Jordan et al., "Muon: an optimizer for hidden layers", 2024 (iteration and its coefficients);
J. Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982 (the scale that matches AdamW's updates).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw
from transformers import PreTrainedModel

from memlm.models.runtime import wants_bf16
from memlm.training.config import OptimizerConfig
from memlm.training.loop.distributed import shared_out, spread_like, whole

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


class MuonAdamW(Optimizer):
    """Optimizer that steps each parameter group by the algorithm that its "algorithm" entry names."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"algorithm": "adamw", "lr": 1e-3, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            move = self._muon if group["algorithm"] == "muon" else self._adamw
            move([p for p in group["params"] if p.grad is not None], group)

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            alike.setdefault(parameter.shape, []).append(parameter)
        moved = [[self._momentum(parameter, group["momentum"]) for parameter in some] for some in alike.values()]
        # one product for all of a shape, as adapters are many small matrices; each process takes part of the stack
        # (a share of a matrix has other directions than the whole one)
        updates = shared_out([torch.stack([whole(one) for one in some]) for some in moved], orthogonalized)
        for some, stack, ones in zip(alike.values(), updates, moved, strict=True):
            for parameter, update, one in zip(some, stack, ones, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = group["lr"] * 0.2 * math.sqrt(max(parameter.shape[-2:]))
                parameter.sub_(spread_like(update.to(one.dtype), one), alpha=step)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Return the direction of a step: the gradient with Nesterov momentum."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                state.update({"step": torch.tensor(0.0), **moments})
        adamw(
            list(parameters),
            [p.grad for p in parameters if p.grad is not None],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-8,
            maximize=False,
        )


def orthogonalized(matrices: Float[Tensor, "*stack rows columns"]) -> Float[Tensor, "*stack rows columns"]:
    """Return each matrix moved towards the nearest one with orthonormal rows or columns (Newton-Schulz).

    In bf16 where the machine computes in it, as its authors do, and so is what comes of it: processes exchange half the
    bytes. Elsewhere processors emulate bf16, ten times slower.
    """
    a, b, c = _COEFFICIENTS
    x = matrices.bfloat16() if wants_bf16("auto") else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def build_optimizer(model: PreTrainedModel, config: OptimizerConfig) -> Optimizer:
    """Return the optimizer that `config.name` names, over the parameters that are trained."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.name == "adamw":
        parameters = [p for _, p in trained]
        return AdamW(parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay)
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    head = model.get_output_embeddings()
    tables |= {id(p) for p in head.parameters()} if isinstance(head, nn.Module) else set()
    matrices = [p for _, p in trained if p.ndim >= 2 and min(p.shape[-2:]) > 1 and id(p) not in tables]
    chosen = {id(p) for p in matrices}
    rest = [p for _, p in trained if id(p) not in chosen]
    common = {"weight_decay": config.weight_decay}
    muon = {"params": matrices, "algorithm": "muon", "lr": config.learning_rate, "momentum": config.momentum, **common}
    adam = {"params": rest, "algorithm": "adamw", "lr": config.adamw_learning_rate, "betas": config.betas, **common}
    return MuonAdamW([group for group in (muon, adam) if group["params"]])


def learning_rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the factor of the peak rate at a step: it rises in the warm-up, stays level, then falls to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = max(config.warmup_steps, total_steps * (1 - config.decay_share))
    if config.decay == "constant" or step < start:
        return 1.0
    left = max(0.0, (total_steps - step) / max(1.0, total_steps - start))
    return left if config.decay == "linear" else 0.5 * (1 - math.cos(math.pi * left))
