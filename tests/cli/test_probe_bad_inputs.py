"""What `memlm probe` refuses: one line, exit code 2, caches and folders unharmed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.cli.probe import _options, settings_of
from memlm.evaluation.probe.settings import ProbeSettings
from tests.cli.test_bad_inputs import refused
from tests.conftest import speech
from tests.encoders.embedders import with_code
from tests.encoders.test_encoders import saved

Make = Callable[[Path], list[str]]


def of_encoder(*arguments: str) -> Make:
    """Our finished run, probed on the little corpus."""
    return lambda f: [
        "probe",
        "--encoder",
        str(f / "run"),
        "--text",
        str(f / "corpus"),
        "--out",
        str(f / "o"),
        *arguments,
    ]


def of_model(family: str, *arguments: str) -> Make:
    return lambda f: [
        *("probe", "--encoder", str(f / family), "--text", str(f / "corpus"), "--lengths", "8"),
        *("--out", str(f / "o"), *arguments),
    ]


def good_vectors(rows: int = 12) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))


def lines(rows: int = 12, **changes: Any) -> list[dict[str, Any]]:
    return [{"text": speech(i, words=12), "document": f"d{i}", **changes} for i in range(rows)]


def of_files(
    vectors: Any = None, texts: Any = None, *arguments: str, name: str = "v.safetensors", write: Any = None
) -> Make:
    """Vectors and texts of our making."""

    def make(folder: Path) -> list[str]:
        tensors = vectors if isinstance(vectors, dict) else {"v": good_vectors() if vectors is None else vectors}
        if write is None:
            save_file(tensors, folder / name)
        else:
            write(folder / name)
        records = lines() if texts is None else texts
        content = records if isinstance(records, bytes) else "".join(json.dumps(r) + "\n" for r in records).encode()
        (folder / "t.jsonl").write_bytes(content)
        files = ["--embeddings", str(folder / name), "--texts", str(folder / "t.jsonl")]
        return ["probe", *files, "--out", str(folder / "o"), *arguments]

    return make


def spoiled(value: float) -> Tensor:
    vectors = good_vectors()
    vectors[3, 1] = value
    return vectors


def occupied(folder: Path) -> list[str]:
    (folder / "o").mkdir()
    (folder / "o" / "letter").write_text("x")
    return of_encoder()(folder)


def other_probe(folder: Path) -> list[str]:
    (folder / "o").mkdir()
    (folder / "o" / "probe.json").write_text('{"settings": {}, "encoder": "another"}')
    return of_encoder()(folder)


def foreign_cache(folder: Path) -> list[str]:
    """Vectors kept by another encoder, in the place of this one's."""
    from memlm.cli import main

    assert main(of_encoder("--no-controls", "--size", "small", "--steps", "1", "--writer-steps", "0")(folder)) == 0
    for record in (folder / "cache").rglob("vectors.json"):
        values = json.loads(record.read_text())
        record.write_text(json.dumps({**values, "encoder": "b" * 64}))
    shutil.rmtree(folder / "o")
    return of_encoder("--no-controls", "--size", "small", "--steps", "1")(folder)


