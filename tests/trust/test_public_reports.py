"""Faults that users reported, each as a command on small inputs of our own: the kinds, and the test of each."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from memlm.cli import main
from memlm.encoders import open_encoder
from tests.conftest import speech
from tests.encoders.embedders import LONG, MEAN, WIDTH, embedder

Capture = pytest.CaptureFixture[str]

REPORTS = {
    "two writers create one store": "trust/test_folders: two_creators_of_one_store_both_keep_their_documents",
    "one of two writers is killed": "trust/test_killed: two_creators_of_one_store_of_whom_one_is_killed",
    "a folder that memlm did not write is replaced": "trust/test_folders: a_session_is_not_saved_over_a_diary",
    "an encoder's declaration is read by half": "encoders/test_declared: every_case_equals_sentence_transformers",
    "an encoder-decoder as an encoder": "trust/test_public_reports: an_encoder_decoder_is_probed",
    "positions that begin behind the padding": "trust/test_public_reports: a_text_beyond_the_last_position_is_encoded",
    "the code of a model's folder runs": "trust/test_code: code_of_a_model_folder_does_not_run",
    "vectors stand beside the wrong texts": "cli/test_text_inputs: shards_are_joined_by_their_numbers",
    "two readers of one format differ": "trust/test_public_reports: a_line_separator_within_a_text_ends_no_record",
    "one bad item stops a source": "trust/test_public_reports: one_bad_item_stops_no_source",
    "hidden folders are read as texts": "trust/test_public_reports: hidden_folders_and_environments_are_no_texts",
    "formats are known by an exact suffix": "trust/test_public_reports: formats_are_known_whatever_their_case",
    "another field holds the text": "trust/test_public_reports: a_run_is_measured_on_another_field",
}
"""What was reported, and the test that fails where it is so here."""


@pytest.mark.parametrize("report", REPORTS)
def test_every_report_has_a_test(report: str) -> None:
    file, name = REPORTS[report].split(": ")
    tree = ast.parse((Path(__file__).parent.parent / f"{file}.py").read_text(encoding="utf-8"))
    assert f"test_{name}" in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob("*.draft"))


def records(path: Path, field: str = "text", between: str = " ") -> Path:
    """Write texts of twenty speeches as JSONL."""
    texts = (speech(i).replace(" of ", f"{between}of ") for i in range(20))
    path.write_text("".join(json.dumps({field: text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def probed(*source: str) -> int:
    short = (
        "--lengths",
        "8",
        "--no-controls",
        "--steps",
        "1",
        "--size",
        "small",
        "--writer-steps",
        "0",
        "--quick",
        "--passages",
        "60",
    )
    return main(["probe", *source, *short, "--out", "out"])


def test_an_encoder_decoder_is_probed(here: Path) -> None:
    embedder(here / "t5", ("Pooling", MEAN), ("Normalize", None), backbone="t5-whole")
    assert probed("--encoder", "t5", "--text", f"{records(here / 't.jsonl')}") == 0
    assert (here / "out" / "probe.json").is_file()


@pytest.mark.parametrize("backbone", ["roberta", "mpnet"])
def test_a_text_beyond_the_last_position_is_encoded(backbone: str, here: Path) -> None:
    encoder = open_encoder(embedder(here / backbone, backbone=backbone, declared=False))
    assert encoder.encode([LONG]).shape == (1, WIDTH)


def test_a_line_separator_within_a_text_ends_no_record(here: Path, capsys: Capture) -> None:
    np.save(here / "v.npy", np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32))
    records(here / "t.jsonl", between="\u2028\u2029\x85\x0c")
    assert probed("--embeddings", "v.npy", "--texts", "t.jsonl") == 0, capsys.readouterr().err


BAD_ITEMS = {
    "an empty file": ("package", {"package/__init__.py": b"", "package/a.py": speech(1).encode() * 9}),
    "a text that is null": ("r.jsonl", {}),
    "a byte that is not UTF-8": ("latin.txt", {"latin.txt": speech(1).encode() * 9 + b"caf\xe9\n"}),
}


@pytest.mark.parametrize("item", BAD_ITEMS)
def test_one_bad_item_stops_no_source(item: str, here: Path, capsys: Capture) -> None:
    source, files = BAD_ITEMS[item]
    for name, content in files.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_bytes(content)
    with records(here / "r.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"text": null}\n')
    sizes = ["--steps", "1", "--data.vocab_size", "300", "--training.evaluate_rows", "4", "--no-progress"]
    command = ["train", "autoencoder-tiny", "--text", source, *sizes, "--out"]
    assert main([*command, "out"]) == 0
    assert "memlm: note: " in capsys.readouterr().err
    if item != "an empty file":
        assert main([*command, "strict", "--strict"]) == 2


def test_hidden_folders_and_environments_are_no_texts(here: Path, finished_run: Path) -> None:
    from memlm.data import load_documents

    for name in (".git/config", ".venv/lib/a.py", "env/pyvenv.cfg", "env/lib/b.py", "notes/.c.md.swp", "notes/d.md"):
        (here / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "project" / name).write_text(speech(1))
    assert [document.id for document in load_documents("project")] == ["project/notes/d.md"]
    assert main(["remember", "project", "--store", "s", "--model", str(finished_run)]) == 0
    assert main(["recall", "s", "project/notes/d.md"]) == 0


def test_formats_are_known_whatever_their_case(here: Path) -> None:
    from memlm.data import load_documents

    records(here / "A.JSONL").rename(here / "OK.JSONL")
    texts = [speech(i) for i in range(20)]
    (here / "Table.CSV").write_text("id,text\n" + "".join(f'{i},"{text}"\n' for i, text in enumerate(texts)))
    (here / "array.Json").write_text(json.dumps([{"id": i, "text": text} for i, text in enumerate(texts)]))
    for name in ("OK.JSONL", "Table.CSV", "array.Json"):
        assert [document.text for document in load_documents(name)] == texts


def test_a_run_is_measured_on_another_field(here: Path, finished_run: Path, capsys: Capture) -> None:
    records(here / "c.jsonl", field="content")
    command = ["evaluate", str(finished_run), "--text", "c.jsonl", "--json"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "no field 'text'" in error
    assert "--text-field" in error
    assert main([*command, "--text-field", "content"]) == 0
    assert "token_accuracy" in capsys.readouterr().out
