"""The paper's table: all rows are there, kept one by one, and found again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from memlm.cli.probe_table import markdown
from memlm.errors import RunFolderError
from memlm.reproduction import paper_table as table
from memlm.reproduction.paper_rows import ROWS, TableSettings
from memlm.reproduction.paper_table import measure_table
from memlm.training.schema import checked


def settings(corpus: Path, **changes: object) -> TableSettings:
    small = {"text": str(corpus), "length": 8, "vocab_size": 300, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    probe = {"size": "small", "steps": 4, "batch_size": 8, "evaluate_every": 2}
    times = {"steps": 4, "batch_size": 8, "passages": 64, "held_out_passages": 32, "held_out": 0.2, "seeds": 2}
    return checked(TableSettings, {**small, **times, "probe": probe, **changes})


def test_a_stopped_table_goes_on_and_ends_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    whole = measure_table(settings(corpus), tmp_path / "whole", say=said.append)
    assert [line.row for line in whole] == list(ROWS)
    assert len(said) == 1 + 2 * len(ROWS)
    printed = markdown(whole)
    assert printed.count("\n") == 3 + len(ROWS)
    assert "| transformer causal -> retrieval |" in printed
    assert "| 1.528 | 83.1 % | 55.3 % |" in printed

    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for name in ("mixer-causal-retrieval-seed0", "transformer-autoencoder-seed1"):
        shutil.rmtree(tmp_path / "stopped" / "probes" / name)
    shutil.rmtree(tmp_path / "stopped" / "encoders" / "transformer-autoencoder-seed1")
    trained: list[str] = []
    train_probe = table.train_probe

    def spy(data: object, probe: object, folder: Path, **rest: object) -> object:
        trained.append(folder.name)
        return train_probe(data, probe, folder, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "train_probe", spy)
    again = measure_table(settings(corpus), tmp_path / "stopped", say=said.append)
    assert sorted(trained) == ["mixer-causal-retrieval-seed0", "transformer-autoencoder-seed1"]
    assert [line.measurements for line in again] == [line.measurements for line in whole]

    # side by side in processes of their own: what is missing, and the same figures
    shutil.copytree(tmp_path / "whole", tmp_path / "workers")
    for name in ("mixer-autoencoder-retrieval-seed0", "transformer-causal-seed1"):
        shutil.rmtree(tmp_path / "workers" / "probes" / name)
    beside = measure_table(settings(corpus), tmp_path / "workers", say=said.append, workers=2)
    assert [line.measurements for line in beside] == [line.measurements for line in whole]
    assert "min left" in said[-1]

    with pytest.raises(RunFolderError, match="another settings"):
        measure_table(settings(corpus, seeds=3), tmp_path / "whole", say=said.append)
