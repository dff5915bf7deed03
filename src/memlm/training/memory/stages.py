"""A memory model's run: its stages one after the other, each in a folder of its own, each resumable.

stages/00-NAME/log.jsonl          the stage's log           stages/00-NAME/end/     the model at its end
stages/00-NAME/checkpoints/       to resume from            memories-FINGERPRINT/   kept memories
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from memlm.data import PackedRows, load_tokenizer, ordinary_ids, pad_id
from memlm.errors import CheckpointError, ConfigError, RunFolderError
from memlm.files import read_tensors, write_file_atomic, write_folder_atomic
from memlm.models import ChunkReader, MemoryModelForCausalLM, RecurrentMemoryForCausalLM
from memlm.models.runtime import wants_bf16, weights_fingerprint
from memlm.training.config import TrainingConfig
from memlm.training.loop import distributed
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.fit import fit
from memlm.training.loop.trainer import MemlmTrainer
from memlm.training.memory.batches import MemoryBatches
from memlm.training.memory.building import build_memory_model, encoder_of_run
from memlm.training.memory.cache import MemoryCache, build_memory_cache
from memlm.training.memory.config import MemoryRunConfig, Stage
from memlm.training.memory.validation import validation_of
from memlm.training.prepare import PreparedData
from memlm.training.run_folder import RunFolder

_SAMPLE = 64
"""Rows that show whether chunks fit an encoder."""


def train_stages(config: MemoryRunConfig, folder: RunFolder, data: PreparedData, *, progress: bool) -> ChunkReader:
    """All stages that are not finished yet; what was stopped goes on where it was.

    Raises:
        Interrupted: Ctrl-C; a checkpoint was kept.
        ConfigError: a stage that trains nothing.
        CheckpointError: the encoder's run has changed since this one began.
    """
    encoder = None if config.encoder_run is None else encoder_of_run(config.encoder_run)[0]
    model = build_memory_model(
        config.model,
        data.tokenizer,
        seed=config.training.seed,
        encoder=encoder,
        encoder_tokenizer=None if config.encoder_run is None else load_tokenizer(config.encoder_run),
        reconstruction_head=config.asks_reconstruction,
    )
    _check_changed_encoder(folder, model)
    _check_long_chunks(model, data)
    for number, stage in enumerate(config.stages):
        place = folder.path / "stages" / f"{number:02d}-{stage.name}"
        if not (place / "end").is_dir():
            _run_stage(config, number, model, data, folder, place, progress=progress)
        _take_weights(model, place / "end" / "model.safetensors")
        distributed.first_does(lambda: _join_logs(config, folder))
    model.set_trainable(freeze_encoder=config.encoder_run is not None)
    return model


def _check_long_chunks(model: ChunkReader, data: PreparedData) -> None:
    """An encoder with a tokenizer of its own must have room for most chunks' text."""
    if isinstance(model, MemoryModelForCausalLM) and model.translation is not None:
        some = data.train_rows.sample(_SAMPLE, seed=0).input_ids
        chunks = some.reshape(-1, model.config.chunk_length)
        model.translation(chunks, torch.ones_like(chunks))
        model.translation.require_fitting(model.config.chunk_length)


def _take_weights(model: ChunkReader, file: Path) -> None:
    """Of a stage's end; a weight that is another's twin is kept once."""
    kept = read_tensors(file)
    missing, unexpected = model.load_state_dict(kept, strict=False)
    own = model.state_dict()
    there = {own[name].data_ptr() for name in kept if name in own}
    lost = [*unexpected, *(name for name in missing if own[name].data_ptr() not in there)]
    if lost:
        raise CheckpointError(f"'{file}' is not this run's ({lost[0]} is in one only); restore it or train again.")


def _run_stage(
    config: MemoryRunConfig,
    number: int,
    model: ChunkReader,
    data: PreparedData,
    folder: RunFolder,
    place: Path,
    *,
    progress: bool,
) -> None:
    stage, training = config.stages[number], _stage_training(config, number)
    if stage.start == "fresh" and number:
        _start_afresh(model, config, data, seed=training.seed)
    _set_trained(model, stage, frozen=config.encoder_run is not None)
    kept = _kept(model, data.train_rows, folder, config, stage, progress=progress)
    batch_fn = MemoryBatches(
        data.train_rows,
        stage,
        rows_per_step=training.batch_size,
        chunk_length=config.model.chunk_length,
        blank_id=pad_id(data.tokenizer),
        seed=training.seed,
        kept=kept,
        ordinary=ordinary_ids(data.tokenizer),
    )
    sample = data.held_out_rows.sample(training.evaluate_rows, seed=0)

    def make_callback(trainer: MemlmTrainer, log: RunLog, view: ProgressView, interrupt: Interrupt) -> RunCallback:
        log.names = batch_fn.mixture.names
        look = validation_of(trainer, sample, stage, blank_id=pad_id(data.tokenizer))
        return RunCallback(training, log, view, look, interrupt)

    fit(
        model,
        batch_fn,
        training,
        place,
        rows=len(data.train_rows),
        tokens_per_row=config.model.document_length,
        make_callback=make_callback,
        progress=progress,
        noun=f"{stage.name} ({number + 1} of {len(config.stages)}), step",
        again=f"go on with: memlm train --resume --out {folder.path}",
    )
    distributed.first_does(lambda: write_folder_atomic(place / "end", model.save_pretrained))


