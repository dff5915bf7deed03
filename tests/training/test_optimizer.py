"""Muon and AdamW in one optimizer step exactly as torch's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from memlm.errors import CheckpointError
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.training import MuonAdamW, OptimizerConfig, build_optimizer, learning_rate_factor
from memlm.training.loop.checkpoint import (
    full_state,
    load_optimizer,
    load_random_state,
    save_optimizer,
    save_random_state,
)
from memlm.training.loop.optimizer import orthogonalized
from tests.variants import TINY


def stepped(make: object, start: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    parameter = nn.Parameter(start.clone())
    optimizer = make(parameter)  # type: ignore[operator]
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_matrices_move_as_torchs_muon_moves_them(shape: tuple[int, int]) -> None:
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(4)]
    common = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    ours = stepped(lambda p: MuonAdamW([{"params": [p], "algorithm": "muon", **common}]), start, gradients)
    torchs = stepped(lambda p: torch.optim.Muon([p], adjust_lr_fn="match_rms_adamw", **common), start, gradients)
    # both iterate in bf16, in another order of operations: the same way and the same distance, to a part in a hundred
    moved, expected = (ours - start).flatten(), (torchs - start).flatten()
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.999
    assert float(moved.norm() / expected.norm()) == pytest.approx(1, abs=0.01)


def test_the_rest_moves_as_torchs_adamw_moves_it() -> None:
    start, gradients = torch.randn(7), [torch.randn(7) for _ in range(4)]
    common = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.9, 0.95)}
    ours = stepped(lambda p: MuonAdamW([{"params": [p], "algorithm": "adamw", **common}]), start, gradients)
    assert torch.equal(ours, stepped(lambda p: torch.optim.AdamW([p], **common), start, gradients))


def test_stacks_are_orthogonalized_one_by_one() -> None:
    stack = torch.randn(3, 5, 9)
    for whole, alone in zip(orthogonalized(stack), stack, strict=True):
        torch.testing.assert_close(whole, orthogonalized(alone), rtol=0.02, atol=0.02)
        values = torch.linalg.svdvals(whole.float())
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_tables_head_and_vectors_are_left_to_adamw() -> None:
    model = TextAutoencoder(TextAutoencoderConfig(**TINY))
    optimizer = build_optimizer(model, OptimizerConfig())
    muon, adam = optimizer.param_groups
    adamw_ids = {id(p) for p in adam["params"]}
    assert {id(model.embed_tokens.weight), id(model.lm_head.weight)} <= adamw_ids
    assert all(p.ndim >= 2 for p in muon["params"])
    assert len(muon["params"]) + len(adam["params"]) == len(list(model.parameters()))
    assert len(build_optimizer(model, OptimizerConfig(name="adamw")).param_groups) == 1


def test_state_goes_to_disk_and_back(tmp_path: Path) -> None:
    model = TextAutoencoder(TextAutoencoderConfig(**TINY))
    optimizer = build_optimizer(model, OptimizerConfig())
    ids = torch.randint(2, 23, (2, 6))
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    save_optimizer(full_state(optimizer), tmp_path)
    other = build_optimizer(model, OptimizerConfig())
    load_optimizer(other, tmp_path)
    before, after = optimizer.state_dict(), other.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for index, entries in before["state"].items():
        for name, value in entries.items():
            assert torch.equal(value, after["state"][index][name])
    foreign = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load_optimizer(foreign, tmp_path)


def test_random_states_come_back(tmp_path: Path) -> None:
    import random

    import numpy as np

    save_random_state(tmp_path)
    drawn = torch.rand(3), random.random(), np.random.random()
    load_random_state(tmp_path)
    again = torch.rand(3), random.random(), np.random.random()
    assert torch.equal(drawn[0], again[0])
    assert drawn[1:] == again[1:]


def test_the_rate_rises_stays_and_falls() -> None:
    config = OptimizerConfig(warmup_steps=10, decay_share=0.5)
    factors = [learning_rate_factor(step, 100, config) for step in range(101)]
    assert factors[0] == 0.1
    assert factors[9] == factors[50] == 1.0
    assert factors[75] == 0.5
    assert factors[100] == 0.0
    cosine = OptimizerConfig(warmup_steps=0, decay="cosine")
    assert learning_rate_factor(50, 100, cosine) == pytest.approx(0.5)
    assert learning_rate_factor(99, 100, OptimizerConfig(decay="constant")) == 1.0
