"""Progress of a run: a bar on stderr and one JSON line per log step."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from memlm.files import write_file_atomic
from memlm.processes import Stopped, handled_by, restore
from memlm.training.config import TrainingConfig
from memlm.training.loop import distributed

_PLAIN_SECONDS = 10.0
"""Without a terminal a line of progress is printed this often."""


def say(text: str, *, shown: bool) -> None:
    """Print a line on stderr, in the first process only."""
    if shown and distributed.is_first():
        print(text, file=sys.stderr)


class ProgressView:
    """A live bar on a terminal, a line now and then elsewhere, nothing when silent."""

    def __init__(self, total: int, *, shown: bool, noun: str = "step") -> None:
        self.total = total
        self.noun = noun
        self.shown = shown
        self.bar: Progress | None = None
        self.last_line = 0.0
        self.started = time.monotonic()
        self.first_step = 0

    def start(self, step: int) -> None:
        """Show the bar, from this step on."""
        self.first_step = step
        console = Console(stderr=True)
        if self.shown and console.is_terminal:
            columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
            self.bar = Progress(*columns, TimeRemainingColumn(compact=True), console=console, expand=True)
            self.task = self.bar.add_task(self.noun, total=self.total, completed=step, facts="")
            self.bar.start()

    def update(self, step: int, facts: str) -> None:
        """Move to a step."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step, facts=facts)
        elif self.shown and (time.monotonic() - self.last_line > _PLAIN_SECONDS or step == self.total):
            self.last_line = time.monotonic()
            done, left = step - self.first_step, ""
            if done:
                seconds = int((time.monotonic() - self.started) / done * (self.total - step))
                left = f"{timedelta(seconds=seconds)} left"
            print(f"{self.noun} {step}/{self.total}  {facts}  {left}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.stop()


class RunLog:
    """The training log and the sums it needs between lines.

    Part of every checkpoint, so that a resumed run's log is the unbroken run's, seconds apart.
    """

    def __init__(self, path: Path, *, tokens_per_step: int) -> None:
        self.path = path
        self.tokens_per_step = tokens_per_step
        self.loss_sum = 0.0
        self.loss_count = 0
        self.seconds = 0.0
        self.names: tuple[str, ...] = ()
        self.sums: list[list[float]] = []

    def state(self) -> dict[str, Any]:
        """Return the state that a checkpoint keeps."""
        kept = {"loss_sum": self.loss_sum, "loss_count": self.loss_count, "seconds": self.seconds}
        return {**kept, "sums": self.sums} if self.sums else kept

    def restore(self, state: dict[str, Any], *, step: int) -> None:
        """Go on from a checkpoint: lines after its step are cut off."""
        self.loss_sum, self.loss_count = state["loss_sum"], int(state["loss_count"])
        self.seconds = state["seconds"]
        self.sums = state.get("sums", [])
        if not distributed.is_first():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_file_atomic(self.path, "".join(line + "\n" for line in kept))

    def add_sums(self, sums: Tensor) -> None:
        """Add the nats, correct tokens and targets (3, objectives) of one step."""
        total = sums.double().cpu()
        self.sums = (total + torch.tensor(self.sums, dtype=torch.double) if self.sums else total).tolist()

    def _by_objective(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, (nats, num_correct, num_targets) in zip(self.names, zip(*self.sums, strict=True), strict=False):
            if num_targets:
                found |= {f"loss/{name}": nats / num_targets, f"accuracy/{name}": num_correct / num_targets}
        return found

    def write(self, step: int, learning_rate: float, validated: dict[str, float]) -> dict[str, Any]:
        """Append one line, and begin the next mean."""
        line = {
            "step": step,
            "tokens": step * self.tokens_per_step,
            "seconds": round(self.seconds, 3),
            "loss": self.loss_sum / max(self.loss_count, 1),
            "learning_rate": learning_rate,
            **self._by_objective(),
            **validated,
        }
        if distributed.is_first():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self.loss_sum, self.loss_count, self.sums = 0.0, 0, []
        return line


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class RunCallback(TrainerCallback):
    """Log, validate, show progress, and save checkpoints at their steps."""

    def __init__(
        self,
        config: TrainingConfig,
        log: RunLog,
        view: ProgressView,
        evaluate: Callable[[], dict[str, float]],
        interrupt: Interrupt,
    ) -> None:
        self.config = config
        self.run_log = log
        self.view = view
        self.evaluate = evaluate
        self.interrupt = interrupt
        self.accuracy: float | None = None
        self.looked: dict[str, float] = {}
        self.finished = False
        self.stopping = False
        self.last_loss = torch.tensor(torch.nan)
        self.last_sums: Tensor | None = None
        self.step_began = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.view.start(state.global_step)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.view.stop()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.step_began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: Any) -> None:
        loss = self._add_step()
        self.run_log.seconds += time.perf_counter() - self.step_began
        step = state.global_step
        last = self.finished = step == state.max_steps
        looked = step % self.config.evaluate_every == 0 or last
        self.looked = self.evaluate() if looked else {}
        if looked or step % self.config.log_every == 0:
            self.accuracy = self.looked.get("validation_token_accuracy", self.accuracy)
            self.run_log.write(step, extra["lr_scheduler"].get_last_lr()[0], self.looked)
        self.view.update(step, self._facts(step, loss))
        control.should_save = step % self.config.checkpoint_every == 0 or last or self.stopping
        control.should_training_stop = last or self.stopping

    def _add_step(self) -> float:
        """Return the step's loss; sums over processes, and whether one shall stop, are exchanged at once."""
        own = self.last_loss.new_tensor([self.interrupt.requested])
        sums = own[:0] if self.last_sums is None else self.last_sums
        found = distributed.summed(torch.cat([own, self.last_loss[None], sums.flatten()]))
        # all stop at the same step: a signal from here on is the next one's
        self.stopping = bool(found[0])
        # each is of its rows, and Trainer has made it as large as the whole
        loss = float(found[1]) / distributed.count()
        self.run_log.loss_sum += loss
        self.run_log.loss_count += 1
        if self.last_sums is not None:
            self.run_log.add_sums(found[2:].view_as(self.last_sums))
        return loss

    def _facts(self, step: int, loss: float) -> str:
        speed = step * self.run_log.tokens_per_step / max(self.run_log.seconds, 1e-9)
        accuracy = "" if self.accuracy is None else f"  validation accuracy {100 * self.accuracy:.2f} %"
        return f"loss {loss:.3f}{accuracy}  {speed:,.0f} tok/s"


class Interrupt:
    """Ctrl-C or SIGTERM once: finish the step, keep a checkpoint, stop. Twice: stop at once.

    A launcher ends its processes by SIGTERM, after the terminal has sent them the SIGINT: there it only asks too.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Generator[None]:
        """Within it the first signal only requests a stop; the handlers before are put back on leaving."""

        def ask(number: int, _frame: object) -> None:
            Stopped.signal = number
            if self.requested and not distributed.launched():
                raise KeyboardInterrupt
            if not self.requested and distributed.is_first():
                again = "" if distributed.launched() else " (Ctrl-C again to stop at once)"
                print(f"\nstopping after this step{again} ...", file=sys.stderr)
            self.requested = True

        before = handled_by(ask)
        try:
            yield
        finally:
            restore(before)
