"""Training: transformers' Trainer with its own rows, optimizer and checkpoints.

What the subclass changes, and why:
- rows are a pure function of (seed, step), so that resuming skips nothing and repeats nothing
- checkpoints are whole, and hold no pickle
- the log is ours: a mean of losses that survives a resume, which Trainer's own does not
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from memlm.checksums import check_folder
from memlm.data import PackedRows
from memlm.errors import CheckpointError, MemlmError
from memlm.files import disk_errors, one_error, read_json, write_folder_atomic
from memlm.measurement import target_mask
from memlm.models.runtime import ShortAttentionInFp32, wants_bf16
from memlm.objectives import reconstruction, targets_by_objective
from memlm.training.config import TrainingConfig
from memlm.training.loop import distributed
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.checkpoint import (
    full_state,
    load_optimizer,
    load_random_state,
    newest,
    remove_old,
    save_optimizer,
    save_random_state,
    step_of,
)
from memlm.training.loop.distributed import full_weights, shard, shards
from memlm.training.loop.optimizer import build_optimizer, learning_rate_factor

Batch = dict[str, Tensor]


class Interrupted(MemlmError):  # noqa: N818 (nothing went wrong)
    """Training was stopped by Ctrl-C; a checkpoint was kept."""


BatchFn = Callable[[Tensor, int], Batch]
"""Pure function of row numbers, and of the position of the first of them among the rows of all steps, to a batch."""


class StepRows(Dataset[Batch]):
    """All rows of all steps in order: epoch after epoch, each in its own permutation, a pure function of the seed."""

    def __init__(self, count: int, batch_fn: BatchFn, *, length: int, seed: int) -> None:
        self.count = count
        self.batch_fn = batch_fn
        self.length = length
        self.seed = seed
        self.epoch = -1
        self.order = torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.batch_fn(torch.stack([self._row(i) for i in indices]), indices[0])

    def _row(self, index: int) -> Tensor:
        epoch, place = divmod(index, self.count)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self.epoch, self.order = epoch, torch.randperm(self.count, generator=generator)
        return self.order[place]


def reconstruction_batches(rows: PackedRows) -> BatchFn:
    """Return batches whose targets are their own tokens."""

    def batch_fn(chosen: Tensor, _: int) -> Batch:
        batch = rows.select(chosen)
        labels = reconstruction(batch.input_ids, batch.attention_mask).labels
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": labels}

    return batch_fn


class MemlmTrainer(Trainer):
    """Trainer over `StepRows`, with whole checkpoints of safetensors and JSON."""

    def __init__(
        self, model: PreTrainedModel, rows: StepRows, config: TrainingConfig, folder: Path, **rest: Any
    ) -> None:
        self.config = config
        self.checkpoints = folder
        self.shards = shards(config)
        # rows come as whole batches, which need no collation
        collator = cast(Any, dict)
        super().__init__(
            model=model, args=_arguments(config, folder), train_dataset=rows, data_collator=collator, **rest
        )
        if self.shards:
            # ours is sharded already where accelerate would copy it to every process
            self.accelerator.prepare_model = cast(Any, partial(self.accelerator.prepare_model, evaluation_mode=True))
        self.remove_callback(PrinterCallback)

    def create_optimizer(self, model: Any = None) -> Optimizer:
        # a checkpoint's weights, which are whole, are in the model by now
        if self.optimizer is None:  # pyright: ignore[reportUnnecessaryComparison]
            own = cast(PreTrainedModel, self.model)
            if self.shards:
                shard(own)
            self.optimizer = build_optimizer(own, self.config.optimizer)
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

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute as Trainer does, and keep nats and correct tokens of each objective for the log."""
        with ShortAttentionInFp32():
            loss, outputs = cast(Any, super().compute_loss(model, inputs, True, num_items_in_batch))
        if getattr(outputs, "nats", None) is not None:
            self.run_callback.last_sums = torch.stack([outputs.nats, outputs.num_correct, outputs.num_targets])
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: torch.device) -> Any:
        """Return the targets of all accumulated batches and processes, of each objective where there are several."""
        if not batch_samples or "loss_weights" not in batch_samples[0]:
            return super()._get_num_items_in_batch(batch_samples, device)
        counts = torch.stack([_count_targets(batch) for batch in batch_samples]).sum(0).to(device)
        if self.args.world_size > 1:
            counts = cast(Tensor, self.accelerator.gather(counts[None])).sum(0)
        return counts

    def add_run_callback(self, callback: RunCallback) -> None:
        """Add the callback that logs, which reads each step's loss."""
        self.run_callback = callback
        self.add_callback(callback)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.optimizer is not None
        # gathered by all, written by the first
        weights = full_weights(cast(nn.Module, self.model)) if self.shards else None
        optimizer = full_state(self.optimizer)
        if self.args.should_save:
            write = partial(self._write_checkpoint, weights=weights, optimizer=optimizer)
            place = self.checkpoints / f"step-{self.state.global_step}"
            with disk_errors():
                write_folder_atomic(place, write, owned=True)
            remove_old(self.checkpoints, keep=self.config.keep_checkpoints)

    def _write_checkpoint(self, folder: Path, *, weights: dict[str, Tensor] | None, optimizer: dict[str, Any]) -> None:
        self.model.save_pretrained(folder, state_dict=weights)  # type: ignore[union-attr]
        save_optimizer(optimizer, folder)
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


