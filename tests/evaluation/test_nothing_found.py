"""Vectors that say nothing are reported as such, never with a share; a reading that did not learn is inconclusive."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.data import Document
from memlm.evaluation.probe.retention import Retention
from tests.conftest import speech
from tests.evaluation.test_retention import LinearCode, settings


class Noise(LinearCode):
    name = "noise"

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), self.width, generator=torch.Generator().manual_seed(len(texts)))


class Constant(LinearCode):
    name = "constant"

    def encode(self, texts: Sequence[str]) -> Tensor:
        return torch.ones(len(texts), self.width)


class Shuffled(LinearCode):
    name = "shuffled"

    def encode(self, texts: Sequence[str]) -> Tensor:
        return super().encode(texts)[torch.randperm(len(texts), generator=torch.Generator().manual_seed(1))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Controls are the same for all vectors, so they are trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("kind", [Noise, Constant, Shuffled])
def test_vectors_without_their_text_give_nothing(
    kind: type[LinearCode], tmp_path: Path, cache: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    encoder = kind(tokenizer)
    encoder.fingerprint = encoder.name
    documents = [Document(f"d{i}", speech(i, words=200)) for i in range(20)]
    probe = {"size": "small", "steps": 4, "batch_size": 32, "evaluate_every": 4, "learning_rate": 3e-2}
    chosen = settings(passages=510, control_steps=30, writer_steps=16, word_passes=1, probe=probe)
    result = Retention.measure(encoder, documents, out=tmp_path / "out", settings=chosen, cache=cache)
    assert {reading.kind.name: reading.status for reading in result.readings()} == dict.fromkeys(
        ("usable_share", "word_f1", "token_accuracy", "position_accuracy", "written_token_f1"), "nothing found"
    )
    assert result.sentence().startswith(f"Nothing was found: one 40-number vector of {kind.name} gives no more than")
    assert result.verdict()["status"] == "nothing found"
    for line in (result.sentence(), *map(str, result.readings())):
        assert "%" not in line
        assert not re.search(r"\d", re.sub("40-number|F1", "", line))


def test_a_probe_that_was_stopped_after_three_steps_is_inconclusive_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": speech(i, words=12), "document": f"d{i % 60}"}) + "\n" for i in range(760)]
    Path("texts.jsonl").write_text("".join(lines))
    save_file({"vectors": torch.randn(760, 16, generator=torch.Generator().manual_seed(0))}, "vectors.safetensors")
    command = ["probe", "--embeddings", "vectors.safetensors", "--texts", "texts.jsonl", "--lengths", "8"]
    command += ["--size", "small", "--steps", "3", "--writer-steps", "3", "--no-one-pass-controls", "--held-out", "0.2"]
    assert main([*command, "--out", "o"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Inconclusive: nothing can be said of one 16-number vector of vectors (" in told
    assert "nothing can be said of the information: inconclusive (the decoder did not learn to write" in told
    assert "try more passages, more steps or a larger probe." in told
    assert main([*command, "--out", "o", "--json"]) == 0
    verdict = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert verdict == json.loads(Path("o/verdict.json").read_text())
    statuses = {reading["reading"]: reading["status"] for reading in verdict["readings"]}
    assert statuses["usable_share"] == statuses["token_accuracy"] == "inconclusive"
    assert verdict["headline"].startswith("Inconclusive")
    page = Path("o/report.html").read_text()
    assert '<p class="headline">Inconclusive: nothing can be said' in page
