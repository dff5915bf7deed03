"""What test_processes runs, alone and as one of two: two steps of a mixture whose weights move."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from memlm.data import PackedRows
from memlm.objectives import LinearSchedule
from memlm.training.config import OptimizerConfig, Stage, TrainingConfig
from memlm.training.loop.callbacks import Interrupt, ProgressView, RunCallback, RunLog
from memlm.training.loop.trainer import MemlmTrainer, StepRows
from memlm.training.memory.batches import MemoryBatches
from memlm.training.model_settings import TokenIds, complete
from memlm.training.run import build_model

ROWS, STEPS, PER_STEP = 32, 2, 8


class GradientNorms(TrainerCallback):
    """What the optimizer is given in each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: Any
    ) -> None:
        gradients = [p.grad for p in extra["model"].parameters() if p.grad is not None]
        self.seen.append(float(torch.nn.utils.get_total_norm(gradients)))


def main(out: Path, batch_size: int) -> None:
    """Weights, loss of the last step and this process's rows to `out`."""
    torch.set_num_threads(1)
    layers = {"hidden_size": 16, "num_heads": 2}
    encoder = {**layers, "num_encoder_layers": 1, "bottleneck_size": 8, "memory_activation": "rms_norm"}
    sizes = {"model_type": "memlm_memory", "chunk_length": 4, "slots_per_chunk": 2, "encoder": encoder}
    config = complete({**sizes, "decoder": {**layers, "num_hidden_layers": 1}})
    model = build_model(config, TokenIds(vocab_size=40), seed=0)
    ids = torch.randint(2, 40, (ROWS, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row in range(ROWS):  # processes are asked for different numbers of tokens
        mask[row, 16 - row % 7 :] = row % 7 == 0
    rows = PackedRows(ids * mask, mask, torch.zeros(ROWS, dtype=torch.long), ("d",))
    ramp = LinearSchedule(start=1.0, end=0.1, steps=2)
    stage = Stage(name="s", objectives={"next_token": 1.0, "blank_copy": ramp}, steps=STEPS, distances="every")
    batch_fn = MemoryBatches(rows, stage, rows_per_step=PER_STEP, chunk_length=4, blank_id=0, seed=0)
    # no clipping: AdamW forgives a gradient of the wrong size, so its norm is printed as it is
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-2, warmup_steps=0, gradient_clip=1e6)
    training = TrainingConfig(batch_size=batch_size, steps=STEPS, precision="fp32", optimizer=optimizer)
    trainer = MemlmTrainer(model, StepRows(ROWS, batch_fn, length=STEPS * PER_STEP, seed=0), training, out / "none")
    log = RunLog(out / f"log-{trainer.args.process_index}.jsonl", tokens_per_step=1)
    view = ProgressView(STEPS, shown=False)
    trainer.add_run_callback(RunCallback(training, log, view, dict, Interrupt()))
    trainer._save_checkpoint = lambda *_: None  # type: ignore[method-assign]
    norms = GradientNorms()
    trainer.add_callback(norms)
    trainer.train()
    if trainer.args.process_index == 0:
        model.save_pretrained(out)
    print(json.dumps({"processes": trainer.args.world_size, "norms": norms.seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
