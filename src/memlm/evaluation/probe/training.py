"""Training of a probe decoder: early stopping on validation passages, the best weights kept.

The best step so far is read from the log, which every checkpoint cuts to its own step; a resumed run therefore stops
where an unbroken one does, and ends with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from memlm.errors import CheckpointError
from memlm.files import write_folder_atomic
from memlm.measurement import correct, target_mask
from memlm.models.probe import ProbeConfig, ProbeDecoder, start_from_vectors
from memlm.models.runtime import no_shard_bars
from memlm.objectives import token_nats
from memlm.training.config import Count, OptimizerConfig, Settings, TrainingConfig
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.fit import fit
from memlm.training.loop.trainer import Batch, BatchFn, MemlmTrainer

Size = Literal["small", "medium", "large"]
SIZES: dict[Size, dict[str, int]] = {
    "small": {"hidden_size": 128, "num_layers": 1, "num_heads": 8},
    "medium": {"hidden_size": 192, "num_layers": 2, "num_heads": 16},
    "large": {"hidden_size": 384, "num_layers": 3, "num_heads": 16},
}
_VALIDATION_BATCH = 128


class ProbeTraining(Settings):
    """How a probe is trained."""

    size: Size = "medium"
    """Width and depth of the decoder."""
    readout_rank: Count | None = None
    """Numbers each position reads out of the vector; by default twice its even share, between 8 and 64."""
    steps: Count = 400
    """Updates at most."""
    batch_size: Count = 128
    """Passages in each update."""
    evaluate_every: Count = 40
    """Steps between looks at validation passages."""
    patience: Count = 4
    """Looks without a better cross-entropy after which training stops."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-3
    """Peak rate of Muon and of AdamW."""


@dataclass(frozen=True)
class ProbeData:
    """Vectors (rows, numbers) and classes (rows, tokens), IGNORE_INDEX where none is asked."""

    train_vectors: Float[Tensor, "rows numbers"]
    train_labels: Int[Tensor, "rows tokens"]
    validation_vectors: Float[Tensor, "validation numbers"]
    validation_labels: Int[Tensor, "validation tokens"]
    num_classes: int


def train_probe(
    data: ProbeData, settings: ProbeTraining, folder: Path, *, seed: int, progress: bool = True
) -> ProbeDecoder:
    """A trained probe, its best weights by validation cross-entropy; a finished one is read from its folder.

    Args:
        data: vectors and what they are asked for.
        settings: size, length of training, patience.
        folder: of this one probe; what was stopped there goes on.
        seed: of the weights and the order of passages.
        progress: show progress on stderr.

    Raises:
        Interrupted: Ctrl-C.
        CheckpointError: the folder holds something damaged.
    """
    with no_shard_bars():
        if not (folder / "done").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _train(data, settings, folder, seed=seed, progress=progress)
            write_folder_atomic(folder / "done", lambda draft: None)
        return _best(folder)


def _train(data: ProbeData, settings: ProbeTraining, folder: Path, *, seed: int, progress: bool) -> None:
    training = _training(settings, seed)
    torch.manual_seed(seed)
    model = ProbeDecoder(
        ProbeConfig(
            vocab_size=data.num_classes,
            length=data.train_labels.shape[1],
            vector_size=data.train_vectors.shape[1],
            readout_rank=settings.readout_rank or _rank(data),
            **cast(Any, SIZES[settings.size]),
        )
    )
    start_from_vectors(model, data.train_vectors, data.train_labels, seed=seed)

    def make_callback(trainer: MemlmTrainer, log: RunLog, view: ProgressView, interrupt: Interrupt) -> EarlyStop:
        stopper = EarlyStop(training, log, view, _Look(trainer, data), interrupt, split="validation")
        stopper.follow(model, folder / "best", settings.patience)
        return stopper

    fit(
        model,
        _batches(data),
        training,
        folder,
        rows=len(data.train_labels),
        tokens_per_row=data.train_labels.shape[1],
        make_callback=make_callback,
        progress=progress,
    )


class EarlyStop(RunCallback):
    """Keeps the weights of the best look, and stops when `patience` looks have not been better."""

    def follow(self, model: ProbeDecoder, best: Path, patience: int) -> None:
        """What to keep, where, and how long to wait."""
        self.model = model
        self.best = best
        self.patience = patience
        self.seen = [line["validation_cross_entropy"] for line in _lines(self.run_log) if _KEY in line]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The start is a candidate too: vectors that hold nothing are read best by a probe that learnt nothing."""
        super().on_train_begin(args, state, control)
        if self.seen:
            return
        looked = self.evaluate()
        self.run_log.loss_sum, self.run_log.loss_count = looked[_KEY], 1
        self.run_log.write(0, 0.0, looked)
        self.seen.append(looked[_KEY])
        write_folder_atomic(self.best, self.model.save_pretrained)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: Any) -> None:
        """Keep, stop, or go on."""
        super().on_step_end(args, state, control, **extra)
        if not self.looked:
            return
        self.seen.append(self.looked[_KEY])
        if self.seen[-1] == min(self.seen):
            write_folder_atomic(self.best, self.model.save_pretrained)
        waited = len(self.seen) - 1 - self.seen.index(min(self.seen))
        self.finished = self.finished or waited >= self.patience
        control.should_training_stop = control.should_training_stop or self.finished


_KEY = "validation_cross_entropy"


class _Look:
    """Validation passages in the training's own precision; draws no random numbers."""

    def __init__(self, trainer: MemlmTrainer, data: ProbeData) -> None:
        self.trainer = trainer
        self.data = data

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        model = cast(ProbeDecoder, self.trainer.model)
        model.eval()
        right, nats, count = 0, 0.0, 0
        pairs = zip(
            self.data.validation_vectors.split(_VALIDATION_BATCH),
            self.data.validation_labels.split(_VALIDATION_BATCH),
            strict=True,
        )
        for vectors, labels in pairs:
            with self.trainer.compute_loss_context_manager():
                logits = model.decode(vectors.to(model.device)).cpu()
            right += int(correct(logits.argmax(-1), labels).sum())
            nats += float(token_nats(logits, labels).sum())
            count += int(target_mask(labels).sum())
        model.train()
        return {"validation_token_accuracy": right / count, _KEY: nats / count}


def _rank(data: ProbeData) -> int:
    """Twice a position's even share of the vector, between 8 and 64."""
    share = data.train_vectors.shape[1] / data.train_labels.shape[1]
    return int(min(max(8, 2 * share), 64))


def _batches(data: ProbeData) -> BatchFn:
    def batch_fn(rows: Tensor, _: int) -> Batch:
        return {"vectors": data.train_vectors[rows], "labels": data.train_labels[rows]}

    return batch_fn


def _training(settings: ProbeTraining, seed: int) -> TrainingConfig:
    rate = settings.learning_rate
    return TrainingConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=seed,
        evaluate_every=settings.evaluate_every,
        checkpoint_every=4 * settings.evaluate_every,
        log_every=settings.evaluate_every,
        optimizer=OptimizerConfig(learning_rate=rate, adamw_learning_rate=rate),
    )


def _lines(log: RunLog) -> list[dict[str, Any]]:
    import json

    text = log.path.read_text(encoding="utf-8") if log.path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def _best(folder: Path) -> ProbeDecoder:
    try:
        return ProbeDecoder.from_pretrained(folder / "best").eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot load the probe in '{folder}' ({reason}); remove that folder and probe again."
        ) from error
