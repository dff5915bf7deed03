"""Scores of one model on tasks of lm-evaluation-harness, with old context read in several ways."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from memlm.errors import CheckpointError, ConfigError, did_you_mean
from memlm.evaluation.lm_eval.context_reader import ContextReader, Reading
from memlm.evaluation.lm_eval.ruler import TASKS as RULER
from memlm.evaluation.lm_eval.ruler import ruler_task
from memlm.evaluation.lm_eval.tasks import TASKS
from memlm.switches import OWN_CODE, TRUST_REMOTE_CODE, needs_code

_NORMAL_95 = 1.96
_BOOTSTRAPS = 1000
_NO_SUCH_LENGTH = -1
"""The score that RULER's tasks give for lengths that they were not asked for."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Score:
    """The value of a metric under one reading.

    Attributes:
        value: the value that the harness reports.
        margin: half of a 95 % interval, 1.96 standard errors of the harness; None where it reports none.
    """

    value: float
    margin: float | None


@dataclass
class TaskScores:
    """The scores of one task.

    Attributes:
        task: the name of the task.
        scores: scores by metric and reading; without `memory` where no request read one.
        requests: the number of requests that read memories.
        memories: the number of memories that these requests read.
        longest: tokens of the longest context.
    """

    task: str
    scores: dict[str, dict[Reading, Score]] = field(default_factory=dict)
    requests: int = 0
    memories: int = 0
    longest: int = 0


def open_tasks(names: Sequence[str], folder: Path) -> TaskManager:
    """Return a manager of the harness's tasks and those of a folder.

    Raises:
        ConfigError: a name that neither has.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(folder))
    known = manager.all_tasks
    for name in names:
        if name not in known:
            meant = did_you_mean(name, [*TASKS, *known])
            raise ConfigError(f"unknown task '{name}'. {meant} (`lm_eval ls tasks` lists all.)")
    return manager


def compare_readings(
    model: ContextReader,
    names: Sequence[str],
    manager: TaskManager,
    *,
    readings: Sequence[Reading],
    limit: int | None = None,
    lengths: Sequence[int] = (),
    say: Say = lambda _: None,
) -> list[TaskScores]:
    """Score each task under each reading.

    Args:
        model: the model; its `reading` is set.
        names: the names of the tasks.
        manager: a manager of these tasks.
        readings: at least one reading.
        limit: the maximum number of questions of a task.
        lengths: tokens of the contexts of RULER's tasks.
        say: called with a line about each evaluation.

    Raises:
        ConfigError: `memory` is among the readings and no request of any task read one.
        UserError: a context takes more positions than the decoder has.
    """
    found: list[TaskScores] = []
    for name in names:
        row = TaskScores(name)
        task = ruler_task(name, model.tokenizer, lengths) if name in RULER else name
        for reading in readings:
            say(f"{name}, old context read as: {reading}")
            model.reset()
            model.reading = reading
            scores = _scores(model, task, manager, limit)
            row.longest = max(row.longest, model.longest)
            if reading == "memory":
                row.requests, row.memories = model.num_requests, model.num_memories
            if reading != "memory" or model.num_requests:
                for metric, score in scores.items():
                    row.scores.setdefault(metric, {})[reading] = score
        found.append(row)
    if "memory" in readings and not any(row.memories for row in found):
        longest = max(row.longest for row in found)
        raise ConfigError(
            f"no request of these tasks read a memory: the longest context has {longest} tokens, and memories begin "
            f"at {model.begin} (--memory-after {model.memory_after}); lower --memory-after or choose longer tasks."
        )
    return found


def hf_scores(
    path_or_id: str, names: Sequence[str], manager: TaskManager, *, batch_size: int, limit: int | None, say: Say
) -> dict[str, dict[str, Score]]:
    """Return the scores of a plain model by the harness's own class, by task and metric.

    Raises:
        CheckpointError: the model cannot be loaded.
    """
    try:
        trusted = {"trust_remote_code": TRUST_REMOTE_CODE.is_on()}
        plain = cast(Any, HFLM)(pretrained=path_or_id, dtype="float32", device="cpu", batch_size=batch_size, **trusted)
    except Exception as error:  # hub, safetensors, JSON and transformers each raise their own kind
        if needs_code(error):
            raise CheckpointError(f"'{path_or_id}' {OWN_CODE}") from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot load '{path_or_id}' by the harness's own class ({reason}).") from error
    found: dict[str, dict[str, Score]] = {}
    for name in names:
        say(f"{name}, by the harness's own class")
        found[name] = _scores(plain, name, manager, limit)
    return found


def largest_difference(found: Sequence[TaskScores], plain: dict[str, dict[str, Score]]) -> float:
    """Return the largest difference between the reading "full" and a plain model, relative where scores exceed one."""
    return max(
        abs(score["full"].value - other.value) / max(1.0, abs(other.value))
        for row in found
        for metric, score in row.scores.items()
        for other in [plain[row.task][metric]]
    )


def _scores(model: Any, task: Any, manager: TaskManager, limit: int | None) -> dict[str, Score]:
    options: dict[str, Any] = {"limit": limit, "bootstrap_iters": _BOOTSTRAPS, "log_samples": False}
    with redirect_stdout(sys.stderr):  # stdout is for results alone
        result = cast(Any, simple_evaluate(model=model, tasks=[task], task_manager=manager, **options))
    found: dict[str, Score] = {}
    for name, figures in result["results"].items():
        for key, value in figures.items():
            metric, _, how = key.partition(",")
            unknown = metric.isdigit() and value == _NO_SUCH_LENGTH
            if not how or unknown or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}_stderr,{how}")
            known = isinstance(error, int | float) and math.isfinite(error)
            label = metric if len(result["results"]) == 1 else f"{name} {metric}"
            found[label] = Score(float(value), _NORMAL_95 * float(error) if known else None)  # type: ignore[arg-type]
    return found
