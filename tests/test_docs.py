"""Commands in docs/ run as they stand, at small settings."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from memlm.cli import claims, main
from memlm.data import made_up_notes
from memlm.reproduction import paper_table
from tests.conftest import speech
from tests.training.test_pretrained import decoder  # noqa: F401
from tests.training.test_processes import ended, launched

ROOT = Path(__file__).parent.parent
NEEDS_OTHERS = ("hellaswag", "--nnodes", "--gguf-file", "vectors.safetensors --texts texts.jsonl")
"""Parts of commands that need the internet, other machines, or files that a page only names."""
RUN = "--text SOURCE --data.vocab_size 300 --data.held_out 0.2 --training.batch_size 4 --training.evaluate_rows 4"
PROBE = "--passages 60 --held-out-passages 20 --steps 3 --writer-steps 2 --no-controls"
SMALL = {
    "autoencoder-pretrained": "--steps 3 --model.chunk_length 8 --model.hidden_size 8 --model.num_heads 2 "
    "--model.bottleneck_size 16 --data.held_out 0.2 --training.evaluate_rows 4",
    "memory-pretrained-input": "--steps 4 --model.chunk_length 4 --training.batch_size 4 --training.evaluate_rows 4",
    "memory-pretrained": f"{RUN} --steps 2 --model.chunk_length 8 --model.scored_tokens 4",
    "memory-tiny": f"{RUN} --steps 3",
    "memory-next-tiny": f"{RUN} --steps 3",
    "autoencoder-chunk-tiny": f"{RUN} --steps 3",
    "memory-curriculum-tiny": "--steps 6 --training.batch_size 4 --training.evaluate_rows 4",
    "eval-harness": "--text PROSE --questions 2",
    "evaluate": "--rows 8",
    "probe --encoder": f"--text SOURCE --size small {PROBE}",
    "probe --embeddings": f"--size small {PROBE}",
    "probe-compare": f"--text SOURCE --size small --length 8 --roundings none {PROBE}",
    "probe-table": "--text SOURCE --hidden-size 32 --num-heads 4 --steps 2 --passages 60 --held-out-passages 20 "
    "--seeds 1",
    "claims --quick": "--text SOURCE --workers 1",
    "claims --out": "--text SOURCE --share 0.004 --seeds 1 --max-documents 60 --workers 1",
    "bench inference": "--lengths 256 --batch-sizes 1",
    "--audit": "--text NOTES --held-out 0.4",
}
"""What is added to a command that contains these words."""


def commands(page: str) -> list[str]:
    """Return the indented commands, without comments; ";" separates two, and a line that ends with \\ goes on."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    found = [line.strip() for line in text.splitlines() if re.match(r"    (memlm|torchrun|python -m) ", line)]
    return [part.strip() for line in found for part in re.split(r"\s{2,}#", line)[0].split(" ; ")]


def runnable(page: str) -> list[str]:
    return [command for command in commands(page) if not any(part in command for part in NEEDS_OTHERS)]


