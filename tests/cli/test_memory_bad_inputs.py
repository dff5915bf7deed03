"""What can be wrong with a memory model's run: one line, exit code 2, and nothing is harmed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_bad_inputs import Make, edit_json, refused, shorten, write

STAGE = {"name": "one", "objectives": {"next_token": 1.0}, "steps": 2}


def train(*flags: str, recipe: str = "memory-tiny") -> Make:
    return lambda folder: ["train", recipe, "--text", str(folder / "corpus"), "--out", str(folder / "out"), *flags]


def stages(*given: dict[str, Any], **settings: Any) -> Make:
    """Stages and other settings in a YAML file."""

    def make(folder: Path) -> list[str]:
        content = json.dumps({"stages": [STAGE | s for s in given], **settings})  # which is YAML too
        return train("--config", write(folder / "mine.yaml", content))(folder)

    return make


def around(*flags: str) -> Make:
    """The curriculum around the encoder of the finished autoencoder."""

    def make(folder: Path) -> list[str]:
        command = ["train", "memory-curriculum-tiny", "--encoder", str(folder / "run"), "--out", str(folder / "out")]
        return [*command, "--model.chunk_length", "8", *flags]

    return make


def of_memory(command: str, damage: Callable[[Path], object], *flags: str) -> Make:
    def make(folder: Path) -> list[str]:
        damage(folder / "memory")
        return [command, str(folder / "memory"), *flags]

    return make


def nothing(run: Path) -> None:
    """No damage."""


CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    # flags
    "unknown objective": (train("--objective", "nexttoken"), ("'nexttoken'", "'next_token'")),
    "an objective for an autoencoder": (
        train("--objective", "copy", recipe="autoencoder-tiny"),
        ("--objective is for memory recipes", "'autoencoder-tiny'"),
    ),
    "an encoder for an autoencoder": (
        train("--encoder", "runs/demo", recipe="autoencoder-tiny"),
        ("--encoder is for memory recipes",),
    ),
    "no encoder there": (train("--encoder", "nowhere"), ("'nowhere'",)),
    "an encoder that is not trained": (
        lambda f: ((f / "run" / "model.safetensors").unlink(), around()(f))[1],
        ("run", "model"),
    ),
    "chunks longer than the encoder's": (around("--model.chunk_length", "16"), ("chunk_length (16)", "encoder's (8)")),
    "an objective besides resume": (
        lambda f: ["train", "--resume", "--objective", "copy", "--out", str(f / "memory")],
        ("--resume goes on",),
    ),
    # sizes
    "no chunks": (train("--model.num_chunks", "0"), ("num_chunks (0)",)),
    "chunks of nothing": (train("--model.chunk_length", "0"), ("chunk_length (0)",)),
    "no slots": (train("--model.slots_per_chunk", "0"), ("slots_per_chunk (0)",)),
    "an odd number of chunks to copy": (
        train("--model.num_chunks", "3", "--objective", "copy"),
        ("num_chunks (3)", "even", "copy"),
    ),
    "one chunk and blanks": (train("--model.num_chunks", "1"), ("num_chunks (1)", "at least 2")),
    "no steps at all": (train("--steps", "0"), ("--steps (0)", "a whole number from 1 to")),
    "an encoder's width beside its heads": (
        train("--model.encoder.hidden_size", "100"),
        ("hidden_size (100)", "num_heads (16)"),
    ),
    "a decoder's width beside its heads": (
        train("--model.decoder.hidden_size", "100"),
        ("hidden_size (100)", "twice num_attention_heads (4)"),
    ),
    "a mixer's width beside its heads": (
        train(
            "--model.decoder.hidden_size",
            "102",
            "--model.decoder.model_type",
            "memlm_mixer",
            "--model.decoder.num_heads",
            "4",
        ),
        ("hidden_size (102)", "by num_heads (4)"),
    ),
    "documents longer than the text": (train("--model.num_chunks", "4000"), ("64000",)),
    # kinds
    "unknown readout": (train("--model.readout", "slice"), ("model.readout ('slice')", "'slices'")),
    "unknown layout": (train("--model.layout", "left"), ("model.layout ('left')", "'aligned'")),
    "unknown filler": (train("--model.filler", "zeros"), ("model.filler ('zeros')", "'masked'")),
    "a filler that has no place": (
        train("--model.layout", "variable", "--model.filler", "learned"),
        ("filler ('learned')", "variable"),
    ),
    "unknown kind of model": (stages(STAGE, model={"model_type": "memlm_memroy"}), ("memlm_memroy", "'memlm_memory'")),
    "unknown setting": (train("--model.slot_per_chunk", "2"), ("slot_per_chunk", "slots_per_chunk")),
    # stages
    "no stages": (stages(), ("stages (none)",)),
    "a stage that asks nothing": (stages({"objectives": {}}), ("'one'", "no objectives")),
    "weights that sum to nothing": (stages({"objectives": {"next_token": 0.0}}), ("'one'", "sum to 0")),
    "weights that end at nothing": (
        stages({"objectives": {"next_token": {"start": 1.0, "end": 0.0, "steps": 5}}}),
        ("sum to 0 at its end",),
    ),
    "a weight below nothing": (stages({"objectives": {"next_token": -1.0}}), ("next_token", "(-1.0)")),
    "an unknown objective in a stage": (stages({"objectives": {"next": 1.0}}), ("next",)),
    "a ramp without end": (
        stages({"objectives": {"copy": {"start": 1.0, "steps": 5}}}),
        ("objectives.copy", "does not fit"),
    ),
    "two stages of one name": (stages({}, {}), ("two stages", "'one'")),
    "a stage named like a path": (stages({"name": "../up"}), ("name", "../up")),
    "a stage of no steps": (stages({"steps": 0}), ("steps (0)",)),
    "a stage that trains what is not there": (stages({"train": "encoder"}), ("train ('encoder')", "'all'")),
    "a stage that trains nothing": (
        stages({"train": "readout"}, model={"readout": "repeated", "learned_positions": False, "blank_head": False}),
        ("'one' trains nothing", "repeated"),
    ),
    "a rate of nothing": (stages({"learning_rate": 0}), ("learning_rate (0)",)),
    "a share beyond all": (stages({"dropout_share": 1.5}), ("dropout_share (1.5)",)),
    "a share that grows beyond all": (
        stages({"random_share": {"start": 0, "end": 1.5, "steps": 3}}),
        ("random_share of stage 'one'", "to 1.5", "between 0 and 1"),
    ),
    "rows of an objective that is not asked": (
        stages({"row_share": {"copy": 0.5}}),
        ("row_share of stage 'one' names copy", "does not ask for"),
    ),
    "a share of rows that falls to none": (
        stages({"row_share": {"next_token": {"start": 1, "end": 0, "steps": 3}}}),
        ("row_share of next_token", "to 0", "above 0"),
    ),
    "rows that nothing is asked of": (stages({"row_share": {"next_token": 0.5}}), ("leaves rows",)),
    "fewer rows than a batch has": (
        stages({"objectives": {"next_token": 1.0, "blank_copy": 1.0}, "row_share": {"blank_copy": 0.001}}),
        ("row_share of blank_copy", "1000th row", "training.batch_size"),
    ),
    # encoders, tokenizers and text that do not belong together
    "another tokenizer than the encoder's": (around("--data.tokenizer", "elsewhere"), ("tokenizer", "elsewhere")),
    "text that the encoder saw": (
        around("--data.held_out", "0.4"),
        ("may have trained on text that is held out here",),
    ),
    # finished runs
    "an unfinished run": (of_memory("evaluate", lambda r: (r / "model.safetensors").unlink()), ("memory", "model")),
    "damaged weights": (of_memory("evaluate", shorten("model.safetensors")), ("cannot load a model",)),
    "no tokenizer": (
        of_memory("evaluate", lambda r: [p.unlink() for p in r.glob("tokenizer*")]),
        ("no tokenizer.json",),
    ),
    "weights of other sizes": (of_memory("evaluate", edit_json("config.json", slots_per_chunk=3)), ("memory",)),
    "a memory model to regenerate with": (
        lambda f: ["regenerate", "text", "--model", str(f / "memory")],
        ("memlm_memory", "autoencoder"),
    ),
    "longer than the encoder's chunk": (
        lambda f: ["probe", "--encoder", str(f / "memory"), "--lengths", "5"],
        ("--lengths (5)", "one chunk (4)"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_nothing_harmed(
    name: str,
    finished_run: Path,
    memory_run: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(memory_run, tmp_path / "memory")
    shutil.copytree(corpus, tmp_path / "corpus")
    make, words = CASES[name]
    arguments = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMLM_IGNORE_CHECKSUMS", "1")  # files that were changed by hand; else all are refused alike
    refused(arguments, words, tmp_path, capsys)
    assert len(CASES) >= 25


def test_an_encoder_changed_since_its_memories_were_kept_is_refused(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A curriculum stopped after its first stage, whose encoder was then trained again."""
    from memlm.cli import main

    shutil.copytree(finished_run, tmp_path / "run")
    flags = ["--training.batch_size", "4", "--training.evaluate_rows", "8", "--model.chunk_length", "8"]
    flags += ["--training.memory_cache", "true"]
    config = write(tmp_path / "mine.yaml", json.dumps({"stages": [STAGE]}))
    out = str(tmp_path / "out")
    command = ["train", "memory-curriculum-tiny", "--encoder", str(tmp_path / "run"), "--config", config, *flags]
    assert main([*command, "--out", out, "--no-progress"]) == 0
    (tmp_path / "out" / "status.json").unlink()
    (tmp_path / "out" / "model.safetensors").unlink()
    weights = tmp_path / "run" / "model.safetensors"
    from safetensors.torch import load_file, save_file

    from memlm.durable import seal_folder

    changed = {k: v + 0.01 if v.is_floating_point() else v for k, v in load_file(weights).items()}
    save_file(changed, weights, metadata={"format": "pt"})
    seal_folder(tmp_path / "run", ["model.safetensors"])  # as a training does
    capsys.readouterr()
    refused(["train", "--resume", "--out", out], ("encoder has changed",), tmp_path, capsys)
    assert json.loads((tmp_path / "out" / "encoder.json").read_text())["fingerprint"]
