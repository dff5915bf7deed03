"""The retention meter: vectors that hold everything, nothing, and from a file; nothing held out is ever seen."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.data import Document, Passages, encode_texts, pad_id, split_documents
from memlm.errors import RunFolderError
from memlm.evaluation.probe import probes
from memlm.evaluation.probe import retention as meter
from memlm.evaluation.probe.dataset import dataset_of_passages
from memlm.evaluation.probe.duration import Estimate, trained_decoders
from memlm.evaluation.probe.ready_made import read_ready_made
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.settings import ProbeSettings
from memlm.training.schema import checked
from tests.conftest import speech

LENGTH = 8
DOCUMENTS = [Document(f"d{i}", speech(i, words=200)) for i in range(12)]


class LinearCode:
    """Each position's token as five numbers of its own: everything is there, and easy to read."""

    name = "linear-code"
    width = 5 * LENGTH

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.fingerprint = "linear code"
        self.seen: list[str] = []
        self.table = torch.randn(len(tokenizer), 5, generator=torch.Generator().manual_seed(3))

    def encode(self, texts: Sequence[str]) -> Tensor:
        self.seen += texts
        ids = [row[:LENGTH] for row in encode_texts(self.tokenizer, texts)]
        padded = torch.tensor([row + [pad_id(self.tokenizer)] * (LENGTH - len(row)) for row in ids])
        return self.table[padded].flatten(1)


def settings(**changes: Any) -> ProbeSettings:
    probe = {"size": "small", "steps": 60, "batch_size": 32, "evaluate_every": 15}
    values = {"lengths": [LENGTH], "passages": 600, "held_out_passages": 60, "held_out": 0.2, "probe": probe}
    return checked(ProbeSettings, {**values, "control_steps": 10, "writer_steps": 0, **changes})


def values(result: Retention) -> dict[str, float]:
    return {m.name: m.value for m in result.measurements}


