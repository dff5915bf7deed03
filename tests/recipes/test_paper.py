"""The paper's sizes: as many parameters as its notes count (1.0), and steps that run at reduced depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memlm.recipes import get_recipe
from memlm.training import train_run
from memlm.training.config import merge_run
from memlm.training.model_settings import TokenIds
from memlm.training.run import build_model

VOCABULARY = 8000


def built(name: str, **model: Any) -> nn.Module:
    """On the meta device: sizes without numbers."""
    config = merge_run(get_recipe(name), {"model": model})
    with torch.device("meta"):
        return build_model(config.model, TokenIds(vocab_size=VOCABULARY), seed=0)


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def test_parameters_are_those_the_notes_count() -> None:
    assert millions(built("autoencoder-paper")) == pytest.approx(218.4, abs=0.2)
    # less the tables of the reference code that nothing reads: two of 8,000 x 512, or one of each width
    assert millions(built("memory-paper")) == pytest.approx(154.7 - 8.2, abs=0.2)
    narrow = built("memory-paper", encoder={"hidden_size": 256, "bottleneck_size": 256})
    assert millions(narrow) == pytest.approx(100.4 - 6.1, abs=0.2)
    assert millions(built("memory-paper").decoder) == pytest.approx(75.3, abs=0.1)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("autoencoder-paper", {"num_encoder_layers": 1, "num_decoder_layers": 1}),
        ("memory-paper", {"encoder": {"num_encoder_layers": 1}, "decoder": {"num_hidden_layers": 1}}),
    ],
)
def test_two_steps_at_reduced_depth(name: str, model: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    config = get_recipe(name)
    training = {"batch_size": 1, "steps": 2, "evaluate_rows": 1, "evaluate_every": 2, "checkpoint_every": 2}
    changes: dict[str, Any] = {"model": model, "training": training, "data": {"text": str(corpus), "vocab_size": 300}}
    if not config.is_autoencoder:
        # shorter chunks: the little corpus holds no document of 1,024 tokens
        changes["model"] = {**model, "chunk_length": 64}
        changes["stages"] = [{"name": "mixture", "objectives": {"next_token": 1.0, "copy": 0.5}, "steps": 2}]
    log = train_run(merge_run(config, changes), tmp_path / "run", progress=False).log()
    assert log[-1]["step"] == 2
    assert log[-1]["loss"] > 0
