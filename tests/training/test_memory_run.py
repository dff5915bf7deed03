"""A memory model's run: stages, kept memories, a frozen encoder, and an end that no interruption changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from memlm.data import load_tokenizer
from memlm.errors import CheckpointError, ConfigError, DataError
from memlm.evaluation import evaluate_run
from memlm.models import TextAutoencoder
from memlm.objectives import LinearSchedule
from memlm.recipes import get_recipe
from memlm.shapes import IGNORE_INDEX
from memlm.training import RunFolder, train_run
from memlm.training.config import RunConfig, Stage, make_run_config, merge_run, with_steps
from memlm.training.loop.callbacks import RunCallback
from memlm.training.memory.batches import MemoryBatches
from memlm.training.memory.cache import build_memory_cache
from memlm.training.prepare import prepare_data
from memlm.training.run import build_run_model

MIXTURE = {"next_token": 1.0, "blank_copy": 2.0}


@pytest.fixture(scope="module")
def small(memory_config: RunConfig) -> RunConfig:
    return memory_config


@pytest.fixture(scope="module")
def finished(memory_run: Path) -> Path:
    return memory_run


def log_without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in RunFolder(folder).log()]


def test_the_log_names_every_objective_and_counts_on(finished: Path) -> None:
    log = RunFolder(finished).log()
    assert [line["step"] for line in log] == [3, 4, 6, 9, 10, 12, 13]
    assert {line["stage"] for line in log} == {"first", "second"}
    assert all("loss/blank_copy" in line and "accuracy/blank_copy" in line for line in log)
    assert ["loss/next_token" in line for line in log] == [False] * 3 + [True] * 4
    assert log[-1]["validation_loss/next_token"] > 0
    second = [line for line in log if line["stage"] == "second"]
    for line in second:
        mixed = (line["loss/next_token"] + 2 * line["loss/blank_copy"]) / 3
        assert line["loss"] == pytest.approx(mixed, rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(finished)
    assert model.config.memory_token_id == len(load_tokenizer(str(finished)))


@pytest.mark.parametrize("stop_at", [("first", 5), ("second", 1), ("second", 6)])
def test_stopped_in_any_stage_it_ends_the_same(
    stop_at: tuple[str, int], small: RunConfig, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bang(Exception):
        pass

    original = RunCallback.on_step_end

    def explode(self: RunCallback, args: Any, state: Any, control: Any, **extra: Any) -> None:
        if self.run_log.path.parent.name.endswith(stop_at[0]) and state.global_step > stop_at[1]:
            raise Bang
        original(self, args, state, control, **extra)

    with monkeypatch.context() as patch:
        patch.setattr(RunCallback, "on_step_end", explode)
        with pytest.raises(Bang):
            train_run(small, tmp_path / "run", progress=False)
    train_run(small, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert log_without_seconds(tmp_path / "run") == log_without_seconds(finished)


def frozen(small: RunConfig, encoder: Path, **training: Any) -> RunConfig:
    record = RunFolder(encoder).config()
    data = record.data.model_dump(mode="json") | {"short_rows": 0.0}
    changes = {"encoder_run": str(encoder), "data": data, "training": training}
    return merge_run(small, changes)


def test_a_frozen_encoder_stays_and_its_memories_are_kept(small: RunConfig, finished_run: Path, tmp_path: Path) -> None:
    kept = train_run(frozen(small, finished_run, memory_cache=True), tmp_path / "kept", progress=False).path
    # this run is shorter than its text: most of what it kept would never be read
    live = train_run(frozen(small, finished_run), tmp_path / "live", progress=False).path
    assert len(list(kept.glob("memories-*/memories.safetensors"))) == 1
    assert not list(live.glob("memories-*"))
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (kept, live))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-3, atol=1e-4)
    before = TextAutoencoder.from_pretrained(finished_run).state_dict()
    for name, value in one.encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_memories_are_kept_where_a_text_is_read_more_than_once(
    small: RunConfig, finished_run: Path, tmp_path: Path
) -> None:
    run = train_run(frozen(small, finished_run, batch_size=128), tmp_path / "run", progress=False)
    assert len(list(run.path.glob("memories-*/memories.safetensors"))) == 1


def test_random_tokens_around_a_frozen_encoder_are_encoded_in_every_step(
    small: RunConfig, finished_run: Path, tmp_path: Path
) -> None:
    stage = {"name": "s", "objectives": {"blank_copy": 1.0}, "steps": 2, "random_share": 0.5}
    # kept memories are asked for: it is the random tokens that keep them from being
    config = merge_run(frozen(small, finished_run, memory_cache=True), {"stages": [stage]})
    run = train_run(config, tmp_path / "run", progress=False)
    assert run.log()[-1]["step"] == 2
    assert not list(run.path.glob("memories-*"))


def test_an_encoder_that_changed_is_refused(small: RunConfig, finished_run: Path, tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(finished_run, encoder)
    config = frozen(small, encoder, memory_cache=True)
    run = train_run(config, tmp_path / "run", progress=False).path
    (run / "status.json").unlink()
    autoencoder = TextAutoencoder.from_pretrained(encoder)
    with torch.no_grad():
        autoencoder.embed_tokens.weight[5] += 1
    autoencoder.save_pretrained(encoder)
    with pytest.raises(CheckpointError, match="the encoder has changed since this run began"):
        train_run(config, run, resume=True, progress=False)


def test_memories_kept_of_another_encoder_or_text_are_refused(small: RunConfig, tmp_path: Path) -> None:
    data = prepare_data(small.data, chunk_length=16, seed=0)
    model = build_run_model(small, data.tokenizer, seed=0)
    kept = build_memory_cache(model, data.train_rows, tmp_path, blank_id=0)
    again = build_memory_cache(model, data.train_rows, tmp_path, blank_id=0)
    assert torch.equal(kept.memories, again.memories)
    with pytest.raises(CheckpointError, match="are of another text"):
        build_memory_cache(model, data.held_out_rows, tmp_path, blank_id=0)
    other = build_run_model(small, data.tokenizer, seed=1)
    with pytest.raises(CheckpointError, match="are of another encoder"):
        build_memory_cache(other, data.train_rows, tmp_path, blank_id=0)
    record = json.loads((tmp_path / "memories.json").read_text())
    assert record["rows"] == len(data.train_rows)


def test_memories_are_kept_in_the_runs_own_precision(small: RunConfig, tmp_path: Path) -> None:
    data = prepare_data(small.data, chunk_length=16, seed=0)
    model = build_run_model(small, data.tokenizer, seed=0).eval()
    fp32, bf16 = (
        build_memory_cache(model, data.train_rows, tmp_path / str(asked), blank_id=0, bf16=asked).memories
        for asked in (False, True)
    )
    assert fp32.dtype == bf16.dtype == torch.float32
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(fp32, bf16, rtol=0.1, atol=0.1)
    row = data.train_rows.select(torch.tensor([3]))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        live = model.encode(row.input_ids, row.attention_mask)
    torch.testing.assert_close(bf16[3:4], live.float(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", ["next_token", "copy", "blank_copy"])
def test_kept_memories_are_those_of_the_objectives_inputs(name: str, small: RunConfig, tmp_path: Path) -> None:
    data = prepare_data(small.data, chunk_length=16, seed=0)
    model = build_run_model(small, data.tokenizer, seed=0).eval()
    kept = build_memory_cache(model, data.train_rows, tmp_path, blank_id=0)
    stage = Stage(name="s", objectives={name: 1.0}, steps=1, distances="every")
    common = {"rows_per_step": 3, "chunk_length": 4, "blank_id": 0, "seed": 0}
    rows = torch.tensor([4, 0, 2])
    batch = MemoryBatches(data.train_rows, stage, kept=kept, **common)(rows, 0)
    torch.testing.assert_close(batch["memories"], model.encode(batch["input_ids"], batch["attention_mask"]))
    for refused in ({"objectives": {"token_dropout": 1.0}}, {"objectives": {"blank_copy": 1.0}, "random_share": 0.1}):
        changed = stage.model_copy(update={"objectives": {"copy": 1.0}, **refused})
        with pytest.raises(ConfigError, match="cannot read kept memories"):
            MemoryBatches(data.train_rows, changed, kept=kept, **common)


@pytest.mark.parametrize("kept", [False, True])
def test_an_objective_may_be_asked_of_some_rows_alone(kept: bool, small: RunConfig, tmp_path: Path) -> None:
    data = prepare_data(small.data, chunk_length=16, seed=0)
    model = build_run_model(small, data.tokenizer, seed=0).eval()
    known = build_memory_cache(model, data.train_rows, tmp_path, blank_id=0) if kept else None
    both: dict[str, Any] = {"next_token": 1.0, "blank_copy": 1.0}
    stage = Stage(name="s", objectives=both, steps=4, distances="every", row_share={"blank_copy": 0.5})
    common = {"rows_per_step": 6, "chunk_length": 4, "blank_id": 0, "seed": 0, "kept": known}
    every = stage.model_copy(update={"row_share": {}, "distances": "half"})
    whole, some = (MemoryBatches(data.train_rows, s, **common) for s in (every, stage))
    chosen = torch.tensor([4, 0, 2, 5, 1, 3])
    batch = some(chosen, 6)
    assert batch["objective"].tolist() == [0] * 6 + [1] * 3
    assert torch.equal(batch["labels"][:6], whole(chosen, 6)["labels"][:6])
    # each distance in turn, although only every second row is asked
    starts = [(row != IGNORE_INDEX).nonzero()[0].item() for row in batch["labels"][6:]]
    assert sorted(starts) == [4, 8, 12]
    # the rows are those of the same texts: what is asked back stands in them
    assert torch.equal(batch["input_ids"][6:, :4], batch["input_ids"][[0, 2, 4], :4])
    # however rows are shared out, also where a process has none of them
    parts = [some(chosen[:3], 6), some(chosen[3:4], 9), some(chosen[4:], 10)]
    for name in ("labels", "input_ids", *(["memories"] if kept else [])):
        for objective in (0, 1):
            joined = torch.cat([part[name][part["objective"] == objective] for part in parts])
            assert torch.equal(joined, batch[name][batch["objective"] == objective])
    if kept:
        torch.testing.assert_close(batch["memories"], model.encode(batch["input_ids"], batch["attention_mask"]))
    assert parts[1]["objective"].tolist() == [0]
    assert torch.isfinite(model.train()(**parts[1]).loss)
    moving = stage.model_copy(update={"row_share": {"blank_copy": LinearSchedule(start=1.0, end=0.25, steps=3)}})
    assert [moving.row_interval_at("blank_copy", step) for step in range(5)] == [1, 1, 2, 4, 4]


def test_random_tokens_are_asked_back_and_do_not_depend_on_who_takes_the_rows(small: RunConfig) -> None:
    rows = prepare_data(small.data, chunk_length=16, seed=0).train_rows
    stage = Stage(name="s", objectives={"blank_copy": 1.0}, steps=1, distances="every", random_share=0.5)
    common = {"rows_per_step": 6, "chunk_length": 4, "blank_id": 0, "seed": 0, "ordinary": range(9, 300)}
    plain, batch_fn = (
        MemoryBatches(rows, s, **common) for s in (stage.model_copy(update={"random_share": 0.0}), stage)
    )
    chosen = torch.arange(6)
    before, found = plain(chosen, 12), batch_fn(chosen, 12)
    asked = found["labels"] != IGNORE_INDEX
    assert torch.equal(asked, before["labels"] != IGNORE_INDEX)
    changed = (found["labels"] != before["labels"])[asked].double().mean()
    assert 0.3 < changed < 0.6
    # what is asked for stands in the text, and is no blank and no end
    for label, row in zip(found["labels"], found["input_ids"], strict=True):
        assert set(label[label != IGNORE_INDEX].tolist()) <= set(row.tolist())
    drawn = found["labels"][found["labels"] != before["labels"]]
    assert set(drawn.tolist()) <= set(range(9, 300))
    halves = [batch_fn(chosen[:4], 12), batch_fn(chosen[4:], 16)]
    assert torch.equal(torch.cat([h["labels"] for h in halves]), found["labels"])
    # a share that moves: none at the first step, all of it from the third on
    growing = stage.model_copy(update={"random_share": LinearSchedule(start=0.0, end=0.5, steps=2)})
    batch_fn = MemoryBatches(rows, growing, **common)
    assert torch.equal(batch_fn(chosen, 0)["labels"], plain(chosen, 0)["labels"])
    assert torch.equal(batch_fn(chosen, 12)["labels"], found["labels"])


def test_only_the_first_tokens_of_a_chunk_may_be_asked_for(small: RunConfig) -> None:
    rows = prepare_data(small.data, chunk_length=16, seed=0).train_rows
    stage = Stage(
        name="s", objectives={"blank_copy": 1.0}, steps=9, max_targets=LinearSchedule(start=1.0, end=4.0, steps=6)
    )
    common: dict[str, Any] = {"rows_per_step": 6, "chunk_length": 4, "blank_id": 0, "seed": 0}
    plain = MemoryBatches(rows, stage.model_copy(update={"max_targets": None}), **common)
    batch_fn, chosen = MemoryBatches(rows, stage, **common), torch.arange(6)
    for step, asked in ((0, 1), (2, 2), (4, 3), (6, 4), (8, 4)):
        every, found = plain(chosen, 6 * step), batch_fn(chosen, 6 * step)
        assert torch.equal(found["input_ids"], every["input_ids"])
        seen, known = (batch["labels"].view(6, -1, 4) for batch in (found, every))
        assert torch.equal(seen[..., :asked], known[..., :asked])
        assert bool((seen[..., asked:] == IGNORE_INDEX).all())


def test_batches_are_a_pure_function_and_hold_every_objective(small: RunConfig) -> None:
    data = prepare_data(small.data, chunk_length=16, seed=0)
    objectives = {"next_token": 1.0, "token_dropout": 1.0, "reconstruction": {"start": 0.0, "end": 1.0, "steps": 10}}
    stage = Stage.model_validate_json(json.dumps({"name": "s", "objectives": objectives, "steps": 20}))
    batch_fn = MemoryBatches(data.train_rows, stage, rows_per_step=2, chunk_length=4, blank_id=0, seed=3)
    rows = torch.tensor([1, 5])
    before = data.train_rows.input_ids.clone()
    one, again, later = batch_fn(rows, 10), batch_fn(rows, 10), batch_fn(rows, 12)
    assert torch.equal(data.train_rows.input_ids, before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["input_ids"], later["input_ids"])
    assert one["objective"].tolist() == [0, 0, 1, 1]
    assert one["loss_weights"].tolist() == [1.0, 1.0, 0.5]
    assert torch.equal(one["reconstruction_labels"][:2], before[rows])
    assert (one["reconstruction_labels"][2:] == -100).all()


@pytest.mark.parametrize("accumulated", [2, 4])
def test_loss_over_accumulated_batches_is_the_loss_of_all(accumulated: int, small: RunConfig) -> None:
    data = prepare_data(small.data, chunk_length=16, seed=0)
    model = build_run_model(small, data.tokenizer, seed=0).train()
    model.encoder.eval()  # no noise
    stage = Stage(name="s", objectives={"next_token": 1.0, "blank_copy": 0.5}, steps=1)
    batch_fn = MemoryBatches(data.held_out_rows, stage, rows_per_step=8, chunk_length=4, blank_id=0, seed=0)
    rows = torch.arange(8)
    whole = batch_fn(rows, 0)
    model(**whole).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    counts = model(**whole).num_targets
    total = 0.0
    for part in rows.split(8 // accumulated):
        loss = model(**batch_fn(part, 0), num_items_in_batch=counts).loss
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(model(**whole).loss.detach()), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-6)


def test_stages_keep_their_shares_of_other_steps() -> None:
    curriculum = get_recipe("memory-curriculum-tiny")
    shorter = with_steps(curriculum, curriculum.steps // 10)
    assert [s.steps for s in shorter.stages] == [max(1, round(s.steps / 10)) for s in curriculum.stages]
    assert [s.steps for s in with_steps(curriculum, 2).stages].count(1) >= 2  # none is lost
    assert shorter.stages[-1].objectives["blank_copy"].steps == round(
        curriculum.stages[-1].objectives["blank_copy"].steps / 10
    )
    assert with_steps(get_recipe("autoencoder-tiny"), 7).training.steps == 7
    growing = with_steps(get_recipe("memory-tiny"), 120).stages[0].random_share
    assert isinstance(growing, LinearSchedule)
    assert growing.steps == 40
    asked = with_steps(get_recipe("memory-pretrained-input"), 99).stages[1].max_targets
    assert isinstance(asked, LinearSchedule)
    assert (asked.start, asked.end, asked.steps) == (2, 16, 70)
    fewer = with_steps(curriculum, curriculum.steps // 10).stages[-1].row_share["blank_copy"]
    assert isinstance(fewer, LinearSchedule)
    assert fewer.steps == 20


def test_mistakes_are_one_line(small: RunConfig, finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"num_chunks \(3\) must be even for blank_copy"):
        merge_run(small, {"model": {"num_chunks": 3}})
    stage = {"name": "s", "objectives": {"blank_copy": 1.0}, "steps": 1, "distances": "every"}
    assert merge_run(small, {"model": {"num_chunks": 3}, "stages": [stage]}).model.num_chunks == 3
    with pytest.raises(ConfigError, match=r"num_chunks \(1\) must be at least 2"):
        merge_run(small, {"model": {"num_chunks": 1}, "stages": [stage]})
    with pytest.raises(ConfigError, match="two stages are named 'first'"):
        merge_run(small, {"stages": [{"name": "first", "objectives": {"copy": 1.0}, "steps": 1}] * 2})
    with pytest.raises(ConfigError, match="sum to 0 at its start"):
        merge_run(small, {"stages": [{"name": "a", "objectives": {"copy": 0.0}, "steps": 1}]})
    with pytest.raises(ConfigError, match="has no objectives"):
        merge_run(small, {"stages": [{"name": "a", "objectives": {}, "steps": 1}]})
    with pytest.raises(ConfigError, match="unknown setting 'model.encoder.hiden_size'. Did you mean 'hidden_size'"):
        merge_run(small, {"model": {"encoder": {"hiden_size": 3}}})
    with pytest.raises(ConfigError, match="unknown model_type 'memlm_memori'. Did you mean 'memlm_memory'"):
        make_run_config({"model": {"model_type": "memlm_memori"}})
    stage = {"name": "warm", "objectives": {"copy": 1.0}, "steps": 1, "train": "readout"}
    model = {"readout": "repeated", "encoder": {"bottleneck_size": 16}}
    nothing = merge_run(small, {"model": model, "stages": [stage]})
    with pytest.raises(ConfigError, match="stage 'warm' trains nothing"):
        train_run(nothing, tmp_path / "nothing", progress=False)
    other = frozen(small, finished_run)
    with pytest.raises(DataError, match="may have trained on text that is held out here"):
        train_run(merge_run(other, {"data": {"held_out": 0.4}}), tmp_path / "leak", progress=False)


def test_recurrent_memory_trains_in_stages_and_is_evaluated(small: RunConfig, tmp_path: Path) -> None:
    config = merge_run(small, {"model": {"model_type": "memlm_recurrent_memory", "backpropagation_depth": 2}})
    folder = train_run(config, tmp_path / "run", progress=False)
    model = AutoModelForCausalLM.from_pretrained(folder.path)
    assert model.config.model_type == "memlm_recurrent_memory"
    assert model.config.backpropagation_depth == 2
    names = {m.name for m in evaluate_run(str(folder.path)).measurements}
    assert {"bits_per_byte/no_memory", "token_accuracy/blank_copy"} <= names
    assert not [name for name in names if name.startswith("memories/")]  # no encoder of its own
    for stage in ({"train": "decoder"}, {"objectives": {"reconstruction": 1.0}}):
        with pytest.raises(ConfigError, match="no place in recurrent memory"):
            merge_run(config, {"stages": [{"name": "s", "objectives": {"copy": 1.0}, "steps": 1, **stage}]})


def test_a_stage_that_begins_anew_keeps_the_encoder_alone(small: RunConfig, tmp_path: Path) -> None:
    stages = [
        {"name": "one", "objectives": {"blank_copy": 1.0}, "steps": 3},
        {"name": "two", "objectives": {"reconstruction": 1.0, "copy": 1.0}, "steps": 1, "start": "fresh"},
    ]
    changes = {"stages": stages, "training": {"optimizer": {"learning_rate": 1e-9, "adamw_learning_rate": 1e-9}}}
    folder = train_run(merge_run(small, changes), tmp_path / "run", progress=False).path
    before, after = (AutoModelForCausalLM.from_pretrained(p) for p in (folder / "stages/00-one/end", folder))
    encoders = zip(before.encoder.parameters(), after.encoder.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in encoders)
    assert after.reconstruction is not None
    tables = [m.get_input_embeddings().weight for m in (before, after)]
    assert not torch.allclose(*tables, atol=1e-3)


def test_an_oracle_trains_and_is_evaluated(small: RunConfig, tmp_path: Path) -> None:
    model = {"layout": "oracle", "injection": "hidden", "num_chunks": 1, "chunk_length": 16}
    stages = [{"name": "next_token", "objectives": {"next_token": 1.0}, "steps": 2}]
    folder = train_run(merge_run(small, {"model": model, "stages": stages}), tmp_path / "run", progress=False)
    names = {m.name for m in evaluate_run(str(folder.path)).measurements}
    assert {"normalised_cross_entropy/int4", "cross_entropy/fp16", "bits_per_byte/no_memory"} <= names
