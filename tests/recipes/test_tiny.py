"""Every tiny recipe of a memory model trains, and what it trains is evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from memlm.evaluation import evaluate_run
from memlm.recipes import RECIPES, get_recipe
from memlm.training import train_run
from memlm.training.config import merge_run

TINY = [name for name in RECIPES if name.startswith("memory-") and name.endswith("-tiny")]


@pytest.mark.parametrize("name", ["autoencoder-chunk-tiny", "autoencoder-chunk-small", "autoencoder-chunk-deep"])
def test_encoders_fit_the_curriculum(name: str) -> None:
    config, curriculum = get_recipe(name), get_recipe("memory-curriculum-tiny")
    assert config.is_autoencoder
    assert not curriculum.is_autoencoder
    assert config.model.chunk_length == curriculum.model.chunk_length
    assert config.model.bottleneck_size == curriculum.model.encoder.bottleneck_size


@pytest.mark.parametrize("name", TINY)
def test_a_step_of_every_stage(name: str, corpus: Path, tmp_path: Path) -> None:
    config = get_recipe(name)
    assert not config.is_autoencoder
    changes = {
        "data": {"text": str(corpus), "vocab_size": 300},
        "stages": [{**stage.model_dump(), "steps": 1} for stage in config.stages],
        "training": {"batch_size": 2, "evaluate_rows": 2},
    }
    folder = train_run(merge_run(config, changes), tmp_path / "run", progress=False)
    assert folder.log()[-1]["step"] == len(config.stages)
    found = evaluate_run(str(folder.path), probe=False).measurements
    assert "bits_per_byte" in {m.name for m in found}
