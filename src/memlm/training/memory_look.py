"""Looks at held-out documents while a memory model trains; they draw no random numbers and select nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from memlm.data import PackedRows
from memlm.measurement import asked, correct
from memlm.objectives import blank_copy, next_token, token_nats
from memlm.training.memory_config import Stage
from memlm.training.trainer import MemlmTrainer

_LOOK_ROWS = 64


def held_out_look(
    trainer: MemlmTrainer, rows: PackedRows, stage: Stage, *, blank_id: int
) -> Callable[[], dict[str, float]]:
    """Held-out documents: next tokens, and what comes back by blank copy; it draws no random numbers."""
    whole = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    main = "next_token" if "next_token" in stage.objectives else "blank_copy"

    @torch.no_grad()
    def look() -> dict[str, float]:
        model = trainer.wrapped()
        model.eval()
        found: dict[str, float] = {}
        for name, some in (("next_token", rows), ("blank_copy", whole)):
            if name == "blank_copy" and (not len(some) or some.input_ids.shape[1] % 2):
                continue
            accuracy, nats = _score(trainer, model, some, name, blank_id)
            found |= {f"held_out_accuracy/{name}": accuracy, f"held_out_loss/{name}": nats}
        model.train()
        if f"held_out_accuracy/{main}" in found:
            found["held_out_token_accuracy"] = found[f"held_out_accuracy/{main}"]
            found["held_out_cross_entropy"] = found[f"held_out_loss/{main}"]
        return found

    return look


def _score(trainer: MemlmTrainer, model: nn.Module, rows: PackedRows, name: str, blank_id: int) -> tuple[float, float]:
    right, nats, count = 0, 0.0, 0
    for batch in rows.batches(_LOOK_ROWS):
        task = (
            next_token(batch.input_ids, batch.attention_mask)
            if name == "next_token"
            else blank_copy(batch.input_ids, blank_id=blank_id)
        )
        device = trainer.args.device
        labels = task.labels.to(device)
        mask: Tensor = batch.attention_mask if name == "next_token" else torch.ones_like(task.input_ids)
        with trainer.compute_loss_context_manager():
            logits = model(input_ids=task.input_ids.to(device), attention_mask=mask.to(device)).logits
        right += int(correct(logits.argmax(-1), labels).sum())
        nats += float(token_nats(logits, labels).sum())
        count += int(asked(labels).sum())
    return right / max(count, 1), nats / max(count, 1)
