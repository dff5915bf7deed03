"""Files from outside run no code, contact no hub and do not hang, whatever is on standard input."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import memlm
from memlm.checksums import SUMS
from memlm.cli import main
from memlm.data.records import Value
from memlm.errors import CheckpointError, DamagedStoreError
from memlm.files import sealed_text
from memlm.models.runtime import load_decoder
from memlm.store import MemoryStore
from memlm.store.format.header import NAME as HEADER_NAME
from memlm.switches import TRUST_REMOTE_CODE
from memlm.training import train_run
from memlm.training.config import RunConfig
from tests.conftest import speech
from tests.store.test_memory_store import HEADER, document

Lines = tuple[int, list[str]]


@pytest.fixture
def yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input that agrees to everything."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))


@pytest.fixture
def decoder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A small decoder that transformers knows."""
    folder, sizes = tmp_path / "decoder", {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **sizes)  # type: ignore[arg-type]
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hostile(decoder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The decoder with code of its own in its configuration, its model and its tokenizer; and the code's marker."""
    marker = tmp_path / "it ran"
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import *\n"
    code += "class C(LlamaConfig):\n    model_type = 'strange'\nclass M(LlamaForCausalLM):\n    config_class = C\n"
    (decoder / "code.py").write_text(code + "class T(PreTrainedTokenizerFast):\n    pass\n")
    autos = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoModelForCausalLM": "code.M"}
    change(decoder / "config.json", model_type="strange", auto_map=autos)
    change(decoder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.T", "code.T"]}, tokenizer_class="T")
    return decoder, marker


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> Lines:
    code = main(arguments)
    return code, [line for line in capsys.readouterr().err.splitlines() if line.startswith("memlm: error:")]


ON_A_MODEL: dict[str, Callable[[Path, Path, Path], list[str]]] = {
    "probe": lambda model, text, out: [
        *("probe", "--encoder", f"{model}", "--text", f"{text}", "--out", f"{out}", "--lengths", "8"),
        *("--passages", "60", "--held-out-passages", "4", "--steps", "1", "--size", "small", "--writer-steps", "0"),
    ],
    "train": lambda model, text, out: [
        *("train", "memory-pretrained", "--decoder", f"{model}", "--text", f"{text}", "--steps", "2"),
        *("--out", f"{out}"),
    ],
    "remember": lambda model, text, out: ["remember", f"{text}", "--store", f"{out}", "--model", f"{model}"],
    "generate": lambda model, text, out: ["generate", "word", "--read", f"{text}", "--model", f"{model}"],
    "ask": lambda model, text, out: ["ask", "who?", "--text", f"{text}", "--model", f"{model}"],
    "chat": lambda model, text, out: ["chat", "--text", f"{text}", "--model", f"{model}"],
    "eval-harness": lambda model, text, out: ["eval-harness", "--model", f"{model}", "--out", f"{out}"],
    "eval-harness --hf": lambda model, text, out: [
        *("eval-harness", "--model", f"{model}", "--hf", f"{model}", "--out", f"{out}")
    ],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("yes")
@pytest.mark.parametrize("command", ON_A_MODEL)
def test_code_of_a_model_folder_does_not_run(
    command: str, hostile: tuple[Path, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, marker = hostile
    code, lines = said(capsys, ON_A_MODEL[command](folder, corpus, tmp_path / "out"))
    assert (code, len(lines)) == (2, 1)
    assert "brings code of its own" in lines[0]
    assert "--trust-remote-code" in lines[0]
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ON_A_MODEL)
def test_code_of_a_model_folder_runs_where_it_is_trusted(
    command: str, hostile: tuple[Path, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = hostile
    arguments = ON_A_MODEL[command](folder, corpus, tmp_path / "out")

    def stop(*_: object, **__: object) -> None:
        raise CheckpointError("the code has run")  # what follows is the business of other tests

    monkeypatch.setattr(LlamaForCausalLM, "__init__", stop)
    assert main([*arguments, "--trust-remote-code"]) == 2
    assert marker.exists()
    assert not TRUST_REMOTE_CODE.is_on()


@pytest.mark.usefixtures("yes")
def test_code_of_an_encoder_that_a_store_names_does_not_run(
    hostile: tuple[Path, Path], finished_run: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, (folder, marker) = tmp_path / "a.mem", hostile
    assert main(["remember", str(corpus), "--store", str(store), "--model", str(finished_run)]) == 0
    header = json.loads((store / HEADER_NAME).read_text())
    del header["sha256"]
    header |= {"retrieval": "x", "retrieval_numbers": 16, "retrieval_model": str(folder)}
    (store / HEADER_NAME).write_text(sealed_text(header, indent=2))
    code, lines = said(capsys, ["search", str(store), "people"])
    assert (code, len(lines)) == (2, 1)
    assert not marker.exists()


def test_weights_that_can_run_code_are_refused_with_advice(decoder: Path) -> None:
    torch.save({}, decoder / "pytorch_model.bin")
    (decoder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights in pytorch_model\.bin; only safetensors are read.*Convert it"):
        load_decoder(str(decoder))
    with pytest.raises(memlm.MemlmError, match=r"weights in pytorch_model\.bin; only safetensors are read.*Convert it"):
        memlm.open_encoder(str(decoder))
    (decoder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/where"}')
    (decoder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="holds adapters of another model; merge them"):
        load_decoder(str(decoder))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["memlm_recall", "stranger"])
def test_tasks_that_come_with_a_run_are_not_read(
    task: str, memory_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    run, marker = tmp_path / "run", tmp_path / "it ran"
    shutil.copytree(memory_run, run)
    tasks = run / "harness" / "tasks"
    tasks.mkdir(parents=True)
    (tasks / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef f(x):\n    return x\n")
    for name in ("stranger", "memlm_recall", "other"):
        (tasks / f"{name}.yaml").write_text(f"task: {task}\ndataset_path: json\nprocess_docs: !function code.f\n")
    code, lines = said(capsys, ["eval-harness", "--model", str(run), "--tasks", task, "--limit", "1"])
    assert not marker.exists()
    assert code == 2, lines  # the tiny run's text is too short for a question, and there is no such task


def test_a_store_never_makes_search_ask_the_hub(
    finished_run: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    store = tmp_path / "a.mem"
    assert main(["remember", str(corpus), "--store", str(store), "--model", str(finished_run)]) == 0
    before = json.loads((store / HEADER_NAME).read_text())
    del before["sha256"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for kind in ("socket.create_connection", "socket.getaddrinfo"):
        monkeypatch.setattr(kind, asked)
    header = before | {"retrieval": "x", "retrieval_numbers": 16, "retrieval_model": "stranger/encoder"}
    (store / HEADER_NAME).write_text(sealed_text(header, indent=2))
    code, lines = said(capsys, ["search", str(store), "people"])
    assert (code, len(lines)) == (2, 1)
    assert "'stranger/encoder', which is not on this machine" in lines[0]


def test_a_run_on_text_of_the_hub_is_measured_on_other_text_without_asking_it(
    tiny_config: RunConfig,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def hub(name: str) -> Iterator[Value]:
        asked.append(name)
        return (Value(f"{i}", {"text": speech(i)}) for i in range(10))

    monkeypatch.setattr("memlm.data.sources._read_hub", hub)
    data = tiny_config.data.model_copy(update={"text": "hub:stranger/texts"})
    run = str(train_run(tiny_config.model_copy(update={"data": data}), tmp_path / "run", progress=False).path)
    assert asked == ["stranger/texts"]
    assert main(["evaluate", run, "--text", str(corpus)]) == 0
    assert asked == ["stranger/texts"]
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, lines = said(capsys, ["evaluate", run])
    assert (code, len(lines)) == (2, 1)
    assert "cannot read 'stranger/texts' from the Hub (HF_HUB_OFFLINE is set)" in lines[0]


def test_an_index_whose_table_is_an_endless_view_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a.mem"
    MemoryStore.create(folder, HEADER)
    with MemoryStore.open(folder, write=True) as store:
        store.add([document("a")])
    with sqlite3.connect(folder / "index.sqlite") as index:
        columns = ", ".join(row[1] for row in index.execute("PRAGMA table_info(documents)"))
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x"
        index.execute("DROP TABLE documents")
        index.execute(f"CREATE VIEW documents({columns}) AS {endless} {', x' * columns.count(',')} FROM n")
    index.close()
    began = time.monotonic()
    assert "description of its tables" in MemoryStore.verify(folder)[0]
    with pytest.raises(DamagedStoreError, match="description of its tables"):
        MemoryStore.open(folder)
    assert time.monotonic() - began < 2


def test_the_name_of_a_recipe_is_no_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("recipe: ../../x\n")
    code, lines = said(capsys, ["train", "--config", "mine.yaml", "--steps", "1"])
    assert (code, len(lines)) == (2, 1)
    assert "recipe" in lines[0]
    assert not (tmp_path / "runs").exists()


def test_checksums_name_no_file_outside_of_their_folder(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (tmp_path / "diary.txt").write_text(speech(0))
    change(run / SUMS, files={"../diary.txt": "0" * 64})
    with pytest.raises(CheckpointError, match=r"checksums\.json' is damaged"):
        memlm.load(run)
