"""`memlm eval-harness`: score a memory model with lm-evaluation-harness, with memories and without."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memlm.cli.arguments import parse
from memlm.errors import ConfigError

if TYPE_CHECKING:
    from memlm.data import Document
    from memlm.evaluation.lm_eval.compare import TaskScores

LOCAL = ("memlm_recall", "memlm_cloze", "memlm_prose")
_TITLES = {"memory": "with memory", "without": "without", "full": "all tokens"}


@dataclass(frozen=True)
class EvalHarness:
    """Run tasks of lm-evaluation-harness on a memory model (pip install 'memlm[harness]').

    Chunks older than --memory-after tokens are read as memories, the rest as tokens. The same decoder is also scored
    without the old context, and with all of it as tokens. The memories that were read are counted; a task without any
    has no score with memory. Four tasks are made from the run's held-out text and random facts (memlm_recall,
    memlm_write, memlm_cloze, memlm_prose); all tasks of the harness can be named too.
    """

    model: str
    """Folder of a memory model's run."""
    tasks: str = ",".join(LOCAL)
    """Names of tasks, separated by commas."""
    memory_after: int = 256
    """Minimum number of newest tokens of a context that stay tokens."""
    readings: tuple[Literal["memory", "without", "full"], ...] = ("memory", "without", "full")
    """Ways to read old context: as memories, not at all, as tokens. Each gives a score."""
    limit: int | None = None
    """Maximum number of questions of a task."""
    questions: int = 64
    """Questions of each memlm task."""
    seed: int = 0
    """Seed of the facts."""
    text: str | None = None
    """Text of the memlm tasks; the run's held-out text by default."""
    batch_size: int = 8
    """Requests in a batch."""
    hf: str | None = None
    """A plain model, scored by the harness's own class; the largest difference to `all tokens` is printed."""
    out: str | None = None
    """Folder of the memlm tasks, the table and the scores; RUN/harness by default."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = parse(EvalHarness, arguments, command="eval-harness")
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    _check(options, names)
    _require_harness()
    from memlm.evaluation.lm_eval.compare import compare_readings, hf_scores, largest_difference, open_tasks
    from memlm.evaluation.lm_eval.language_model import MemoryLM
    from memlm.evaluation.lm_eval.tasks import TASKS, write_tasks
    from memlm.files import write_file_atomic
    from memlm.models import MemoryModelForCausalLM
    from memlm.models.loading import load_model

    model, tokenizer = load_model(options.model, MemoryModelForCausalLM)
    reader = MemoryLM(model, tokenizer, memory_after=options.memory_after, batch_size=options.batch_size)
    out = Path(options.out or Path(options.model) / "harness")
    if set(names) & set(TASKS):
        # at three quarters of a word per token, old context is as long as the window, and at least two chunks
        words = int(0.75 * (options.memory_after + max(options.memory_after, 2 * reader.chunk_length)))
        prose = _prose(options)
        write_tasks(out / "tasks", prose, questions=options.questions, words=words, seed=options.seed)
    else:
        (out / "tasks").mkdir(parents=True, exist_ok=True)
    manager = open_tasks(names, out / "tasks")
    found = compare_readings(reader, names, manager, readings=options.readings, limit=options.limit, say=_say)
    write_file_atomic(out / "results.json", json.dumps([asdict(row) for row in found], indent=2) + "\n")
    table = markdown(found, options)
    if options.hf is not None:
        plain = hf_scores(options.hf, names, manager, batch_size=options.batch_size, limit=options.limit, say=_say)
        table += f"\nLargest difference of `all tokens` to {options.hf} by the harness's own class: "
        table += f"{largest_difference(found, plain):.1e}\n"
    write_file_atomic(out / "table.md", table)
    print(table, end="")


def _check(options: EvalHarness, names: list[str]) -> None:
    if not names:
        raise ConfigError("--tasks names none; give at least one, such as memlm_recall.")
    for name in ("questions", "batch_size", "memory_after", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} ({value}) must be at least 1.")
    if not options.readings:
        raise ConfigError("--readings names none; give at least one of memory, without, full.")
    if options.hf is not None and "full" not in options.readings:
        raise ConfigError("--hf is compared with the reading of all tokens; add full to --readings.")


def _require_harness() -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed; run `pip install 'memlm[harness]'`.")


def _prose(options: EvalHarness) -> list[Document]:
    from memlm.data import load_documents
    from memlm.training import RunFolder
    from memlm.training.prepare import read_split

    if options.text is not None:
        return list(load_documents(options.text))
    config = RunFolder.open(options.model).config()
    return list(read_split(config.data, config.training.seed).held_out)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def markdown(found: list[TaskScores], options: EvalHarness) -> str:
    """Return a table with a row for each task and metric, 95 % intervals, and the number of memories read."""
    head = ["task", "metric", *(_TITLES[r] for r in options.readings), "requests that read memories", "memories read"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in found:
        for metric, scores in row.scores.items():
            cells = []
            for reading in options.readings:
                score = scores.get(reading)
                margin = "" if score is None or score.margin is None else f" ± {score.margin:.4f}"
                cells.append("none read" if score is None else f"{score.value:.4f}{margin}")
            lines.append(f"| {row.task} | {metric} | {' | '.join(cells)} | {row.requests} | {row.memories} |")
    return "\n".join(lines) + "\n"