SPLIT = {"split": "train"}
CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    # flags
    "nothing to probe": (lambda _: ["probe"], ("--encoder", "--embeddings")),
    "both": (of_files(None, None, "--encoder", "x"), ("either --encoder", "--embeddings")),
    "vectors without texts": (lambda _: ["probe", "--embeddings", "v.npy"], ("--texts", "go together")),
    "unknown flag": (of_encoder("--legnths", "8"), ("--legnths", "'--lengths'")),
    "lengths that are words": (of_encoder("--lengths", "8,many"), ("--lengths ('8,many')", "16,32,64")),
    "a length of nothing": (of_encoder("--lengths", "0"), ("lengths", "(0)", "greater than or equal to 1")),
    "longer than a chunk": (of_encoder("--lengths", "9"), ("--lengths (9)", "one chunk (8)")),
    "unknown size": (of_encoder("--size", "huge"), ("'huge'", "--size", "'large'")),
    "unknown rounding": (of_encoder("--bits", "int2"), ("'int2'", "--bits", "'int4'")),
    "no seeds": (of_encoder("--seeds", "0"), ("seeds (0)",)),
    "too few passages": (of_encoder("--passages", "3"), ("passages (3)", "8")),
    "a tokenizer for an encoder": (of_encoder("--tokenizer", "x"), ("--tokenizer is for --embeddings",)),
    "a layer for vectors": (of_files(None, None, "--layer", "1"), ("--layer needs --encoder",)),
    # audits
    "an audit of five texts": (
        lambda f: [p.unlink() for p in sorted((f / "corpus").iterdir())[5:]] and of_encoder("--audit")(f),
        ("5 documents are too few for an audit", "give 200 or more"),
    ),
    "a pattern without an audit": (of_encoder("--audit-pattern", "x=y"), ("--audit-pattern needs --audit",)),
    "a pattern without a name": (of_encoder("--audit", "--audit-pattern", "[0-9]+"), ("'[0-9]+'", "NAME=REGEX")),
    "a pattern that is broken": (of_encoder("--audit", "--audit-pattern", "x=("), ("pattern 'x' is no regular",)),
    "a store that is probed": (lambda _: ["probe", "--store", "s.mem"], ("--store with --audit",)),
    "a store and an encoder": (of_encoder("--store", "s.mem", "--audit"), ("--store and --encoder exclude",)),
    "no store there": (lambda f: ["probe", "--audit", "--store", str(f / "s.mem")], ("s.mem",)),
    "a model without a store": (of_encoder("--model", "m"), ("--model is for --store",)),
    # encoders
    "no encoder there": (lambda f: ["probe", "--encoder", str(f / "none")], ("none", "cannot load")),
    "an encoder without weights": (
        lambda f: ((f / "run" / "model.safetensors").unlink(), of_encoder()(f))[1],
        ("model.safetensors",),
    ),
    "an encoder without tokenizer": (
        lambda f: ([p.unlink() for p in (f / "llama").glob("tokenizer*")], of_model("llama")(f))[1],
        ("cannot load a tokenizer", "tokenizer.json"),
    ),
    "an unknown layer": (of_model("llama", "--layer", "7"), ("no layer 7", "to 2")),
    "cls of a causal model": (of_model("llama", "--pooling", "cls"), ("causal model", "'penultimate'")),
    "an unknown pooling": (of_model("bert", "--pooling", "maen"), ("'maen'", "'mean'")),
    "a layer of ours": (of_encoder("--layer", "1"), ("has a bottleneck of its own",)),
    "a prompt of ours": (of_encoder("--prompt", "x: "), ("has a bottleneck of its own", "--prompt")),
    "a prompt for vectors": (of_files(None, None, "--prompt", "x: "), ("--prompt needs --encoder",)),
    "a prompt that nobody declared": (of_model("bert", "--prompt", "query"), ("no prompt 'query'", "'query: '")),
    "code of a folder": (
        lambda f: (with_code(f / "bert"), of_model("bert")(f))[1],
        ("brings code of its own", "--trust-remote-code"),
    ),
    "pickled weights": (
        lambda f: ((f / "bert/model.safetensors").rename(f / "bert/pytorch_model.bin"), of_model("bert")(f))[1],
        ("pytorch_model.bin", "can run code"),
    ),
    "no such GGUF file": (of_model("llama", "--gguf-file", "q.gguf"), ("q.gguf", "GGUF")),
    # texts
    "two documents": (
        lambda f: (
            (shutil.rmtree(f / "corpus"), (f / "corpus").mkdir())
            and [(f / "corpus" / n).write_text(speech(1)) for n in "ab"]
            and of_encoder()(f)
        ),
        ("2 documents", "at least 3"),
    ),
    "texts too short": (of_model("bert", "--lengths", "4000"), ("has 4000 tokens", "--lengths")),
    "no text": (of_encoder("--text", "nowhere.txt"), ("no text at 'nowhere.txt'",)),
    # vectors and their texts
    "no vectors there": (
        lambda f: ["probe", "--embeddings", "no.npy", "--texts", "t", "--out", str(f / "o")],
        ("no vectors at 'no.npy'",),
    ),
    "vectors of another kind": (of_files(name="v.pt"), ("neither .safetensors nor .npy",)),
    "pickled vectors": (
        of_files(name="v.npy", write=lambda p: np.save(p, np.array([{"a": 1}], dtype=object), allow_pickle=True)),
        ("cannot read", "numpy.save"),
    ),
    "truncated vectors": (
        of_files(write=lambda p: p.write_bytes(b"\x10\0\0\0\0\0\0\0{")),
        ("v.safetensors", "damaged"),
    ),
    "other counts": (of_files(good_vectors(11)), ("11 vectors", "12 texts")),
    "NaN": (of_files(spoiled(float("nan"))), ("1 of 12 vectors", "NaN")),
    "infinity": (of_files(spoiled(float("inf"))), ("1 of 12 vectors", "infinity")),
    "constant vectors": (of_files(torch.ones(12, 4)), ("all 12 vectors", "the same")),
    "widths that change": (
        of_files({"a": good_vectors(6), "b": torch.randn(6, 5)}),
        ("vectors of 4 and of 5 numbers",),
    ),
    "one long vector": (of_files(torch.randn(12)), ("(12,)", "(texts, numbers)")),
    "texts that are not JSON": (of_files(None, b"{oops\n" * 12), ("t.jsonl:1", "is not JSON")),
    "texts without text": (of_files(None, [{"body": "a"}] * 12), ("t.jsonl:1", "'text'")),
    "texts that are not UTF-8": (of_files(None, b'{"text": "\xff"}\n' * 12), ("t.jsonl", "not UTF-8")),
    "an unknown split": (of_files(None, lines(split="test")), ("split 'test'", "held_out")),
    "some with a split": (of_files(None, [*lines(11, **SPLIT), *lines(1)]), ("some have none",)),
    "nothing held out": (of_files(None, lines(**SPLIT)), ("no text for validation",)),
    "a document on two sides": (
        of_files(
            None,
            [
                {**line, "document": "same", "split": split}
                for line, split in zip(lines(), ["train", "validation", "held_out"] * 4, strict=True)
            ],
        ),
        ("document 'same'", "train", "one part"),
    ),
    "texts of one document": (of_files(None, lines(document="one")), ("1 document ", "three ways")),
    # the table
    "a table too narrow": (
        lambda f: ["probe-table", "--out", str(f / "o"), "--hidden-size", "4"],
        ("--hidden-size (4)", "16"),
    ),
    "a table of no seeds": (lambda f: ["probe-table", "--out", str(f / "o"), "--seeds", "0"], ("seeds (0)",)),
    "a table of other settings": (
        lambda f: (
            ((f / "o").mkdir(), (f / "o" / "probe.json").write_text("{}")) and ["probe-table", "--out", str(f / "o")]
        ),
        ("the probe of another settings",),
    ),
    "a table of no text": (
        lambda f: ["probe-table", "--out", str(f / "o"), "--text", "nowhere.txt"],
        ("no text at 'nowhere.txt'",),
    ),
    # folders and caches
    "out is taken": (occupied, ("is not empty and holds no probe",)),
    "out holds another probe": (other_probe, ("the probe of another", "--out")),
    "out is a file": (lambda f: ((f / "o").write_text("x"), of_encoder()(f))[1], ("is a file, not a folder",)),
    "a cache of another encoder": (foreign_cache, ("was made with another encoder", "MEMLM_CACHE")),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_nothing_harmed(
    name: str,
    finished_run: Path,
    corpus: Path,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMLM_CACHE", str(tmp_path / "cache"))
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.copytree(corpus, tmp_path / "corpus")
    for family in ("llama", "bert"):
        saved(family, tmp_path / family, tokenizer)
    make, words = CASES[name]
    arguments = make(tmp_path)
    capsys.readouterr()
    refused(arguments, words, tmp_path, capsys)
    assert len(CASES) >= 25


def test_quick_takes_few_passages_unless_told_otherwise() -> None:
    quick = settings_of(_options(["--encoder", "x", "--quick"]), default=32)
    assert (quick.passages, quick.probe.size, quick.probe.steps) == (4096, "small", 40)
    told = settings_of(_options(["--encoder", "x", "--quick", "--passages", "50", "--steps", "7"]), default=32)
    assert (told.passages, told.probe.size, told.probe.steps) == (50, "small", 7)
    assert settings_of(_options(["--encoder", "x"]), default=32).passages == ProbeSettings().passages