def _count_targets(batch: Batch) -> Tensor:
    """Return the number of targets of each objective; reconstruction has labels of its own."""
    apart = "reconstruction_labels" in batch
    counts = targets_by_objective(batch["labels"], batch["objective"], count=len(batch["loss_weights"]) - apart)
    return torch.cat([counts, target_mask(batch["reconstruction_labels"]).sum()[None].float()]) if apart else counts


def _arguments(config: TrainingConfig, folder: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=config.batch_size,
        max_steps=config.steps,
        max_grad_norm=config.optimizer.gradient_clip,
        bf16=wants_bf16(config.precision),
        use_cpu=config.device == "cpu" or not torch.cuda.is_available(),
        seed=config.seed,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        # they never change
        ddp_broadcast_buffers=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
    )


CallbackFactory = Callable[[MemlmTrainer, RunLog, ProgressView, Interrupt], RunCallback]
"""Makes the callback that watches a training."""


def fit(
    model: PreTrainedModel,
    batch_fn: BatchFn,
    training: TrainingConfig,
    folder: Path,
    *,
    rows: int,
    tokens_per_row: int,
    make_callback: CallbackFactory | None = None,
    progress: bool = True,
    noun: str = "step",
    again: str = "the same command goes on from there",
    keep_checkpoints: bool = False,
) -> None:
    """Train a model in place.

    Args:
        model: with its first weights; those of a checkpoint replace them.
        batch_fn: row numbers to a batch, a pure function of them (and of torch's random state).
        training: steps, batch, rates, seed.
        folder: folder of this training alone.
        rows: number of rows that batches are drawn from.
        tokens_per_row: for the log.
        make_callback: makes the callback; by default one that only logs.
        progress: show progress on stderr.
        noun: unit of the progress.
        again: how to continue a training that was stopped.
        keep_checkpoints: keep the last checkpoints after the end.

    Raises:
        Interrupted: Ctrl-C; a checkpoint was kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    share = training.model_copy(update={"batch_size": distributed.share_of(training.batch_size)})
    steps = StepRows(rows, batch_fn, length=training.steps * training.batch_size, seed=training.seed)
    # what is sharded cannot be made whole in place: a copy trains, and gives its weights back
    sharded = shards(training)
    trained = copy.deepcopy(model) if sharded else model
    trainer = MemlmTrainer(trained, steps, share, folder / "checkpoints")
    log = RunLog(folder / "log.jsonl", tokens_per_step=training.batch_size * tokens_per_row)
    # the first process sweeps away what is half written before the others look
    distributed.first_does(lambda: newest(folder / "checkpoints"))
    checkpoint = newest(folder / "checkpoints")
    if checkpoint is not None:
        check_folder(checkpoint)
        state = checkpoint / "trainer_state.json"
        with one_error(state, CheckpointError, "restore it, or remove its folder"):
            log.restore(read_json(state)["stateful_callbacks"]["RunLog"], step=step_of(checkpoint))
    elif distributed.is_first():
        log.path.unlink(missing_ok=True)
    interrupt = Interrupt()
    view = ProgressView(training.steps, shown=progress and distributed.is_first(), noun=noun)
    if make_callback is None:
        callback = RunCallback(training, log, view, dict, interrupt)
    else:
        callback = make_callback(trainer, log, view, interrupt)
    trainer.add_run_callback(callback)
    with interrupt.listening(), warnings.catch_warnings():
        # outputs that are views: nothing here changes them in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if callback.stopping and not callback.finished:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {training.steps}; {again}")
    distributed.meet()
    if sharded:
        model.load_state_dict(full_weights(trained))
    if not keep_checkpoints and distributed.is_first():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
