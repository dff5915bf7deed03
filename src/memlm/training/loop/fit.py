"""One model trained in one folder: what was stopped there goes on, and ends as if it had not been."""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from memlm.files import read_json
from memlm.training.config import TrainingConfig
from memlm.training.loop import distributed
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.checkpoint import newest, step_of
from memlm.training.loop.distributed import full_weights, shards
from memlm.training.loop.trainer import BatchFn, Interrupted, MemlmTrainer, StepRows

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
        folder: of this training alone.
        rows: how many there are to take from.
        tokens_per_row: for the log.
        make_callback: makes the callback; by default one that only logs.
        progress: show progress on stderr.
        noun: what the progress counts.
        again: how to go on, for who stops it.
        keep_checkpoints: they are removed at the end otherwise.

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
        kept = read_json(checkpoint / "trainer_state.json")["stateful_callbacks"]["RunLog"]
        log.restore(kept, step=step_of(checkpoint))
    elif distributed.is_first():
        log.path.unlink(missing_ok=True)
    interrupt = Interrupt()
    view = ProgressView(training.steps, shown=progress and distributed.is_first(), noun=noun)
    callback = (make_callback or _only_log(training))(trainer, log, view, interrupt)
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


def _only_log(training: TrainingConfig) -> CallbackFactory:
    return lambda _, log, view, interrupt: RunCallback(training, log, view, dict, interrupt)
