"""Held-out text is seen by nothing but the final look."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from memlm.data import Document, encode_texts
from memlm.errors import ConfigError, DataError
from memlm.training import DataConfig, prepare_data, read_split
from memlm.training.config import RunConfig, make_run_config, merge_run, run_settings_help
from memlm.training.loop.trainer import StepRows, reconstruction_batches
from memlm.training.model_settings import MODEL_CONFIGS, model_settings_help
from tests.conftest import speech


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(speech(i))
    return DataConfig(text=str(tmp_path), held_out=0.2, vocab_size=300)


@pytest.mark.parametrize("part", ["validation", "held_out"])
def test_a_marked_document_leaves_no_trace_in_training(config: DataConfig, part: str) -> None:
    marked = getattr(read_split(config, seed=0), part)[0]
    Path(marked.id).write_text("zyzzyva " * 300)
    data = prepare_data(config, chunk_length=8, seed=0)
    assert any("zyzzyva" in d.text for d in data.held_out) == (part == "held_out")
    pieces = set(data.tokenizer.get_vocab())
    assert not any("zyz" in piece for piece in pieces)
    rare = encode_texts(data.tokenizer, ["z"])[0][0]
    assert int((data.train_rows.input_ids == rare).sum()) == 0
    assert int(data.unigram_counts[rare]) == 0


def test_preparing_is_a_pure_function_of_the_settings(config: DataConfig) -> None:
    one, other = (prepare_data(config, chunk_length=8, seed=3) for _ in range(2))
    assert torch.equal(one.train_rows.input_ids, other.train_rows.input_ids)
    assert one.record == other.record
    assert prepare_data(config, chunk_length=8, seed=4).record["held_out_ids"] != one.record["held_out_ids"]


def test_runs_of_several_seeds_may_hold_out_the_same_text(config: DataConfig) -> None:
    fixed = config.model_copy(update={"split_seed": 3})
    assert read_split(fixed, seed=0) == read_split(fixed, seed=1) == read_split(config, seed=3)
    assert read_split(config, seed=0) != read_split(config, seed=3)


def test_one_long_document_is_cut_so_that_some_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(speech(i) for i in range(12)))
    split = read_split(DataConfig(text=str(path)), seed=0)
    assert len(split.held_out) >= 1
    assert (
        "".join(d.text for d in sorted(split.train + split.validation + split.held_out, key=number)) == path.read_text()
    )


def number(document: Document) -> int:
    return int(document.id.rsplit("#", 1)[1])


def test_every_epoch_sees_every_row_once_in_its_own_order(config: DataConfig) -> None:
    rows = prepare_data(config, chunk_length=8, seed=0).train_rows
    count = len(rows)
    steps = StepRows(len(rows), reconstruction_batches(rows), length=3 * count, seed=5)
    epochs = [[int(steps._row(e * count + i)) for i in range(count)] for e in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(count))] * 2
    assert epochs[0] != epochs[1]
    fresh = StepRows(len(rows), reconstruction_batches(rows), length=3 * count, seed=5)
    assert int(fresh._row(count + 7)) == epochs[1][7]


def test_too_little_to_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    with pytest.raises(DataError, match="1 document cannot be split"):
        prepare_data(DataConfig(text=str(tmp_path)), chunk_length=8, seed=0)


def test_settings_are_checked_merged_and_named() -> None:
    base = RunConfig()
    changed = merge_run(base, {"training": {"optimizer": {"warmup_steps": 7}}})
    assert changed.training.optimizer.warmup_steps == 7
    assert changed.training.optimizer.momentum == base.training.optimizer.momentum
    assert make_run_config(base.model_dump(mode="json")) == base
    named = run_settings_help()
    assert "training.optimizer.betas" in named
    for kind in MODEL_CONFIGS.values():
        named |= model_settings_help(kind)
    assert named["model.encoder.bottleneck_size"] == (128, "Numbers in one memory.")
    assert all(text for _, text in named.values())
    with pytest.raises(ConfigError, match=r"unknown setting 'model.hiden_size'. Did you mean 'hidden_size'"):
        merge_run(base, {"model": {"hiden_size": 3}})
    with pytest.raises(ConfigError, match="must be plain numbers"):
        merge_run(base, {"model": {"hidden_size": {1, 2}}})
