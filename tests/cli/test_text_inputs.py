"""Commands read any source of text in one way: formats, fields, bad items and folders."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from memlm.cli import main
from memlm.cli.arguments import _with_positionals_first  # pyright: ignore[reportPrivateUsage]
from memlm.cli.generate import Generate
from memlm.cli.remember import Remember
from memlm.data import Passages
from memlm.errors import DataError
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset
from memlm.evaluation.probe.ready_made import export, read_ready_made, read_vectors
from memlm.training import RunFolder
from tests.conftest import speech

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_records(path: Path, field: str = "text", rows: int = 12) -> None:
    lines = [json.dumps({"id": i, "meta": {field: speech(i)}, field: speech(i)}) for i in range(rows)]
    path.write_text("\n".join([*lines, json.dumps({"id": 99, field: None})]))


def test_training_leaves_bad_items_out_and_keeps_the_field(here: Path, capsys: Capture) -> None:
    write_records(here / "bad.JSONL", "body")
    flags = ["--training.steps", "1", "--data.vocab_size", "300", "--no-progress", "--out", "out"]
    command = ["train", "autoencoder-tiny", "--text", "bad.JSONL", *flags]
    assert main(command) == 2
    assert "no field 'text'" in capsys.readouterr().err
    assert main([*command, "--text-field", "meta.body", "--strict"]) == 2
    assert "bad.JSONL:13" in capsys.readouterr().err
    assert main([*command, "--text-field", "meta.body"]) == 0
    assert "memlm: note: left out 1 of 13 items of 'bad.JSONL'" in capsys.readouterr().err
    data = RunFolder.open("out").config().data
    assert (data.text_field, data.strict) == ("meta.body", False)
    # the field of the run is the default of what is measured
    assert main(["evaluate", "out", "--text", "bad.JSONL", "--json"]) == 0
    assert "left out 1 of 13" in capsys.readouterr().err
    assert main(["evaluate", "out", "--text", "bad.JSONL", "--text-field", "nothing"]) == 2
    assert "no field 'nothing'" in capsys.readouterr().err
    assert main(["evaluate", "out", "--text", "bad.JSONL", "--strict"]) == 2
    assert main(["evaluate", "out", "--strict"]) == 2


def test_a_store_remembers_folders_and_records(here: Path, memory_run: Path, capsys: Capture) -> None:
    (here / "notes" / ".git").mkdir(parents=True)
    (here / "notes" / ".git" / "config").write_text("x")
    (here / "notes" / "a\u200db\u202fc\u3000d.md").write_text("one")
    (here / "notes" / "picture.png").write_bytes(b"\x89PNG\0")
    (here / "notes" / "bad.txt").write_bytes(b"\xff")
    write_records(here / "notes" / "r.jsonl", "body", rows=2)
    command = ["remember", "notes", "--store", "s", "--model", str(memory_run), "--text-field", "body"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert "3 written; 3 documents" in out
    assert "1 hidden" in err
    assert "1 binary" in err
    assert "2 unreadable" in err
    assert main(command) == 0
    assert "3 unchanged" in capsys.readouterr().out
    assert main(["recall", "s", "notes/r.jsonl:1"]) == 0
    assert capsys.readouterr().out == speech(1)
    assert main(["recall", "s", "notes/a\u200db\u202fc\u3000d.md"]) == 0
    assert capsys.readouterr().out == "one"
    assert main([*command, "--strict"]) == 2


def test_a_prompt_behind_files_is_a_prompt(here: Path, memory_run: Path, capsys: Capture) -> None:
    (here / "a.txt").write_text(speech(1))
    command = ["generate", "--model", str(memory_run), "--max-new-tokens", "1", "--read", "a.txt", "And then"]
    assert main(command) == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--read", "a", "p"], ["p", "--read", "a"]),
        (["--read", "a", "b", "p"], ["p", "--read", "a", "b"]),
        (["p", "--read", "a", "b"], ["p", "--read", "a", "b"]),
        (["--read", "p"], ["--read", "p"]),
        (["--read", "a", "p", "--seed", "1"], ["p", "--read", "a", "--seed", "1"]),
        (["--seed", "1", "p", "--read", "a", "b"], ["--seed", "1", "p", "--read", "a", "b"]),
        (["--sample", "p", "--read", "a", "b"], ["--sample", "p", "--read", "a", "b"]),
    ],
)
def test_the_last_value_of_a_list_is_the_prompt_that_is_missing(given: list[str], expected: list[str]) -> None:
    assert _with_positionals_first(Generate, given) == expected
    assert _with_positionals_first(Remember, given) == given


# vectors


def shards(*names: str) -> dict[str, Tensor]:
    return {name: torch.full((2, 3), float(i)) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    "names",
    [
        tuple(f"shard{i}" for i in range(12)),
        tuple(f"model-{i:05d}-of-00011" for i in range(1, 12)),
        tuple(f"layer3.part{i}.v2" for i in range(11)),
        tuple(str(i) for i in range(20)),
    ],
)
def test_shards_are_joined_by_their_numbers(names: tuple[str, ...], here: Path) -> None:
    arrays = shards(*names)
    save_file(arrays, here / "v.SAFETENSORS")
    assert torch.equal(read_vectors("v.SAFETENSORS"), torch.cat([arrays[name] for name in names]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (shards("train", "test"), "have no order"),
        (shards("a1b1", "a2b2"), "have no order"),
        (shards("shard0", "shard2"), "shard 1 of"),
        (shards("shard1", "shard01"), "have no order|there twice"),
        (shards("shard2", "shard3"), "is missing"),
        ({"v": torch.ones(3, 2, dtype=torch.complex64)}, "complex64"),
        ({"v": torch.ones(3, 2, dtype=torch.bool)}, "bool"),
        ({"v": torch.ones(3)}, "each must be"),
    ],
)
def test_vectors_without_an_order_are_refused(arrays: dict[str, Tensor], message: str, here: Path) -> None:
    save_file(arrays, here / "v.safetensors")
    with pytest.raises(DataError, match=message):
        read_vectors("v.safetensors")


@pytest.mark.parametrize("kind", ["complex64", "bool", "U3", "object", "M8[s]", "zip", "claim", "empty"])
def test_numpy_files_of_something_else_are_refused(kind: str, here: Path) -> None:
    path = here / "v.npy"
    if kind == "zip":
        np.savez(here / "v.npz", a=np.ones((3, 2)))
        (here / "v.npz").rename(path)
    elif kind == "claim":
        np.save(path, np.ones((3, 2), np.float32))
        path.write_bytes(path.read_bytes().replace(b"(3, 2), }" + b" " * 13, b"(3, 2000000000000), }" + b" "))
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        np.save(path, np.zeros((3, 2)).astype(kind), allow_pickle=True)
    with pytest.raises(DataError, match=r"v\.npy"):
        read_vectors(str(path))


def texts_of(rows: int, **more: Callable[[int], Any]) -> str:
    records = [{"text": speech(i, 5), **{k: f(i) for k, f in more.items()}} for i in range(rows)]
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def test_vectors_pair_with_texts_by_key(here: Path) -> None:
    rows = 12
    (here / "t.jsonl").write_text(texts_of(rows, id=lambda i: f"id{rows - i}"))
    save_file({f"id{i}": torch.full((4,), float(i)) for i in range(1, rows + 1)}, here / "v.safetensors")
    ready = read_ready_made("v.safetensors", "t.jsonl", held_out=0.2, seed=0)
    for part in PARTS:
        for text, vector in zip(ready.passages[part].texts, ready.vectors[part], strict=True):
            assert text == speech(rows - int(vector[0]), 5)


def test_texts_are_read_as_everywhere(here: Path) -> None:
    np.save(here / "v.npy", np.random.default_rng(0).normal(size=(12, 4)))
    content = "\ufeff" + texts_of(12).replace(" of ", "\u2028of ").replace(" the ", "\u2028the ")
    (here / "t.jsonl.gz").write_bytes(gzip.compress(content.encode()))
    ready = read_ready_made("v.npy", "t.jsonl.gz", held_out=0.2, seed=0)
    assert sum("\u2028" in text for part in PARTS for text in ready.passages[part].texts) > 0
    (here / "t.csv").write_text("body,document\n" + "".join(f'"{speech(i, 5).strip()}",\n' for i in range(12)))
    ready = read_ready_made("v.npy", "t.csv", held_out=0.2, seed=0, text_field="body")
    assert sum(len(p) for p in ready.vectors.values()) == 12
    # a text that is left out would move all others to other vectors
    (here / "t.jsonl").write_text(texts_of(11) + '{"text": null}\n')
    with pytest.raises(DataError, match="t.jsonl:12"):
        read_ready_made("v.npy", "t.jsonl", held_out=0.2, seed=0)


ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(ANY, min_size=6, max_size=6),
    names=st.lists(st.text(st.characters(), max_size=4), min_size=6, max_size=6, unique=True),
)
@pytest.mark.parametrize("packed", [False, True])
def test_an_export_reads_itself_back(texts: list[str], names: list[str], packed: bool, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "export"
    shutil.rmtree(folder, ignore_errors=True)
    passages = {
        part: Passages(tuple(texts[2 * i : 2 * i + 2]), torch.tensor([0, 1]), tuple(names[2 * i : 2 * i + 2]))
        for i, part in enumerate(PARTS)
    }
    vectors = {part: torch.randn(2, 3) for part in PARTS}
    export(Mock(spec=ProbeDataset, passages=passages, tokenizer=Mock()), vectors, folder)
    path = folder / "texts.jsonl"
    if packed:
        (folder / "texts.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = folder / "texts.jsonl.gz"
    ready = read_ready_made(str(folder / "vectors.safetensors"), str(path), held_out=0.2, seed=0)
    for part in PARTS:
        assert ready.passages[part].texts == passages[part].texts
        assert torch.equal(ready.vectors[part], vectors[part])
