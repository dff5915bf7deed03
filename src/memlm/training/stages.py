"""Stages of a run, one after the other, each in a folder of its own, each resumable.

stages/00-NAME/log.jsonl          the stage's log           stages/00-NAME/end/     the model at its end
stages/00-NAME/checkpoints/       to resume from            memories-FINGERPRINT/   cached memories
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import nn
from transformers import PreTrainedModel

from memlm.checksums import check_folder
from memlm.data import PackedRows, ordinary_ids, pad_id
from memlm.errors import CheckpointError, ConfigError, RunFolderError
from memlm.files import write_file_atomic, write_folder_atomic
from memlm.measurement import correct, target_mask
from memlm.models import SlotWriterConfig
from memlm.models.runtime import wants_bf16, weights_fingerprint
from memlm.objectives import Task, blank_copy, next_token, reconstruction, token_nats
from memlm.training.config import RunConfig, Stage, TrainingConfig
from memlm.training.loop import distributed
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.trainer import BatchFn, CallbackFactory, MemlmTrainer, fit, reconstruction_batches
from memlm.training.memory.batches import MemoryBatches
from memlm.training.memory.cache import MemoryCache, build_memory_cache
from memlm.training.memory.distillation import DistillationBatches, distillation_validation
from memlm.training.memory.fact_writer import FactWriter
from memlm.training.prepare import PreparedData
from memlm.training.run_folder import RunFolder

Validate = Callable[[], dict[str, float]]


def validation_of(
    trainer: MemlmTrainer, rows: PackedRows, config: RunConfig, stage: Stage, *, blank_id: int
) -> Validate:
    """Return a function that measures accuracy and cross-entropy on validation rows.

    The targets of autoencoders are their inputs. Those of memory models are next tokens, and blank copies where rows
    are full and have two halves; the figures without an objective's name are those of the stage's main one.
    """
    if isinstance(config.model, SlotWriterConfig):
        return distillation_validation(trainer, rows, config.training.batch_size)
    if config.is_autoencoder:
        return lambda: _main_figures(
            *validation_score(trainer, rows, lambda b: reconstruction(b.input_ids, b.attention_mask), 256)
        )
    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    main = "next_token" if "next_token" in stage.objectives else "blank_copy"
    scores = {
        "next_token": lambda: validation_score(trainer, rows, lambda b: next_token(b.input_ids, b.attention_mask))
    }
    if len(full) and full.input_ids.shape[1] % 2 == 0:
        scores["blank_copy"] = lambda: validation_score(
            trainer, full, lambda b: blank_copy(b.input_ids, blank_id=blank_id)
        )

    def validate() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, score in scores.items():
            accuracy, nats = score()
            found |= {f"validation_accuracy/{name}": accuracy, f"validation_loss/{name}": nats}
            if name == main:
                found |= _main_figures(accuracy, nats)
        return found

    return validate


def _main_figures(accuracy: float, nats: float) -> dict[str, float]:
    return {"validation_token_accuracy": accuracy, "validation_cross_entropy": nats}


@torch.no_grad()
def validation_score(
    trainer: MemlmTrainer, rows: PackedRows, make_task: Callable[[PackedRows], Task], batch_size: int = 64
) -> tuple[float, float]:
    """Return the share of correct tokens and the nats per token, in the training's own precision.

    Where a task has inputs of its own, every position is text.
    """
    model, device = cast(nn.Module, trainer.model_wrapped), trainer.args.device
    model.eval()
    num_correct, nats, count = 0, 0.0, 0
    for batch in rows.batches(batch_size):
        task = make_task(batch)
        own = task.input_ids is batch.input_ids
        mask = batch.attention_mask if own else torch.ones_like(batch.attention_mask)
        labels = task.labels.to(device)
        with trainer.compute_loss_context_manager():
            logits = model(input_ids=task.input_ids.to(device), attention_mask=mask.to(device)).logits
        num_correct += int(correct(logits.argmax(-1), labels).sum())
        nats += float(token_nats(logits, labels).sum())
        count += int(target_mask(labels).sum())
    model.train()
    return num_correct / max(count, 1), nats / max(count, 1)


@dataclass(frozen=True)
class StageRunner:
    """Train a model in the stages of a run.

    Attributes:
        model: model with its first weights, or those of the last stage that has ended.
        data: rows to train on and validation rows.
        config: settings of the run.
        folder: run folder, in which every stage has a folder of its own.
        renew: draw new weights for everything but the encoder, from a seed.
        progress: whether progress is shown on stderr.
    """

    model: PreTrainedModel
    data: PreparedData
    config: RunConfig
    folder: RunFolder
    renew: Callable[[int], dict[str, torch.Tensor]]
    progress: bool

    def run(self) -> None:
        """Run all stages that have not ended; a stage that was stopped continues from its checkpoint.

        Raises:
            Interrupted: Ctrl-C; a checkpoint was kept.
            ConfigError: a stage that trains nothing.
        """
        for number, stage in enumerate(self.config.stages):
            end = self._place(number) / "end"
            if not end.is_dir():
                self._train(number, stage)
            check_folder(end)
            load_weights(self.model, end / "model.safetensors")
            distributed.first_does(self._join_logs)
        self._set_trainable("all")

    def _place(self, number: int) -> Path:
        return self.folder.path / "stages" / f"{number:02d}-{self.config.stages[number].name}"

    def _set_trainable(self, part: str) -> None:
        self.model.set_trainable(part, freeze_encoder=self.config.encoder_run is not None)  # type: ignore[operator]

    def _train(self, number: int, stage: Stage) -> None:
        training = self._training(number)
        if stage.start == "fresh" and number:
            self.model.load_state_dict(self.renew(training.seed), strict=False)
        self._set_trainable(stage.train)
        if not any(p.requires_grad for p in self.model.parameters()):
            raise ConfigError(
                f"stage '{stage.name}' trains nothing: the {self.model.config.readout} readout has no weights of its "
                "own here; train 'decoder' or 'all'."
            )
        place = self._place(number)
        fit(
            self.model,
            self._batches(stage, training),
            training,
            place,
            rows=len(self.data.train_rows),
            tokens_per_row=self.config.model.document_length,
            make_callback=self._callbacks(stage, training),
            progress=self.progress,
            noun=f"{stage.name} ({number + 1} of {len(self.config.stages)}), step",
            again=f"go on with: memlm train --resume --out {self.folder.path}",
            keep_checkpoints=number == len(self.config.stages) - 1,
        )
        distributed.first_does(lambda: write_folder_atomic(place / "end", self.model.save_pretrained, owned=True))

    def _training(self, number: int) -> TrainingConfig:
        """Return the run's training settings with those of a stage over them."""
        stage, training = self.config.stages[number], self.config.training
        optimizer = training.optimizer
        if stage.learning_rate is not None:
            share = optimizer.adamw_learning_rate / optimizer.learning_rate
            rates = {"learning_rate": stage.learning_rate, "adamw_learning_rate": share * stage.learning_rate}
            optimizer = optimizer.model_copy(update=rates)
        if stage.decay_share is not None:
            optimizer = optimizer.model_copy(update={"decay_share": stage.decay_share})
        # another order of rows in every stage
        seed = training.seed + 7919 * number
        return training.model_copy(update={"steps": self.config.steps_in(stage), "seed": seed, "optimizer": optimizer})

    def _batches(self, stage: Stage, training: TrainingConfig) -> BatchFn:
        rows = self.data.train_rows
        if self.config.is_autoencoder:
            return reconstruction_batches(rows)
        if isinstance(self.config.model, SlotWriterConfig):
            facts = FactWriter(self.data.tokenizer) if self.config.model.asks_for_facts else None
            return DistillationBatches(rows, self.config.model, training.batch_size, training.seed, facts)
        return MemoryBatches(
            rows,
            stage,
            rows_per_step=training.batch_size,
            chunk_length=self.config.model.chunk_length,
            blank_id=pad_id(self.data.tokenizer),
            seed=training.seed,
            kept=self._memory_cache(stage),
            ordinary=ordinary_ids(self.data.tokenizer),
        )

    def _callbacks(self, stage: Stage, training: TrainingConfig) -> CallbackFactory:
        sample = self.data.validation_rows.sample(training.evaluate_rows, seed=0)

        def make_callback(trainer: MemlmTrainer, log: RunLog, view: ProgressView, interrupt: Interrupt) -> RunCallback:
            log.names = stage.mixture.names
            validate = validation_of(trainer, sample, self.config, stage, blank_id=pad_id(self.data.tokenizer))
            return RunCallback(training, log, view, validate, interrupt)

        return make_callback

    def _memory_cache(self, stage: Stage) -> MemoryCache | None:
        """Compute memories once where the encoder cannot change in a stage."""
        rows, training, model = self.data.train_rows, self.config.training, self.model
        wanted = training.memory_cache
        if wanted is None:
            wanted = self.config.steps * training.batch_size > len(rows)
        frozen = self.config.encoder_run is not None or stage.train != "all"
        if not (wanted and frozen and model.config.use_memory) or stage.changes_chunks:
            return None
        place = self.folder.path / f"memories-{weights_fingerprint(model.encoder)[:16]}"  # type: ignore[arg-type]
        view = ProgressView(len(rows), shown=self.progress and distributed.is_first(), noun="cached memories of row")
        view.start(0)
        try:
            return build_memory_cache(
                model,  # type: ignore[arg-type]
                rows,
                place,
                blank_id=model.config.pad_token_id or 0,
                bf16=wants_bf16(training.precision),
                progress=lambda done: view.update(done, ""),
            )
        finally:
            view.stop()

    def _join_logs(self) -> None:
        """Write the stages' logs as one, with steps and tokens counted on."""
        lines: list[dict[str, Any]] = []
        before: dict[str, float] = {"step": 0, "tokens": 0, "seconds": 0.0}
        for number, stage in enumerate(self.config.stages):
            for line in RunFolder(self._place(number)).log():
                counted = {name: line[name] + value for name, value in before.items()}
                lines.append({**line, **counted, "stage": stage.name})
            if lines:
                before = {name: lines[-1][name] for name in before}
        try:
            write_file_atomic(self.folder.log_path, "".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise RunFolderError(f"cannot write to '{self.folder.path}': {error.strerror or error}.") from error


def load_weights(model: PreTrainedModel, file: Path) -> None:
    """Load the weights of a stage's end; tied weights are saved once.

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    try:
        missing, unexpected = load_model(model, file, strict=False)
        # pretrained weights that never change are not saved with what is trained beside them
        lost = [*unexpected, *(name for name in missing if name not in getattr(model, "unsaved", ()))]
        if lost:
            raise RuntimeError(f"{lost[0]} does not fit")
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"'{file}' is not this run's ({reason}); restore it or train again.") from error