def test_the_meter_tells_full_vectors_from_empty_ones(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = LinearCode(tokenizer)
    probe = {"size": "small", "steps": 24, "batch_size": 32, "evaluate_every": 12, "learning_rate": 1e-2}
    chosen = settings(writer_steps=16, word_passes=2, control_steps=4, probe=probe)
    result = Retention.measure(encoder, DOCUMENTS, out=tmp_path / "out", settings=chosen, cache=tmp_path / "cache")
    found = values(result)
    assert found["token_accuracy"] > 0.9
    assert found["retention/unigram"] > 0.7
    assert found["bits_per_dim"] > 0
    for empty in ("blank_memory", "shuffled_memory"):
        # one position may have another commonest token than the whole
        assert found[f"token_accuracy/{empty}"] < found["token_accuracy/unigram"] + 0.05
        assert found[f"cross_entropy/{empty}"] > 2 * found["cross_entropy"]
    assert {"token_accuracy/larger", "token_accuracy/autoencoder"} <= found.keys()
    assert "token_accuracy/untrained" not in found
    assert any("not available" in fact for _, fact in result.notes)
    assert re.search(r"At least \d+\.\d % of .* can be read from one 40-number vector of linear", result.sentence())
    assert found["position_accuracy"] > 0.9
    assert {"usable_bits", "usable_bits/word_sums", "written_token_f1", "written_rouge_l"} <= found.keys()
    assert found["usable_bits"] > 0 > found["usable_bits/shuffled_memory"]
    assert {r.status for r in result.readings() if r.kind.name != "usable_share"} == {"found"}
    assert "larger probe" in result.would_gain()
    assert [p.length for p in result.points] == [LENGTH]
    assert result.passages
    before = len(encoder.seen)
    again = Retention.measure(encoder, DOCUMENTS, out=tmp_path / "out", settings=chosen, cache=tmp_path / "cache")
    assert again.measurements == result.measurements
    assert len(encoder.seen) == before  # vectors and probes were found, not made again
    with pytest.raises(RunFolderError, match="another settings"):
        Retention.measure(encoder, DOCUMENTS, out=tmp_path / "out", settings=settings(seed=1), cache=tmp_path / "cache")


def test_a_second_probe_trains_only_what_no_folder_has_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    trained: list[str] = []
    probe = {"size": "small", "steps": 2, "batch_size": 32, "evaluate_every": 2}
    few = partial(settings, passages=64, word_passes=1, control_steps=2, probe=probe)
    train_probe, train_run = probes.train_probe, probes.train_run

    def spy_probe(data: Any, training: Any, folder: Path, **rest: Any) -> Any:
        if not (folder / "done").is_dir():
            trained.append(folder.name)
        return train_probe(data, training, folder, **rest)

    def spy_run(*rest: Any, **named: Any) -> Any:
        trained.append("the positive control")
        return train_run(*rest, **named)

    monkeypatch.setattr(probes, "train_probe", spy_probe)
    monkeypatch.setattr(probes, "train_run", spy_run)

    def measured(out: str, **changes: Any) -> Retention:
        trained.clear()
        encoder = LinearCode(tokenizer)
        chosen = few(**changes)
        return Retention.measure(encoder, DOCUMENTS, out=tmp_path / out, settings=chosen, cache=tmp_path / "cache")

    first = measured("first")
    assert len(trained) == 6
    assert len(trained_decoders(few(), False)) == 5  # and the positive control
    assert measured("second").measurements == first.measurements
    assert trained == []
    measured("rounded", bits="int8")
    assert trained == ["8-encoder-seed0", "8-shuffled_memory-seed0", "8-larger-seed0"]
    measured("more seeds", seeds=2)
    assert trained == ["8-encoder-seed1"]
    for weights in (tmp_path / "cache" / "probes").glob("*/best/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    assert measured("damaged").measurements == first.measurements
    assert len(trained) == 5  # a cut file is not used


def test_the_estimate_grows_with_what_is_to_do(tokenizer: PreTrainedTokenizerFast) -> None:
    class Slow(LinearCode):
        def encode(self, texts: Sequence[str]) -> Tensor:
            time.sleep(0.002 * len(texts))
            return super().encode(texts)

    texts = Passages(tuple(speech(i, words=12) for i in range(50)), torch.zeros(50, dtype=torch.long), ("a",))
    dataset = dataset_of_passages(dict.fromkeys(("train", "validation", "held_out"), texts), tokenizer, length=8)
    encoder = Slow(tokenizer)
    found = Estimate.of(dataset, encoder, settings(controls=False), encoder.width)
    assert found.encoding == pytest.approx(150 * 0.002, rel=0.3)
    assert Estimate.of(dataset, None, settings(controls=False), encoder.width).encoding == 0
    assert "at most about" in str(found)
    more = settings(writer_steps=1000, seeds=9)
    assert len(trained_decoders(more, True)) == 9 + 4 + 1 + 5
    assert len(trained_decoders(settings(writer_steps=9, one_pass_controls=False), True)) == 1 + 4
    assert len(trained_decoders(settings(writer_steps=9, controls=False, audit=True), False)) == 1 + 3 + 3
    assert len(trained_decoders(settings(controls=False, audit=True, bits="int8"), False)) == 1 + 1
    assert Estimate.of(dataset, None, more, encoder.width).training > 3 * found.training


def test_vectors_from_a_file_give_the_same_figures_to_the_last_digit(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    chosen = settings(controls=False)
    direct = Retention.measure(
        LinearCode(tokenizer),
        DOCUMENTS,
        out=tmp_path / "direct",
        settings=chosen,
        cache=tmp_path / "cache",
        export_to=tmp_path / "files",
    )
    files = tmp_path / "files"
    ready = read_ready_made(str(files / "vectors.safetensors"), str(files / "texts.jsonl"), held_out=0.2, seed=0)
    stored = Retention.measure_vectors(
        ready,
        out=tmp_path / "stored",
        name="linear-code",
        tokenizer=str(files / "tokenizer"),
        settings=chosen,
        cache=tmp_path / "other cache",  # the probe is trained anew
    )
    assert stored.measurements == direct.measurements
    lines = (files / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(load_file(files / "vectors.safetensors")["vectors"]) == len(lines)


def test_held_out_texts_reach_no_tokenizer_no_probe_and_no_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast
) -> None:
    sides = split_documents(DOCUMENTS, held_out=0.2, validation=0.2, seed=0)
    marked = {d.id for d in sides.held_out}
    assert marked
    mark = "XYZZY "
    documents = [Document(d.id, (mark * 40 + d.text) if d.id in marked else d.text) for d in DOCUMENTS]
    tokenized: list[str] = []
    trained: list[Tensor] = []
    train_tokenizer, train_probe = meter.train_tokenizer, probes.train_probe

    def spy_tokenizer(texts: Any, **rest: Any) -> Any:
        tokenized.extend(texts)
        return train_tokenizer(tokenized, **rest)

    def spy_probe(data: Any, *rest: Any, **named: Any) -> Any:
        trained.extend([data.train_vectors, data.validation_vectors])
        return train_probe(data, *rest, **named)

    monkeypatch.setattr(meter, "train_tokenizer", spy_tokenizer)
    monkeypatch.setattr(probes, "train_probe", spy_probe)

    class Marking:
        """One number says whether the passage is marked."""

        name, width, fingerprint = "marking", 2, "marking"

        def encode(self, texts: Sequence[str]) -> Tensor:
            return torch.tensor([[float("XYZZY" in t), float(i)] for i, t in enumerate(texts)])

    Retention.measure(Marking(), documents, out=tmp_path / "o", settings=settings(controls=False), cache=tmp_path / "c")
    assert tokenized
    assert not any("XYZZY" in t for t in tokenized)
    assert trained
    assert all(bool((v[:, 0] == 0).all()) for v in trained)


def killed_when(sign: str, folder: Path, arguments: list[str]) -> None:
    """Run the command and kill it as soon as a file of that name is there."""
    environment = {**os.environ, "MEMLM_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "memlm", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(folder.glob(sign)) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob(sign))


@pytest.mark.slow
def test_killed_while_embedding_and_training_it_ends_with_the_same_figures(
    tmp_path: Path,
    finished_run: Path,
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def command(out: str) -> list[str]:
        common = [
            "--encoder",
            str(finished_run),
            "--text",
            str(corpus),
            "--no-controls",
            "--writer-steps",
            "0",
            "--json",
        ]
        return ["probe", *common, "--size", "small", "--steps", "240", "--out", str(tmp_path / out)]

    killed_when("cache/vectors/*/vectors.json", tmp_path, command("killed"))
    killed_when("killed/probes/*/checkpoints/step-*", tmp_path, command("killed"))
    assert not list(tmp_path.glob("killed/probes/*/done"))
    lines: list[list[str]] = []
    for out, cache in (("killed", "cache"), ("whole", "another")):
        monkeypatch.setenv("MEMLM_CACHE", str(tmp_path / cache))
        assert main(command(out)) == 0
        lines.append(capsys.readouterr().out.splitlines())
    assert lines[0] == lines[1]
    assert json.loads(lines[0][0])["name"] == "token_accuracy"
