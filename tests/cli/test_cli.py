"""The commands as a user types them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from memlm.cli import COMMANDS, main
from memlm.measurement import Measurement, read_journal
from memlm.training.config import RunConfig, make_run_config


def cpu_seconds() -> float:
    """Of all finished children: a busy machine does not change it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_teaches_and_is_quick() -> None:
    limits = {"": 0.5, "demo": 0.8, "evaluate": 0.8, "recipes": 0.8}
    for command in ([word] if word else [] for word in limits):
        took = []
        for _ in range(5):
            began = cpu_seconds()
            run = subprocess.run(
                [sys.executable, "-m", "memlm", *command, "--help"], capture_output=True, text=True, check=True
            )
            took.append(cpu_seconds() - began)
        assert "memlm" in run.stdout
        assert min(took) < limits[" ".join(command)], (command, took)
    heavy = subprocess.run(
        [sys.executable, "-c", "import sys, memlm.cli; memlm.cli.main(['--help']); print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert heavy.stdout.splitlines()[-1] == "False"


def test_help_of_train_comes_from_the_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for line in (
        "--model.encoder.bottleneck_size 128\n      Numbers in one memory.",
        "--model.decoder.num_hidden_layers 4\n      Number of layers.",
        "--model.lora.rank 16\n      Rank of each adapter.",
        "--training.batch_size 64\n      Rows in each update.",
    ):
        assert line in out
    assert "vocab_size 1024\n      Number of token ids" not in out


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        assert command in capsys.readouterr().out


def test_recipes_print_settings_that_can_be_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from memlm.recipes import RECIPES, get_recipe

    assert main(["recipes"]) == 0
    assert set(RECIPES) == {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    for name in RECIPES:
        assert main(["recipes", name]) == 0
        assert make_run_config(yaml.safe_load(capsys.readouterr().out)) == get_recipe(name)


def test_yaml_and_flags_override_a_recipe_and_training_works(
    tiny_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "mine.yaml"
    settings.write_text(tiny_config.model_dump_json())  # JSON is YAML
    out = tmp_path / "run"
    arguments = ["train", "autoencoder-tiny", "--config", str(settings), "--out", str(out)]
    assert main([*arguments, "--training.steps", "2", "--training.optimizer.learning_rate=1e-3"]) == 0
    kept = json.loads((out / "run.json").read_text())
    assert kept["training"]["steps"] == 2
    assert kept["training"]["optimizer"]["learning_rate"] == 1e-3
    assert kept["model"]["hidden_size"] == tiny_config.model.hidden_size
    assert "memlm evaluate" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(out)]) == 0


def test_evaluate_prints_json_and_nothing_else_and_keeps_the_same_lines(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    printed = [Measurement.from_json_line(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == read_journal(run / "measurements.jsonl")
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert "model-index" in (run / "README.md").read_text()


def test_regenerate_prints_text_alone_on_stdout(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regenerate", "the people", "--model", str(finished_run)]) == 0
    out, err = capsys.readouterr()
    assert "% of tokens correct" in err
    assert "%" not in out
    assert main(["regenerate", "--model", str(finished_run), "-Dash"]) == 0


def test_regenerate_takes_the_autoencoder_that_was_finished_last(
    finished_run: Path,
    memory_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, (name, source) in enumerate([("memory", memory_run), ("new", finished_run), ("old", finished_run)]):
        shutil.copytree(source, Path("runs") / name)
        os.utime(Path("runs") / name / "model.safetensors", (10**9 - age, 10**9 - age))
    assert main(["regenerate", "the people"]) == 0
    assert f"model: {Path('runs') / 'new'}" in capsys.readouterr().err
    for name in ("new", "old"):
        (Path("runs") / name / "config.json").unlink()
    assert main(["regenerate", "the people"]) == 2
    assert "no finished autoencoder in 'runs' (it has runs/memory" in capsys.readouterr().err


def test_the_demo_shows_everything(
    tiny_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("memlm.recipes.RECIPES", {"autoencoder-quick": lambda: tiny_config})
    out = tmp_path / "demo"
    assert main(["demo", "--quick", "--out", str(out)]) == 0
    printed, err = capsys.readouterr()
    for word in ("token_accuracy", "memory int4", "gzip -9, whole text", "xz -9e", "text", "memory", "gives back"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "report.html" in err
    assert "step 12/12" in err
    assert main(["demo", "--quick", "--out", str(out)]) == 2


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m memlm recipes autoencoder-tiny | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False, env=os.environ)
    assert "Traceback" not in run.stderr
