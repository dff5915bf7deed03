"""Training: transformers' Trainer with its own rows, optimizer and checkpoints, and the function that runs a recipe.

What the subclass changes, and why:
- rows are a pure function of (seed, step), so that resuming skips nothing and repeats nothing
- checkpoints are whole, and hold no pickle
- the log is ours: a mean of losses that survives a resume, which Trainer's own does not
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from memlm.data import PackedRows, eos_id, pad_id
from memlm.errors import DataError, MemlmError, RunFolderError
from memlm.files import read_json, write_whole
from memlm.measurement import asked, correct
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.models.precision import wants_bf16
from memlm.models.quiet import no_shard_bars
from memlm.objectives import reconstruction, token_nats
from memlm.training.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.checkpoint import (
    load_optimizer,
    load_random_state,
    newest,
    remove_old,
    save_optimizer,
    save_random_state,
    step_of,
)
from memlm.training.config import RunConfig, TrainingConfig
from memlm.training.optimizer import build_optimizer, learning_rate_factor
from memlm.training.prepare import PreparedData, prepare_data
from memlm.training.run_folder import RunFolder, command_line, describe_versions

Batch = dict[str, Tensor]


class Interrupted(MemlmError):  # noqa: N818 (nothing went wrong)
    """Training was stopped by Ctrl-C; a checkpoint was kept."""


Take = Callable[[Tensor], Batch]
"""Row numbers to a batch."""


class StepRows(Dataset[Batch]):
    """All rows of all steps in order: epoch after epoch, each in its own permutation, a pure function of the seed."""

    def __init__(self, count: int, take: Take, *, length: int, seed: int) -> None:
        self.count = count
        self.take = take
        self.length = length
        self.seed = seed
        self.epoch = -1
        self.order = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.take(torch.stack([self._row(i) for i in indices]))

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])

    def _row(self, index: int) -> Tensor:
        epoch, place = divmod(index, self.count)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.epoch, self.order = epoch, torch.randperm(self.count, generator=generator)
        return self.order[place]


def reconstruction_batches(rows: PackedRows) -> Take:
    """Batches that ask for their own tokens."""

    def take(chosen: Tensor) -> Batch:
        batch = rows.select(chosen)
        labels = reconstruction(batch.input_ids, batch.attention_mask).labels
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}

    return take


class MemlmTrainer(Trainer):
    """Trainer over `StepRows`, with whole checkpoints of safetensors and JSON."""

    def __init__(
        self, model: PreTrainedModel, rows: StepRows, config: TrainingConfig, folder: Path, **rest: Any
    ) -> None:
        self.config = config
        self.checkpoints = folder
        super().__init__(
            model=model, args=_arguments(config, folder), train_dataset=rows, data_collator=cast(Any, _as_is), **rest
        )
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def create_optimizer(self, model: Any = None) -> Optimizer:
        if self.optimizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            self.optimizer = build_optimizer(self.model, self.config.optimizer)  # type: ignore[arg-type]
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        settings = self.config.optimizer
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: learning_rate_factor(step, num_training_steps, settings)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.run_callback.last_loss = loss
        return loss

    def add_run_callback(self, callback: RunCallback) -> None:
        """The callback that logs; it needs each step's loss."""
        self.run_callback = callback
        self.add_callback(callback)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            write_whole(self.checkpoints / f"step-{self.state.global_step}", self._write_checkpoint)
            remove_old(self.checkpoints, keep=self.config.keep_checkpoints)

    def _write_checkpoint(self, folder: Path) -> None:
        self.model.save_pretrained(folder)  # type: ignore[union-attr]
        assert self.optimizer is not None
        save_optimizer(self.optimizer, folder)
        save_random_state(folder)
        self.state.stateful_callbacks = cast(Any, {"RunLog": self.run_callback.run_log.state()})
        self.state.save_to_json(str(folder / "trainer_state.json"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            assert self.optimizer is not None
            load_optimizer(self.optimizer, Path(checkpoint))
            step = step_of(Path(checkpoint))
            # the schedule is a pure function of the step, and the rates of that step came with the optimizer
            schedule = self.lr_scheduler
            rates = [group["lr"] for group in self.optimizer.param_groups]
            schedule.load_state_dict(
                {**schedule.state_dict(), "last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random_state(Path(checkpoint))

    def _load_callback_state(self) -> None:
        """Ours is restored in `train_run`; Trainer's own callbacks keep nothing."""


def _as_is(batch: Batch) -> Batch:
    return batch


def _arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        max_steps=config.steps,
        num_train_epochs=1,
        max_grad_norm=config.optimizer.gradient_clip,
        bf16=wants_bf16(config.precision),
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
    )


def build_model(config: RunConfig, *, vocab_size: int, pad_token_id: int, eos_token_id: int) -> TextAutoencoder:
    """The autoencoder of a run, its weights drawn from the run's seed."""
    settings = config.model.model_dump()
    torch.manual_seed(config.training.seed)
    return TextAutoencoder(
        TextAutoencoderConfig(vocab_size=vocab_size, pad_token_id=pad_token_id, eos_token_id=eos_token_id, **settings)
    )


def train_run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> RunFolder:
    """Train what a configuration describes, into a run folder; nothing is lost on Ctrl-C or worse.

    Args:
        config: the checked settings; with `resume` the folder's own settings are used instead.
        out: the run folder.
        resume: go on from the newest checkpoint (or from the start where there is none yet).
        overwrite: replace an older run in the folder.
        progress: show progress on stderr.

    Raises:
        RunFolderError: the folder is taken, in use or cannot be written.
        DataError, TokenizerError, ConfigError: what the run is made of does not fit.
        Interrupted: Ctrl-C.
    """
    if resume:
        folder = RunFolder.open(out)
        config = folder.config()
        if folder.finished():
            return folder
        data = _prepared(config)
    else:
        RunFolder.require_room(out, overwrite=overwrite)
        # the folder is touched only when the new run's text and tokenizer are known to be good
        data = _prepared(config)
        folder = RunFolder.create(out, config, overwrite=overwrite)
    with folder.locked(), no_shard_bars():
        _train(config, folder, data, progress=progress)
    return folder


def _prepared(config: RunConfig) -> PreparedData:
    return prepare_data(config.data, chunk_length=config.model.chunk_length, seed=config.training.seed)


def _train(config: RunConfig, folder: RunFolder, data: PreparedData, *, progress: bool) -> None:
    _refuse_changed_text(folder, data)
    if not (folder.path / "data.json").is_file():
        _write_records(folder, data)
    tokenizer = data.tokenizer
    model = build_model(
        config,
        vocab_size=len(tokenizer),
        pad_token_id=pad_id(tokenizer),
        eos_token_id=eos_id(tokenizer),
    )
    checkpoint = newest(folder.checkpoints)
    interrupt = Interrupt()
    trainer = _trainer(config, folder, data, model, interrupt, progress=progress, checkpoint=checkpoint)
    with interrupt.listening():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interrupt.asked and trainer.state.global_step < config.training.steps:
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {config.training.steps}; "
            f"go on with: memlm train --resume --out {folder.path}"
        )
    _finish(folder, model, data)


def _trainer(
    config: RunConfig,
    folder: RunFolder,
    data: PreparedData,
    model: TextAutoencoder,
    interrupt: Interrupt,
    *,
    progress: bool,
    checkpoint: Path | None,
) -> MemlmTrainer:
    settings = config.training
    take = reconstruction_batches(data.train_rows)
    rows = StepRows(len(data.train_rows), take, length=settings.steps * settings.batch_size, seed=settings.seed)
    trainer = MemlmTrainer(model, rows, settings, folder.checkpoints)
    log = RunLog(folder.log_path, tokens_per_step=settings.batch_size * config.model.chunk_length)
    if checkpoint is not None:
        kept = read_json(checkpoint / "trainer_state.json")["stateful_callbacks"]["RunLog"]
        log.restore(kept, step=step_of(checkpoint))
    else:
        log.path.unlink(missing_ok=True)
    sample = data.held_out_rows.sample(settings.evaluate_rows, seed=0)
    view = ProgressView(settings.steps, shown=progress)
    look = _evaluator(trainer, sample)
    trainer.add_run_callback(RunCallback(settings, log, view, look, interrupt))
    return trainer


def _evaluator(trainer: MemlmTrainer, rows: PackedRows) -> Callable[[], dict[str, float]]:
    """A look at held-out rows in the training's own precision; it draws no random numbers and selects nothing."""

    @torch.no_grad()
    def look() -> dict[str, float]:
        model = trainer.model_wrapped
        assert model is not None
        model.eval()
        right, nats, count = 0, 0.0, 0
        for batch in rows.batches(256):
            task = reconstruction(batch.input_ids, batch.attention_mask)
            labels = task.labels.to(trainer.args.device)
            with trainer.compute_loss_context_manager():
                logits = model(
                    input_ids=task.input_ids.to(labels.device),
                    attention_mask=batch.attention_mask.to(labels.device),
                ).logits
            right += int(correct(logits.argmax(-1), labels).sum())
            nats += float(token_nats(logits, labels).sum())
            count += int(asked(labels).sum())
        model.train()
        return {"held_out_token_accuracy": right / count, "held_out_cross_entropy": nats / count}

    return look


def _refuse_changed_text(folder: RunFolder, data: PreparedData) -> None:
    """A resumed run goes on with the text it began with, or held-out text might be trained on."""
    if not (folder.path / "data.json").is_file():
        return
    before = folder.data()
    for half in ("fingerprint_train", "fingerprint_held_out"):
        if before[half] != data.record[half]:
            raise DataError(
                f"'{data.record['source']}' has changed since this run began ({half} {str(before[half])[:8]}, now "
                f"{str(data.record[half])[:8]}); restore the text or begin a new run with another --out."
            )


def _write_records(folder: RunFolder, data: PreparedData) -> None:
    """How the run began; data.json last, so that where it is, all is."""
    data.tokenizer.save_pretrained(folder.path)
    folder.write("versions.json", describe_versions())
    folder.write(
        "data.json",
        {**data.record, "unigram_counts": data.unigram_counts.tolist(), "command": command_line()},
    )


def _finish(folder: RunFolder, model: TextAutoencoder, data: PreparedData) -> None:
    """The model to the folder's root, the weights last, so that what can be loaded is whole."""
    draft = folder.path / ".model.draft"
    try:
        model.save_pretrained(draft)
        for file in sorted(draft.iterdir(), key=lambda p: p.suffix == ".safetensors"):
            file.replace(folder.path / file.name)
        folder.write("status.json", {"state": "finished"})
    except OSError as error:
        raise RunFolderError(f"cannot write the model to '{folder.path}': {error.strerror or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
