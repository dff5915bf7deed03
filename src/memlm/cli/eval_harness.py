"""`memlm eval-harness`: score a decoder with lm-evaluation-harness, with memories and without."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from memlm.cli.arguments import Positive, Seed, TokensPerMemory, parse
from memlm.errors import ConfigError
from memlm.models.runtime import Device, device_of

if TYPE_CHECKING:
    from memlm.data import Document
    from memlm.evaluation.lm_eval.compare import TaskScores
    from memlm.evaluation.lm_eval.context_reader import ContextReader

LOCAL = ("memlm_recall", "memlm_cloze", "memlm_prose")
_TITLES = {"memory": "with memory", "without": "without", "full": "all tokens"}


@dataclass(frozen=True)
class EvalHarness:
    """Run tasks of lm-evaluation-harness on a decoder with memories (pip install 'memlm[harness]').

    Context older than --memory-after tokens is read as memories, the rest as tokens. The same decoder is also scored
    without the old context, and with all of it as tokens. The memories that were read are counted; a task without any
    has no score with memory. Four tasks are made from held-out text and random facts (memlm_recall, memlm_write,
    memlm_cloze, memlm_prose); all tasks of the harness can be named too.
    """

    model: str
    """Folder of a run or of what `save_pretrained` wrote; or folder or Hub id of a pretrained decoder, which needs no
    training."""
    tasks: str = ",".join(LOCAL)
    """Names of tasks, separated by commas."""
    memory_after: Positive = 256
    """Number of newest tokens of a context that stay tokens. A memory model reads whole chunks as memories and may
    keep up to a chunk more."""
    tokens_per_memory: TokensPerMemory = None
    """Old tokens for each memory of a pretrained decoder; 8 by default."""
    readings: tuple[Literal["memory", "without", "full"], ...] = ("memory", "without", "full")
    """Ways to read old context: as memories, not at all, as tokens. Each gives a score."""
    limit: Positive | None = None
    """Maximum number of questions of a task."""
    questions: Positive = 64
    """Questions of each memlm task."""
    ruler_lengths: tuple[Positive, ...] = (1024, 4096)
    """Tokens of the contexts of RULER's niah_single_1, niah_multikey_2 and ruler_vt (pip install 'memlm[harness]')."""
    seed: Seed = 0
    """Seed of the facts."""
    text: str | None = None
    """Text of the memlm tasks; by default the run's held-out text, or that of the bundled speeches for a decoder
    without a run."""
    batch_size: Positive = 8
    """Requests in a batch."""
    device: Device = "auto"
    """Device of a pretrained decoder; a GPU where there is one by default."""
    hf: str | None = None
    """A plain model, scored by the harness's own class; the largest difference to `all tokens` is printed."""
    out: str | None = None
    """Folder of the memlm tasks, the table and the scores; by default RUN/harness, or runs/harness for a decoder
    without a run."""


def run(arguments: list[str]) -> None:
    """Run the command."""
    options = parse(EvalHarness, arguments, command="eval-harness")
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    _check(options, names)
    _require_harness()
    from memlm.evaluation.lm_eval.compare import compare_readings, hf_scores, largest_difference, open_tasks
    from memlm.files import write_file_atomic

    reader, out = _open_reader(options), Path(options.out or _default_out(options.model))
    (out / "tasks").mkdir(parents=True, exist_ok=True)
    # the harness reads tasks from a folder of this run alone: files of tasks can name Python code
    with tempfile.TemporaryDirectory(prefix="memlm-tasks-") as fresh:
        _prepare_tasks(options, names, reader, Path(fresh))
        _prepare_tasks(options, names, reader, out / "tasks")
        manager = open_tasks(names, Path(fresh))
        lengths = options.ruler_lengths
        found = compare_readings(
            reader, names, manager, readings=options.readings, limit=options.limit, lengths=lengths, say=_say
        )
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
    if not options.readings:
        raise ConfigError("--readings names none; give at least one of memory, without, full.")
    if options.hf is not None and "full" not in options.readings:
        raise ConfigError("--hf is compared with the reading of all tokens; add full to --readings.")


def _require_harness() -> None:
    import importlib.util

    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed; run `pip install 'memlm[harness]'`.")


def _open_reader(options: EvalHarness) -> ContextReader:
    """Return the model class of the harness around a memory model or a pretrained decoder."""
    from memlm.evaluation.lm_eval.language_model import MemoryLM
    from memlm.evaluation.lm_eval.slot_reader import SlotLM
    from memlm.models import MemoryModelForCausalLM
    from memlm.models.loading import is_decoder, load_model
    from memlm.models.slots import MemoryDecoder

    if is_decoder(options.model):
        decoder = MemoryDecoder.from_pretrained(options.model, dtype="float32", device_map=device_of(options.device))
        ratio = options.tokens_per_memory or 8
        return SlotLM(
            decoder, tokens_per_memory=ratio, memory_after=options.memory_after, batch_size=options.batch_size
        )
    model, tokenizer = load_model(options.model, MemoryModelForCausalLM)
    if options.tokens_per_memory is not None:
        raise ConfigError(
            f"--tokens-per-memory ({options.tokens_per_memory:g}) is of pretrained decoders; '{options.model}' was "
            f"trained with memories of {model.config.chunk_length} tokens, so leave it out."
        )
    return MemoryLM(model, tokenizer, memory_after=options.memory_after, batch_size=options.batch_size)


def _default_out(model: str) -> Path:
    from memlm.models.loading import RUN_MODELS, kind_of

    folder = Path(model)
    ours = (folder / "config.json").is_file() and kind_of(folder) in RUN_MODELS
    return folder / "harness" if ours else Path("runs") / "harness"


def _prepare_tasks(options: EvalHarness, names: list[str], reader: ContextReader, folder: Path) -> None:
    from memlm.evaluation.lm_eval.tasks import TASKS, write_tasks

    if not set(names) & set(TASKS):
        return
    words = int(0.75 * reader.task_length)  # three quarters of a word per token
    write_tasks(folder, _prose(options), questions=options.questions, words=words, seed=options.seed)


def _prose(options: EvalHarness) -> list[Document]:
    from memlm.data import load_documents, split_documents
    from memlm.models.loading import is_decoder
    from memlm.training import RunFolder
    from memlm.training.prepare import read_split

    if options.text is not None:
        return list(load_documents(options.text))
    if is_decoder(options.model) and not (Path(options.model) / "run.json").is_file():
        return list(split_documents(load_documents("sotu")).held_out)
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
