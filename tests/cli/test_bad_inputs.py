"""Whatever is wrong, the user gets one line that says what and how to go on, exit code 2, and nothing is harmed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memlm.cli import main
from memlm.data import train_tokenizer

Make = Callable[[Path], list[str]]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def train(*arguments: str) -> Make:
    return lambda folder: ["train", "autoencoder-tiny", "--out", str(folder / "out"), *arguments]


def train_on(name: str, content: str | bytes, *arguments: str) -> Make:
    def make(folder: Path) -> list[str]:
        return [*train("--text", write(folder / name, content))(folder), *arguments]

    return make


def with_config(content: str | bytes) -> Make:
    return lambda folder: train("--config", write(folder / "mine.yaml", content))(folder)


def of_run(command: str, damage: Callable[[Path], object], *arguments: str) -> Make:
    """A command on a copy of the finished run that was damaged first."""

    def make(folder: Path) -> list[str]:
        damage(folder / "run")
        return [command, str(folder / "run"), *arguments]

    return make


def of_text(damage: Callable[[Path], object], *arguments: str) -> Make:
    """`regenerate` with a copy of the finished run that was damaged first."""

    def make(folder: Path) -> list[str]:
        damage(folder / "run")
        return ["regenerate", *arguments, "--model", str(folder / "run")]

    return make


def edit_json(name: str, **changes: object) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **changes}))


def shorten(name: str, cut: int = 50) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-cut])


def nothing(run: Path) -> None:
    """No damage."""


LONG = "a word and another. " * 400

CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    # commands and flags
    "unknown command": (lambda _: ["trian"], ("trian", "Did you mean 'train'")),
    "unknown flag": (train("--ouut", "x"), ("--ouut", "Did you mean '--out'")),
    "unknown flag of evaluate": (of_run("evaluate", nothing, "--jsn"), ("--jsn", "--json")),
    "missing argument": (lambda _: ["evaluate"], ("Missing", "evaluate --help")),
    "missing text": (of_text(nothing), ("Missing", "The text")),
    "one argument too many": (of_run("report", nothing, "more"), ("more",)),
    "two recipe names": (lambda _: ["recipes", "a", "b"], ("one name, not 2",)),
    "flag without value": (train("--training.steps"), ("training.steps needs a value",)),
    # recipes and settings
    "unknown recipe": (lambda _: ["train", "autoencoder-tinny"], ("autoencoder-tinny", "'autoencoder-tiny'")),
    "unknown recipe to show": (lambda _: ["recipes", "tiny"], ("unknown recipe 'tiny'", "autoencoder-tiny")),
    "no recipe": (lambda _: ["train"], ("name a recipe or a --config", "autoencoder-tiny")),
    "unknown setting": (train("--training.stepps", "3"), ("--training.stepps", "--training.steps")),
    "a word for a number": (train("--training.steps", "many"), ("training.steps", "'many'", "integer")),
    "zero steps": (train("--training.steps", "0"), ("training.steps (0)", "greater than or equal to 1")),
    "a fraction of a batch": (train("--training.batch_size", "1.5"), ("training.batch_size (1.5)",)),
    "all held out": (train("--data.held_out", "1.0"), ("data.held_out (1.0)", "less than 1")),
    "heads that do not divide": (train("--model.num_heads", "7"), ("hidden_size (192)", "num_heads (7)")),
    "memories that do not divide": (train("--model.memories_per_chunk", "3"), ("chunk_length (64)", "(3)")),
    "unknown backbone": (train("--model.backbone", "gru"), ("model.backbone ('gru')", "'mixer' or 'llama'")),
    "unknown bottleneck": (train("--model.bottleneck", "maen"), ("'maen'", "'mean'")),
    "negative rate": (
        train("--training.optimizer.learning_rate", "-1e-3"),
        ("training.optimizer.learning_rate (-0.001)", "greater than 0"),
    ),
    "one bit of noise": (train("--model.noise_bits", "1"), ("model.noise_bits (1)", "2")),
    "a tiny vocabulary": (train("--data.vocab_size", "100"), ("data.vocab_size (100)", "258")),
    # settings files
    "missing settings file": (lambda f: train("--config", str(f / "no.yaml"))(f), ("no.yaml", "No such file")),
    "settings that are not YAML": (with_config("a: [1"), ("mine.yaml", "not YAML")),
    "settings that grow": (with_config("a: &a [x, x]\nb: [*a, *a]\n"), ("mine.yaml", "aliases")),
    "settings without a bottom": (with_config("[" * 5000), ("mine.yaml", "nested too deeply")),
    "a date that never was": (with_config("recipe: 2024-99-99\ntraining: {steps: x}\n"), ("training.steps ('x')",)),
    "an empty name of a folder": (lambda _: ["train", "autoencoder-tiny", "--out", ""], ("--out ('') is empty",)),
    "an empty name of a tokenizer": (train("--data.tokenizer", "''"), ("data.tokenizer ('')", "at least 1")),
    "settings that are a list": (with_config("- a\n"), ("holds a list", "memlm recipes NAME")),
    "empty settings": (with_config(""), ("holds a NoneType",)),
    "binary settings": (with_config(b"\xff\xfe\0\1"), ("cannot read settings",)),
    "huge settings": (with_config("#" * (2**20 + 1)), ("more than 1048576 bytes",)),
    "unknown key in a file": (with_config("model: {hiden_size: 8}"), ("model.hiden_size", "'hidden_size'")),
    "wrong type in a file": (with_config("training: {seed: [1]}"), ("training.seed ([1])", "integer")),
    # text
    "missing text file": (lambda f: train("--text", str(f / "none.txt"))(f), ("none.txt", "no text at")),
    "misspelled corpus": (train("--text", "sotuu"), ("'sotuu'", "Did you mean 'sotu'")),
    "empty file": (train_on("a.txt", b""), ("a.txt", "0 bytes")),
    "binary file": (train_on("a.txt", b"\x7fELF\0\0"), ("a.txt", "byte 4 is NUL")),
    "not UTF-8": (train_on("a.txt", "caf\xe9 ".encode("latin-1") * 99), ("a.txt", "byte 3")),
    "text shorter than a chunk": (train_on("a.txt", "too short " * 3), ("1 document", "at least 3")),
    "held-out text shorter than a chunk": (train_on("a.txt", "brief " * 90), ("fewer than one chunk of 64",)),
    "malformed JSONL": (train_on("a.jsonl", '{"text": "a"}\n{oops\n', "--strict"), ("a.jsonl:2", "is not JSON")),
    "JSONL without the field": (train_on("a.jsonl", '{"body": "a"}\n'), ("'text'", "body")),
    "truncated gzip": (train_on("a.txt.gz", b"\x1f\x8b\x08\0cut"), ("cannot unpack",)),
    "false Parquet": (train_on("a.parquet", b"PAR1nope"), ("a.parquet", "Parquet")),
    "no such tokenizer": (train_on("a.txt", LONG, "--data.tokenizer", "/no/where"), ("/no/where", "tokenizer")),
    # run folders
    "out is taken": (lambda f: ["train", "autoencoder-tiny", "--out", str(f / "run")], ("--resume or --overwrite",)),
    "out is a file": (
        lambda f: ["train", "autoencoder-tiny", "--out", write(f / "file", "x")],
        ("is a file, not a folder", "--out"),
    ),
    "out below a file": (
        lambda f: ["train", "autoencoder-tiny", "--out", write(f / "file", "x") + "/run"],
        ("cannot write to", "choose another --out"),
    ),
    "overwrite of something else": (
        lambda f: (write(f / "letter", "x"), [*train()(f)[:3], str(f), "--overwrite"])[1],
        ("is not a run of memlm", "leaves it alone"),
    ),
    "overwrite with text that is missing": (
        lambda f: ["train", "autoencoder-tiny", "--out", str(f / "run"), "--overwrite", "--text", "nope.txt"],
        ("no text at 'nope.txt'",),
    ),
    "resume of nothing": (lambda f: ["train", "--resume", "--out", str(f / "none")], ("no run folder at",)),
    "resume without a folder": (lambda _: ["train", "--resume"], ("--resume needs --out",)),
    "resume with other settings": (
        lambda f: ["train", "--resume", "--out", str(f / "run"), "--training.steps", "3"],
        ("goes on with the settings kept in",),
    ),
    "evaluate nothing": (lambda f: ["evaluate", str(f / "none")], ("no run folder at", "memlm train")),
    "evaluate something else": (lambda f: ["evaluate", str(f)], ("holds no run.json",)),
    "an untrained run": (of_run("evaluate", lambda r: (r / "model.safetensors").unlink()), ("no trained model yet",)),
    "truncated weights": (of_run("evaluate", shorten("model.safetensors")), ("cannot load a model", "damaged")),
    "weights that are none": (
        of_text(lambda r: (r / "model.safetensors").write_bytes(b"\0" * 9), "a"),
        ("cannot load a model",),
    ),
    "settings of another model": (of_text(edit_json("config.json", hidden_size=24), "a"), ("cannot load",)),
    "a model of another kind": (of_text(edit_json("config.json", model_type="bert"), "a"), ("'bert'",)),
    "a setting too many": (of_text(edit_json("config.json", depth=3), "a"), ("unknown setting 'depth'",)),
    "broken run.json": (of_run("evaluate", shorten("run.json")), ("run.json", "damaged")),
    "broken data.json": (of_run("report", shorten("data.json")), ("data.json", "damaged")),
    "data.json without its counts": (
        of_run("evaluate", lambda r: (r / "data.json").write_text('{"source": "sotu"}')),
        ("data.json' lacks 'fingerprint_train'",),
    ),
    "a folder for a journal": (
        of_run(
            "evaluate",
            lambda r: [(r / "measurements.jsonl").unlink(missing_ok=True), (r / "measurements.jsonl").mkdir()],
        ),
        ("measurements.jsonl: Is a directory",),
    ),
    "a tokenizer of another vocabulary": (
        of_text(lambda r: train_tokenizer(["few"], vocab_size=258).save_pretrained(r), "a"),
        ("258 tokens and the model", "trained with"),
    ),
    "a tokenizer that is none": (
        of_text(lambda r: (r / "tokenizer.json").write_text("{}"), "a"),
        ("cannot load a tokenizer",),
    ),
    "no run to regenerate with": (lambda _: ["regenerate", "a"], ("no finished autoencoder in 'runs'", "--model RUN")),
    "a run before the text": (lambda f: ["regenerate", str(f / "run"), "a"], ("a", "regenerate --help")),
    "an empty text": (of_text(nothing, ""), ("the text is empty",)),
    "text that is not UTF-8 on stdin": (of_text(nothing, "-"), ("stdin is not UTF-8 at byte 1",)),
}


def state(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_nothing_harmed(
    name: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    make, words = CASES[name]
    arguments = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMLM_IGNORE_CHECKSUMS", "1")  # files that were changed by hand; else all are refused alike
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    refused(arguments, words, tmp_path, capsys)
    assert len(CASES) >= 40


def refused(arguments: list[str], words: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr with these words, exit code 2, and every file of the folder as it was."""
    before = state(folder)

    assert main(arguments) == 2

    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("memlm: error:")]
    assert len(lines) == 1, err
    assert not [line for line in err.splitlines() if "Traceback" in line], err
    for word in words:
        assert word in lines[0], lines[0]
    assert out == ""
    after = state(folder)
    assert {k: after.get(k) for k in before} == before
