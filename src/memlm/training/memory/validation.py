"""What is looked at while a memory model trains: next tokens, and what comes back by blank copy."""

from __future__ import annotations

from collections.abc import Callable

from memlm.data import PackedRows
from memlm.objectives import Task, blank_copy, next_token
from memlm.training.loop.trainer import MemlmTrainer
from memlm.training.loop.validation import held_out_score
from memlm.training.memory.config import Stage

_LOOK_ROWS = 64


def validation_of(
    trainer: MemlmTrainer, rows: PackedRows, stage: Stage, *, blank_id: int
) -> Callable[[], dict[str, float]]:
    """Both on held-out documents; copies where rows are full and have two halves."""
    whole = rows.select(rows.attention_mask.bool().all(1).nonzero()[:, 0])
    main = "next_token" if "next_token" in stage.objectives else "blank_copy"
    asks: dict[str, tuple[PackedRows, Callable[[PackedRows], Task]]] = {
        "next_token": (rows, lambda batch: next_token(batch.input_ids, batch.attention_mask))
    }
    if len(whole) and whole.input_ids.shape[1] % 2 == 0:
        asks["blank_copy"] = (whole, lambda batch: blank_copy(batch.input_ids, blank_id=blank_id))

    def look() -> dict[str, float]:
        found: dict[str, float] = {}
        for name, (some, ask) in asks.items():
            accuracy, nats = held_out_score(trainer, some, ask, at_once=_LOOK_ROWS)
            found |= {f"held_out_accuracy/{name}": accuracy, f"held_out_loss/{name}": nats}
            if name == main:
                found |= {"held_out_token_accuracy": accuracy, "held_out_cross_entropy": nats}
        return found

    return look
