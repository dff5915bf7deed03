"""Figures of models whose behaviour is known in advance."""

from __future__ import annotations

import lzma
import math
import shutil
from pathlib import Path

import pytest
import torch

from memlm.data import load_documents, random_rows
from memlm.errors import CheckpointError, DataError, RunFolderError
from memlm.evaluation import chunkwise_costs, compressor_costs, evaluate_run, memory_costs, reconstruct
from memlm.evaluation.reconstruction import blank_memory_nats, encode_rows
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.training import RunFolder
from tests.variants import TINY


@pytest.fixture
def model() -> TextAutoencoder:
    return TextAutoencoder(TextAutoencoderConfig(**TINY)).eval()


def test_an_even_handed_model_has_the_uniform_cross_entropy(model: TextAutoencoder) -> None:
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = random_rows(40, 6, 23, seed=0)
    scores = reconstruct(model, rows)
    assert scores.nats.ratio() == pytest.approx(math.log(23), abs=1e-5)
    assert scores.tokens.ratio() == pytest.approx(float((rows.input_ids == 0).double().mean()))
    assert blank_memory_nats(model, rows).ratio() == pytest.approx(math.log(23), abs=1e-5)


def test_batches_and_kept_memories_change_nothing(model: TextAutoencoder) -> None:
    rows = random_rows(10, 6, 23, seed=0)
    whole = reconstruct(model, rows)
    for other in (
        reconstruct(model, rows, batch_size=3),
        reconstruct(model, rows, memories=encode_rows(model, rows, batch_size=4)),
    ):
        assert torch.equal(whole.predictions, other.predictions)
        assert whole.nats.sums == pytest.approx(other.nats.sums)
    assert sum(whole.accuracy_by_position()) / 6 == pytest.approx(whole.tokens.ratio())


def test_a_blank_memory_is_decoded_like_any_other(model: TextAutoencoder) -> None:
    rows = random_rows(10, 6, 23, seed=0)
    zeros = torch.zeros(10, 1, 10)
    assert blank_memory_nats(model, rows).sums == pytest.approx(reconstruct(model, rows, memories=zeros).nats.sums)


def test_costs_count_scales_and_compare_the_same_text() -> None:
    costs = {c.name: c.bits_per_byte for c in memory_costs(chunks=3, memories_per_chunk=2, numbers=10, text_bytes=60)}
    assert costs == {"memory fp16": 16.0, "memory int8": 9.6, "memory int4": 5.6}
    texts = ["the same words over and over " * 40]
    whole = {c.name: c.bits_per_byte for c in compressor_costs(text.encode() for text in texts)}
    parts = {c.name: c.bits_per_byte for c in chunkwise_costs([texts[0][i : i + 60] for i in range(0, 1160, 60)])}
    assert max(whole.values()) < 1 < min(parts.values())
    assert {name.split()[0] for name in whole} == {"gzip", "xz", "zstd"}
    pieces = [texts[0][:99].encode(), texts[0][99:].encode()]
    assert whole == {c.name: c.bits_per_byte for c in compressor_costs(pieces)}


@pytest.mark.parametrize("size", [1, 60, 4095, 4097, 9000])
def test_a_chunk_packs_in_a_small_window_as_in_the_presets_own(size: int) -> None:
    text = "".join(d.text for d in load_documents("sotu", max_documents=1))[:size]
    own = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    packed = len(lzma.compress(text.encode(), format=lzma.FORMAT_RAW, filters=own))
    costs = {c.name: c.bits_per_byte for c in chunkwise_costs([text])}
    assert costs["xz -9e, chunk by chunk"] == 8 * packed / len(text.encode())


def test_a_run_is_measured_on_every_split(finished_run: Path) -> None:
    evaluation = evaluate_run(str(finished_run))
    found = {(m.split, m.name): m for m in evaluation.measurements}
    assert {split for split, _ in found} == {"held_out", "train", "out_of_distribution", "random_tokens"}
    names = {name for split, name in found if split == "held_out"}
    retentions = {f"retention/{b}" for b in ("uniform", "paper", "unigram", "blank_memory")}
    assert names >= retentions | {"token_accuracy", "exact_match", "cross_entropy", "bits_per_byte", "bits_per_dim"}
    assert names >= {"token_accuracy/int8", "token_accuracy/int4"}
    for m in evaluation.measurements:
        assert m.low is not None
        assert m.high is not None
        assert m.low <= m.value + 1e-9
        assert m.value <= m.high + 1e-9
        assert (m.baseline is None) == (not m.name.startswith("retention"))
    assert ("random_tokens", "bits_per_byte") not in found
    assert found["held_out", "token_accuracy"].count == RunFolder(finished_run).data()["held_out_tokens"]
    assert len(evaluation.passages) == 5
    assert all("".join(a for a, _, _ in p.pieces) for p in evaluation.passages)


def test_other_text_by_name(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("the people of this great nation " * 20)
    evaluation = evaluate_run(str(finished_run), text=str(path))
    assert {m.split for m in evaluation.measurements} == {"mine.txt"}


def test_runs_that_cannot_be_measured(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run folder at"):
        evaluate_run(str(tmp_path / "none"))
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    data = RunFolder(folder).data()
    RunFolder(folder).write("data.json", {**data, "fingerprint_held_out": "0"})
    with pytest.raises(DataError, match="has changed since the run was trained"):
        evaluate_run(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no trained model yet"):
        evaluate_run(str(folder))