def small(command: str, places: dict[str, str]) -> list[str]:
    added = " ".join(more for words, more in SMALL.items() if f" {words} " in f" {command} ")
    words = [places.get(word, word) for word in shlex.split(f"{command} {added}")]
    return [path for word in words for path in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


def run(command: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of memlm in this process, and return what it prints."""
    words = small(command, places)
    assert words[0] == "memlm"
    capsys.readouterr()
    code = main(words[1:])
    told = capsys.readouterr()
    assert code == 0, (words, told.err)
    return told.out


@pytest.fixture
def places(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return what the pages' capital words stand for, in a folder to work in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(speech(1))
    words = speech(3, 600).split()
    notes = [json.dumps({"id": note.id, "text": note.text}) + "\n" for note in made_up_notes(30)]
    (tmp_path / "notes.jsonl").write_text("".join(notes))
    sentences = [" ".join(words[i : i + 10]).rstrip(".") + "." for i in range(0, 600, 10)]
    (tmp_path / "prose.txt").write_text(" ".join(sentences * 8))
    return {"SOURCE": str(corpus), "PROSE": str(tmp_path / "prose.txt"), "NOTES": "notes.jsonl"}


def test_memory_decoder(places: dict[str, str], decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    page = (ROOT / "docs" / "memory-decoder.md").read_text(encoding="utf-8").replace("PATH_OR_HUB_ID", str(decoder))
    names: dict[str, Any] = {}
    places["PATH_OR_HUB_ID"] = str(decoder)
    trained = [command for command in runnable("memory-decoder.md") if command.startswith("memlm")]
    for command in trained:
        if "eval-harness" not in command or find_spec("lm_eval") is not None:
            run(command, places, capsys)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(block, names)  # the blocks of a page that is part of this repository
    assert (len(trained), len(blocks)) == (9, 8)
    assert names["tokens"].shape[0] == 2


def test_ask_a_long_document(
    places: dict[str, str],
    decoder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = "tutorials/ask-a-long-document.md"
    places["PATH_OR_HUB_ID"] = str(decoder)
    Path("questions.jsonl").write_text('{"question": "When?"}\n{"question": "Who?", "id": "second"}\n')
    monkeypatch.setattr("sys.stdin", StringIO("When was it received?\nAnd then?\n"))
    told = {command: run(command, places, capsys) for command in runnable(page)}
    [answers] = [out for command, out in told.items() if "--json" in command]
    assert [json.loads(line)["id"] for line in answers.splitlines()][1] == "second"
    assert len(told) == 7
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("PATH_OR_HUB_ID", str(decoder))
    [block] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block, {})


@pytest.mark.filterwarnings("ignore")
def test_pretrained(places: dict[str, str], decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    places["PATH_OR_HUB_ID"] = str(decoder)
    done = 0
    for number, command in enumerate(runnable("pretrained.md")):
        if "--store" in command:
            assert main(["remember", "notes/a.md", "--model", "runs/with-memory", "--store", "notes.mem"]) == 0
        if "eval-harness" in command:
            pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
        run(command.replace(" out/", f" out-{number}"), places, capsys)
        done += 1
    assert done >= 8


def test_distributed(places: dict[str, str]) -> None:
    done = 0
    for command in runnable("distributed.md"):
        if command.startswith("python -m benchmarks"):
            continue
        words = small(command, places)
        code, error = ended(launched(*words[words.index("memlm") + 1 :]))
        assert code == 0, (command, error)
        done += 1
    assert done == 4


def test_memory(places: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for command in runnable("memory.md"):
        run(command, places, capsys)
    assert len(runnable("memory.md")) == 4


def test_store(places: dict[str, str], memory_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(memory_run, "runs/memory")
    told = {command: run(command, places, capsys) for command in runnable("store.md") if "torchrun" not in command}
    assert told["memlm recall notes.mem notes/a.md"] == Path("notes/a.md").read_text()
    assert len(told) == 9


@pytest.mark.filterwarnings("ignore")
def test_probe(
    places: dict[str, str],
    finished_run: Path,
    decoder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished_run, "runs/demo")
    places |= {"PATH_OR_HUB_ID": str(decoder), "PATH": "runs/demo", "16,32,64": "4,8", "64": "8"}
    assert main(["remember", "notes.jsonl", "--model", "runs/demo", "--store", "notes.mem"]) == 0
    for number, command in enumerate(runnable("probe.md")):
        run(command if "--out" in command else f"{command} --out runs/probe-{number}", places, capsys)
    measured = [Path(f"runs/{name}/measurements.jsonl").read_text() for name in ("direct", "stored")]
    assert len(measured[0].splitlines()) > 5


@pytest.mark.filterwarnings("ignore")
def test_what_do_your_vectors_give_away(
    places: dict[str, str],
    decoder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = "tutorials/what-do-your-vectors-give-away.md"
    places |= {"PATH_OR_HUB_ID": str(decoder), "48": "24", "100": "3"}
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    make, look = (block.replace("made_up_notes(3000)", "made_up_notes(30)") for block in blocks)
    exec(make, {})  # the blocks of a page that is part of this repository
    told = {command.split(" --out ")[-1]: run(command, places, capsys) for command in runnable(page)}
    exec(look, {})
    assert len(told) == 4
    assert "no text has" in told["runs/audit"]
    assert "domains" in told["runs/audit-patterns"]
    assert told["runs/audit-store"].startswith("This store keeps its texts themselves, deflated")
    assert len(Path("runs/audit/audit.jsonl").read_text().splitlines()) > 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_check_the_paper(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(claims, "QUICK", {"share": 0.004, "seeds": 1})
    monkeypatch.setattr(paper_table, "ROWS", paper_table.ROWS[:2])
    page = "tutorials/check-the-paper.md"
    for command in runnable(page):
        if command == "memlm claims --out runs/claims":
            # with the settings of the quick one, so that the trainings which are there are not made again
            shutil.copytree("runs/claims-quick", "runs/claims")
        printed = "" if command.startswith("python") else run(command, places, capsys)
        if " claims " in command:
            assert printed.count("| holds |") + printed.count("| does not hold here |") == 9
            assert printed.count("| not testable here |") == 2
    assert Path("runs/claims/claims.html").is_file()
    assert Path("runs/claims/measurements.jsonl").is_file()
    modules = re.findall(r"python -m (benchmarks\.\w+)", " ".join(commands(page)))
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in modules)
