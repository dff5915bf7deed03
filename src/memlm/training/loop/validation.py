"""Looks at held-out rows while a model trains; they draw no random numbers and select nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch

from memlm.data import PackedRows
from memlm.measurement import correct, target_mask
from memlm.objectives import Task, token_nats
from memlm.training.loop.trainer import MemlmTrainer


@torch.no_grad()
def held_out_score(
    trainer: MemlmTrainer, rows: PackedRows, ask: Callable[[PackedRows], Task], *, at_once: int
) -> tuple[float, float]:
    """Share of tokens right, and nats per token, in the training's own precision.

    Args:
        trainer: whose model is looked at, and goes on training afterwards.
        rows: held out.
        ask: rows to inputs and labels; where it makes inputs of its own, every position is text.
        at_once: rows in one pass.
    """
    model, device = trainer.wrapped(), trainer.args.device
    model.eval()
    right, nats, count = 0, 0.0, 0
    for batch in rows.batches(at_once):
        task = ask(batch)
        own = task.input_ids is batch.input_ids
        mask = batch.attention_mask if own else torch.ones_like(batch.attention_mask)
        labels = task.labels.to(device)
        with trainer.compute_loss_context_manager():
            logits = model(input_ids=task.input_ids.to(device), attention_mask=mask.to(device)).logits
        right += int(correct(logits.argmax(-1), labels).sum())
        nats += float(token_nats(logits, labels).sum())
        count += int(target_mask(labels).sum())
    model.train()
    return right / max(count, 1), nats / max(count, 1)
