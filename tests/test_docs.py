"""Commands in docs/pretrained.md and docs/distributed.md run as they stand, at small settings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from memlm.cli import main
from tests.conftest import speech
from tests.training.test_pretrained import decoder  # noqa: F401
from tests.training.test_processes import ended, launched

ROOT = Path(__file__).parent.parent
SMALL = {
    "autoencoder-pretrained": "--steps 3 --model.chunk_length 8 --model.hidden_size 8 --model.num_heads 2 "
    "--model.bottleneck_size 16 --data.held_out 0.2 --training.evaluate_rows 4",
    "memory-pretrained-input": "--steps 4 --model.chunk_length 4 --training.batch_size 4 --training.evaluate_rows 4",
    "memory-tiny": "--text SOURCE --steps 3 --data.vocab_size 300 --data.held_out 0.2 --training.batch_size 4 "
    "--training.evaluate_rows 4",
    "eval-harness": "--text PROSE --questions 2",
    "evaluate": "--rows 8",
}
"""What is added to a command, by a word in it."""


def commands(page: str) -> list[str]:
    """Indented lines that begin with a command, without comments; a line that ends with \\ goes on."""
    text = (ROOT / "docs" / page).read_text().replace("\\\n", " ")
    found = [line.strip() for line in text.splitlines() if re.match(r"    (memlm|torchrun) ", line)]
    return [re.split(r"\s{2,}#", line)[0] for line in found]


def small(command: str, places: dict[str, str]) -> list[str]:
    added = " ".join(more for word, more in SMALL.items() if f" {word} " in f" {command} ")
    words = shlex.split(f"{command} {added}")
    return [places.get(word, word) for word in words]


@pytest.fixture
def places(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A folder to work in, and what the pages' capital words stand for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(speech(1))
    words = speech(3, 600).split()
    sentences = [" ".join(words[i : i + 10]).rstrip(".") + "." for i in range(0, 600, 10)]
    (tmp_path / "prose.txt").write_text(" ".join(sentences * 8))
    return {"SOURCE": str(corpus), "PROSE": str(tmp_path / "prose.txt")}


@pytest.mark.filterwarnings("ignore")
def test_pretrained(places: dict[str, str], decoder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    places["PATH_OR_HUB_ID"] = str(decoder)
    done = 0
    for number, command in enumerate(commands("pretrained.md")):
        if "hellaswag" in command:  # needs the internet
            continue
        words = small(command, places)
        if "export" in words:
            words[words.index("out/")] = f"out-{number}"
        if "--store" in words:
            assert main(["remember", "notes/a.md", "--model", "runs/with-memory", "--store", "notes.mem"]) == 0
        if words[1] == "eval-harness":
            pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
        assert words[0] == "memlm"
        assert main(words[1:]) == 0, (command, capsys.readouterr().err)
        done += 1
    assert done >= 8


def test_distributed(places: dict[str, str]) -> None:
    done = 0
    for command in commands("distributed.md"):
        if "--nnodes" in command:  # needs other machines
            continue
        words = small(command, places)
        words = [w for word in words for w in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
        code, error = ended(launched(*words[words.index("memlm") + 1 :]))
        assert code == 0, (command, error)
        done += 1
    assert done == 5