def _start_afresh(model: ChunkReader, config: MemoryRunConfig, data: PreparedData, *, seed: int) -> None:
    """New weights for everything but the encoder."""
    encoder = model.encoder if isinstance(model, MemoryModelForCausalLM) else None
    own = None if config.encoder_run is None else load_tokenizer(config.encoder_run)
    fresh = build_memory_model(
        config.model, data.tokenizer, seed=seed, encoder=encoder, encoder_tokenizer=own
    ).state_dict()
    rest = {name: value for name, value in fresh.items() if not name.startswith("encoder.")}
    model.load_state_dict(rest, strict=False)


def _stage_training(config: MemoryRunConfig, number: int) -> TrainingConfig:
    stage, training = config.stages[number], config.training
    optimizer = training.optimizer
    if stage.learning_rate is not None:
        share = optimizer.adamw_learning_rate / optimizer.learning_rate
        rates = {"learning_rate": stage.learning_rate, "adamw_learning_rate": share * stage.learning_rate}
        optimizer = optimizer.model_copy(update=rates)
    if stage.decay_share is not None:
        optimizer = optimizer.model_copy(update={"decay_share": stage.decay_share})
    # another order of rows in every stage
    return training.model_copy(
        update={"steps": stage.steps, "seed": training.seed + 7919 * number, "optimizer": optimizer}
    )


def _set_trained(model: ChunkReader, stage: Stage, *, frozen: bool) -> None:
    """Enable gradients for what this stage may change."""
    model.set_trainable(stage.train, freeze_encoder=frozen)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(
            f"stage '{stage.name}' trains nothing: the {model.config.readout} readout has no weights of its own here; "
            "train 'decoder' or 'all'."
        )


def _kept(
    model: ChunkReader,
    rows: PackedRows,
    folder: RunFolder,
    config: MemoryRunConfig,
    stage: Stage,
    *,
    progress: bool,
) -> MemoryCache | None:
    """Where the encoder cannot change in a stage, its memories are computed once."""
    if isinstance(model, RecurrentMemoryForCausalLM):
        return None
    wanted = config.training.memory_cache
    if wanted is None:
        wanted = config.steps * config.training.batch_size > len(rows)
    if not (wanted and model.config.freeze_encoder and config.model.use_memory) or stage.changes_chunks:
        return None
    place = folder.path / f"memories-{weights_fingerprint(model.encoder)[:16]}"
    view = ProgressView(len(rows), shown=progress and distributed.is_first(), noun="kept memories of row")
    view.start(0)
    try:
        return build_memory_cache(
            model,
            rows,
            place,
            blank_id=model.config.pad_token_id or 0,
            bf16=wants_bf16(config.training.precision),
            progress=lambda done, _: view.update(done, ""),
        )
    finally:
        view.stop()


def _check_changed_encoder(folder: RunFolder, model: ChunkReader) -> None:
    """A frozen encoder must be what it was when the run began; memories and stages of another are worth nothing."""
    path = folder.path / "encoder.json"
    if isinstance(model, RecurrentMemoryForCausalLM):
        return
    now = {"fingerprint": model.config.encoder_fingerprint}
    distributed.first_does(lambda: None if path.is_file() else folder.write("encoder.json", now))
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != now:
        raise CheckpointError(
            f"the encoder has changed since this run began ({str(before.get('fingerprint'))[:12]}, now "
            f"{str(now['fingerprint'])[:12]}); restore it or begin a new run with another --out."
        )


def _join_logs(config: MemoryRunConfig, folder: RunFolder) -> None:
    """The stages' logs as one, steps and tokens counted on."""
    lines: list[str] = []
    step, tokens, seconds = 0, 0, 0.0
    for number, stage in enumerate(config.stages):
        path = folder.path / "stages" / f"{number:02d}-{stage.name}" / "log.jsonl"
        if not path.is_file():
            break
        last: dict[str, Any] = {}
        for text in path.read_text(encoding="utf-8").splitlines():
            last = json.loads(text)
            moved = {"step": last["step"] + step, "tokens": last["tokens"] + tokens}
            lines.append(json.dumps({**last, **moved, "seconds": last["seconds"] + seconds, "stage": stage.name}))
        step, tokens = step + last.get("step", 0), tokens + last.get("tokens", 0)
        seconds += last.get("seconds", 0.0)
    try:
        write_file_atomic(folder.log_path, "".join(line + "\n" for line in lines))
    except OSError as error:
        raise RunFolderError(f"cannot write to '{folder.path}': {error.strerror or error}.") from error
