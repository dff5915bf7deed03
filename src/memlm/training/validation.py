"""Validation during training, on documents that are neither trained on nor held out; it draws no random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from memlm.data import PackedRows
from memlm.measurement import correct, target_mask
from memlm.objectives import Task, blank_copy, next_token, reconstruction, token_nats
from memlm.training.config import RunConfig
from memlm.training.loop.trainer import MemlmTrainer
from memlm.training.stage_config import Stage

Validate = Callable[[], dict[str, float]]


class _Ask(NamedTuple):
    """Rows, what they are asked for, and how many are read at once."""

    rows: PackedRows
    task: Callable[[PackedRows], Task]
    at_once: int = 64


def validation_of(
    trainer: MemlmTrainer, rows: PackedRows, config: RunConfig, stage: Stage, *, blank_id: int
) -> Validate:
    """Return a function that measures accuracy and cross-entropy on validation rows.

    Autoencoders are asked for their input. Memory models are asked for next tokens, and for blank copies where rows
    are full and have two halves; the figures without an objective's name are those of the stage's main one.
    """
    if config.is_autoencoder:
        ask = _Ask(rows, lambda batch: reconstruction(batch.input_ids, batch.attention_mask), 256)
        return lambda: _main_figures(*validation_score(trainer, ask))
    full = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    main = "next_token" if "next_token" in stage.objectives else "blank_copy"
    asks = {"next_token": _Ask(rows, lambda batch: next_token(batch.input_ids, batch.attention_mask))}
    if len(full) and full.input_ids.shape[1] % 2 == 0:
        asks["blank_copy"] = _Ask(full, lambda batch: blank_copy(batch.input_ids, blank_id=blank_id))

    def validate() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, ask in asks.items():
            accuracy, nats = validation_score(trainer, ask)
            found |= {f"validation_accuracy/{name}": accuracy, f"validation_loss/{name}": nats}
            if name == main:
                found |= _main_figures(accuracy, nats)
        return found

    return validate


def _main_figures(accuracy: float, nats: float) -> dict[str, float]:
    return {"validation_token_accuracy": accuracy, "validation_cross_entropy": nats}


@torch.no_grad()
def validation_score(trainer: MemlmTrainer, ask: _Ask) -> tuple[float, float]:
    """Return the share of correct tokens and the nats per token, in the training's own precision.

    Where a task has inputs of its own, every position is text.
    """
    model, device = trainer.wrapped(), trainer.args.device
    model.eval()
    num_correct, nats, count = 0, 0.0, 0
    for batch in ask.rows.batches(ask.at_once):
        task = ask.task(batch)
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
