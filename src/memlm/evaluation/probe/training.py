"""Training of a probe decoder with early stopping on validation passages; the best weights are saved.

The best step so far is read from the log, which every checkpoint cuts to its own step. A resumed run therefore stops
at the step at which an uninterrupted one stops, with the same weights.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

from memlm.checksums import check_folder
from memlm.errors import CheckpointError
from memlm.evaluation.probe.settings import SIZES, ProbeTraining
from memlm.files import write_folder_atomic
from memlm.measurement import correct, target_mask
from memlm.models import ProbeConfig, ProbeDecoder
from memlm.models.probe.start import start_from_language, start_from_vectors, start_tokens
from memlm.models.runtime import no_shard_bars
from memlm.objectives import token_nats
from memlm.training.config import OptimizerConfig, TrainingConfig
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.trainer import MemlmTrainer, fit

_VALIDATION_BATCH = 128
_NOISE = 1.0
"""Standard deviation of the noise on whitened vectors from which a decoder that reads tokens learns."""
_CANDIDATES = 1024
"""Classes beside its targets that each batch is compared with; with thousands of classes, all of them take most of the
time of a step."""
_KEY = "validation_cross_entropy"


@dataclass(frozen=True)
class ProbeData:
    """Vectors (rows, numbers) and target classes (rows, tokens), IGNORE_INDEX where there is no target.

    `table` holds the encoder's own vector of each class, where a decoder that reads tokens may start from them.
    """

    train_vectors: Float[Tensor, "rows numbers"]
    train_labels: Int[Tensor, "rows tokens"]
    validation_vectors: Float[Tensor, "validation numbers"]
    validation_labels: Int[Tensor, "validation tokens"]
    num_classes: int
    table: Float[Tensor, "classes _"] | None = None


def train_probe(
    data: ProbeData,
    settings: ProbeTraining,
    folder: Path,
    *,
    seed: int,
    language: ProbeDecoder | None = None,
    progress: bool = True,
) -> ProbeDecoder:
    """Train a probe and return it with the weights of the lowest validation cross-entropy.

    A finished probe is read from its folder; training that was interrupted continues.

    Args:
        data: vectors and target classes.
        settings: size, number of updates, patience.
        folder: the folder of this probe alone.
        seed: the seed of the weights and of the order of passages.
        language: a decoder of the same size that learnt to write without vectors, from which training starts.
        progress: show progress on stderr.

    Raises:
        Interrupted: Ctrl-C.
        CheckpointError: the saved probe is damaged.
    """
    with no_shard_bars():
        if not (folder / "done").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _train(data, settings, folder, seed=seed, language=language, progress=progress)
            write_folder_atomic(folder / "done", lambda draft: None, owned=True)
        return _best(folder)


def _train(
    data: ProbeData, settings: ProbeTraining, folder: Path, *, seed: int, language: ProbeDecoder | None, progress: bool
) -> None:
    training = TrainingConfig(
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=seed,
        evaluate_every=settings.evaluate_every,
        checkpoint_every=4 * settings.evaluate_every,
        log_every=settings.evaluate_every,
        optimizer=OptimizerConfig(learning_rate=settings.learning_rate, adamw_learning_rate=settings.learning_rate),
    )
    torch.manual_seed(seed)
    model = untrained_probe(data, settings)
    if language is None:
        start_from_vectors(model, data.train_vectors, data.train_labels, seed=seed)
        if data.table is not None and model.embed_tokens is not None:
            start_tokens(model.embed_tokens, data.table)
    else:
        start_from_language(model, language, data.train_vectors, data.train_labels)

    def make_callback(trainer: MemlmTrainer, log: RunLog, view: ProgressView, interrupt: Interrupt) -> EarlyStop:
        stopper = EarlyStop(training, log, view, partial(_validate, trainer, model, data), interrupt)
        stopper.follow(model, folder / "best", settings.patience)
        return stopper

    fit(
        model,
        lambda rows, _: {"vectors": data.train_vectors[rows], "labels": data.train_labels[rows]},
        training,
        folder,
        rows=len(data.train_labels),
        tokens_per_row=data.train_labels.shape[1],
        make_callback=make_callback,
        progress=progress,
    )


def untrained_probe(data: ProbeData, settings: ProbeTraining) -> ProbeDecoder:
    """Return a decoder with random weights, whose positions read twice their even share of the vector, from 8 to 64."""
    length, size = data.train_labels.shape[1], data.train_vectors.shape[1]
    rank = settings.readout_rank or int(min(max(8, 2 * size / length), 64))
    shape: dict[str, Any] = dict(SIZES[settings.size])
    # attention learns what follows what at all positions at once, and a mixer at each position anew
    writes = {"reads_tokens": True, "backbone": "llama", "learned_positions": True, "vector_noise": _NOISE}
    shape |= {"vector_size": size, "readout_rank": rank, "candidates": _CANDIDATES}
    shape |= writes if settings.reads_tokens else {}
    return ProbeDecoder(ProbeConfig(vocab_size=data.num_classes, length=length, **shape))


class EarlyStop(RunCallback):
    """Save the weights of the best evaluation, and stop after `patience` evaluations without a better one."""

    def follow(self, model: ProbeDecoder, best: Path, patience: int) -> None:
        """Set the model to save, the folder to save it to, and the patience."""
        self.model, self.best, self.patience = model, best, patience
        log = self.run_log.path
        lines = map(json.loads, log.read_text(encoding="utf-8").splitlines()) if log.exists() else ()
        self.seen = [line[_KEY] for line in lines if _KEY in line]

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate the initial weights: of vectors without information, an untrained probe is the best one."""
        super().on_train_begin(args, state, control)
        if self.seen:
            return
        scores = self.evaluate()
        self.run_log.loss_sum, self.run_log.loss_count = scores[_KEY], 1
        self.run_log.write(0, 0.0, scores)
        self.seen.append(scores[_KEY])
        write_folder_atomic(self.best, self.model.save_pretrained, owned=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: Any) -> None:
        """Save the weights where they are the best so far, and stop where patience is exhausted."""
        super().on_step_end(args, state, control, **extra)
        if not self.looked:
            return
        self.seen.append(self.looked[_KEY])
        if self.seen[-1] == min(self.seen):
            write_folder_atomic(self.best, self.model.save_pretrained, owned=True)
        waited = len(self.seen) - 1 - self.seen.index(min(self.seen))
        self.finished = self.finished or waited >= self.patience
        control.should_training_stop = control.should_training_stop or self.finished


@torch.no_grad()
def _validate(trainer: MemlmTrainer, model: ProbeDecoder, data: ProbeData) -> dict[str, float]:
    """Evaluate on validation passages in the precision of training; no random numbers are drawn."""
    model.eval()
    num_correct, nats, count = 0, 0.0, 0
    parts = (tensor.split(_VALIDATION_BATCH) for tensor in (data.validation_vectors, data.validation_labels))
    for vectors, labels in zip(*parts, strict=True):
        with trainer.compute_loss_context_manager():
            logits = model.teacher_forced(vectors.to(model.device), labels.to(model.device)).cpu()
        num_correct += int(correct(logits.argmax(-1), labels).sum())
        nats += float(token_nats(logits, labels).sum())
        count += int(target_mask(labels).sum())
    model.train()
    return {"validation_token_accuracy": num_correct / count, _KEY: nats / count}


def _best(folder: Path) -> ProbeDecoder:
    check_folder(folder / "best")
    try:
        return ProbeDecoder.from_pretrained(folder / "best").eval()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot load the probe in '{folder}' ({reason}); remove that folder and probe again."
        ) from error
