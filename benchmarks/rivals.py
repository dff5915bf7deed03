"""Memories beside other ways to fill a cache: eviction by kvpress, Attention Matching, truncation, found passages.

OMP_NUM_THREADS=1 python -m benchmarks.rivals --decoder PATH_OR_HUB_ID

Each way has equally many entries in the cache of the same decoder. The first table is the share of the full-context
gain, the second one what joint memories save over each way on the same rows, and the third one the share of planted
facts that the decoder chooses out of eight. Seconds, and bytes of an entry in the cache and on disk, follow. kvpress is
installed into a virtual environment of its own, since its last release pins an older transformers.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Int
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from benchmarks.planted_facts import Options as FactOptions
from benchmarks.planted_facts import Questions, cell, questions, recalled
from benchmarks.slot_codes import slot_bytes
from benchmarks.source import Source
from memlm.data import decode_ids
from memlm.evaluation.memory.context_gain import ContextGainSettings, GainRows, gain_rows, token_nats_behind
from memlm.evaluation.memory.contexts import nothing
from memlm.models.slots import EncodedTexts, MemoryDecoder, SlotMemories
from memlm.models.slots.attention import AttentionRecord, recorded
from memlm.models.slots.fit import fit_slots
from memlm.models.slots.memories import LayerSlots
from memlm.session.document_chunks import ChunkSearch, cut_chunks

_PRESSES = ("Knorm", "KeyDiff", "StreamingLLM", "SnapKV", "TOVA", "ExpectedAttention", "ObservedAttention", "KVzip")
_PASSAGE = 32
"""Tokens of a passage that is searched for."""
_WORKER = Path(__file__).with_name("rivals_presses.py")
Read = Callable[[int], SlotMemories]
"""Function from a number of entries to what the decoder reads of one text."""


@dataclass(frozen=True)
class Options(Source):
    """A decoder, text and sizes."""

    facts: int = 24
    """Planted facts that are asked for; 0 leaves the second table out."""
    presses: tuple[str, ...] = _PRESSES
    """Methods of kvpress; none of them needs no environment."""
    environment: str = ".venv-kvpress"
    """Virtual environment of kvpress; it is made where there is none."""
    packages: tuple[str, ...] = ("torch==2.13.0", "kvpress==0.5.5")
    """What is installed into it, one after the other."""
    measure: ContextGainSettings = field(default_factory=lambda: ContextGainSettings(rows=24))
    """Rows, contexts and ratios; baselines are not used."""


@dataclass
class Found:
    """What was measured: for each way and number of entries, the loss of each row and the choice for each fact."""

    nats: dict[tuple[str, int], dict[int, float]] = field(default_factory=dict)
    right: dict[tuple[str, int], dict[int, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


Way = Callable[[list[int], list[int]], Read]
"""Function from old tokens and those that are read behind them."""


def ways(model: MemoryDecoder) -> dict[str, Way]:
    """Return the ways that need no other environment, by name; each reads one text."""
    return {
        "memlm, joint": lambda old, _: _slots(model.encode([old], mode="joint")),
        "memlm, chunks": lambda old, _: _slots(model.encode([old], mode="chunks")),
        "Attention Matching, replayed queries": lambda old, _: replayed(model, old),
        "truncation": lambda old, _: lambda count: model.encode([old[-count:]], mode="joint").keep_all(),
        "found passages": lambda old, recent: found_passages(model, old, recent),
    }


def _slots(encoded: Any) -> Read:
    return lambda count: encoded.at(slots=count)


def replayed(model: MemoryDecoder, old: list[int]) -> Read:
    """Fit slots to the queries of a decoder that reads the text once more behind itself (arXiv 2602.16284)."""
    records: list[AttentionRecord] = []
    with recorded(records.append):
        ids = torch.tensor([[model.reader.first_token_id, *old, *old]], device=model.decoder.device)
        model.decoder.base_model(input_ids=ids, use_cache=False)
    tokens, settings = len(old), model.settings.fit

    def layer(record: AttentionRecord, count: int) -> LayerSlots:
        keys, values = (x[0, :, 1 : 1 + tokens].float() for x in (record.key, record.value))
        queries = record.query[0, :, 1 + tokens :].float().unflatten(0, (len(keys), -1)).flatten(1, 2)
        fitted = fit_slots(record.rule.scores(queries, keys), values, count, settings)
        heads = torch.arange(len(keys), device=keys.device)[:, None]
        parts = (keys[heads, fitted.indices], fitted.values, fitted.bias, 1 + fitted.indices)
        none = keys.new_zeros(len(keys), 1)
        first = (record.key[0, :, :1], record.value[0, :, :1], none, none.long())
        return LayerSlots(*(torch.cat(pair, 1)[None] for pair in zip(first, parts, strict=True)))

    one = torch.ones(1, dtype=torch.long, device=ids.device)
    return lambda count: SlotMemories([layer(x, count) for x in records], one * (1 + tokens), one * (1 + count))


def found_passages(model: MemoryDecoder, old: list[int], recent: list[int]) -> Read:
    """Read as tokens the passages that share most words with the recent tokens, in the order of the text."""
    chunks = cut_chunks(model.tokenizer, "text", decode_ids(model.tokenizer, old), _PASSAGE)
    scores = ChunkSearch(chunks, _PASSAGE).scores(decode_ids(model.tokenizer, recent))
    # of passages that share no word, later ones come first
    order = np.lexsort([np.arange(len(scores)), scores])[::-1].tolist()

    def read(count: int) -> SlotMemories:
        whole = sorted(order[: math.ceil(count / _PASSAGE)])
        kept = [token for number in whole for token in chunks[number].tokens][-count:]
        return model.encode([kept], mode="joint").keep_all()

    return read


def measure_ours(model: MemoryDecoder, rows: GainRows, facts: Questions, options: Options, found: Found) -> None:
    """Measure all ways but those of kvpress, row by row."""
    settings = options.measure
    counts = [settings.context // ratio for ratio in settings.ratios]
    every = ways(model)
    with Progress(transient=True) as progress:
        task = progress.add_task("reading rows", total=len(rows.ids) + len(facts.old))
        for number, row in enumerate(rows.ids):
            for name, count, memories in _contexts(model, every, *_parts(row, settings), counts):
                nats = float(token_nats_behind(model, row[None], memories, settings).mean())
                found.nats.setdefault((name, count), {})[number] = nats
            progress.advance(task)
        for number, old in enumerate(facts.old):
            for name, count, memories in _contexts(model, every, old, facts.asked[number], counts):
                right = float(recalled(model, facts, range(number, number + 1), memories).right)
                found.right.setdefault((name, count), {})[number] = right
            progress.advance(task)
    for name, way in every.items():
        began = time.perf_counter()
        way(*_parts(rows.ids[0], settings))(counts[0])
        found.seconds[name] = time.perf_counter() - began


def _parts(row: Int[Tensor, " tokens"], settings: ContextGainSettings) -> tuple[list[int], list[int]]:
    """Return the old tokens of a row and its window."""
    return row[: settings.context].tolist(), row[settings.context : settings.context + settings.window].tolist()


def _contexts(
    model: MemoryDecoder, every: dict[str, Way], old: list[int], recent: list[int], counts: Sequence[int]
) -> Iterator[tuple[str, int, SlotMemories]]:
    joint: EncodedTexts = model.encode([old], mode="joint")
    yield "nothing", 0, nothing(joint)
    yield "all tokens", 0, joint.keep_all()
    for name, way in every.items():
        read = way(old, recent)
        for count in counts:
            yield name, count, read(count)


def measure_presses(model: MemoryDecoder, rows: GainRows, facts: Questions, options: Options, found: Found) -> None:
    """Measure the methods of kvpress in their own environment."""
    settings = options.measure
    asked = zip(facts.old, facts.asked, facts.choices, strict=True)
    job = {
        "device": model.decoder.device.type,
        "decoder": model.decoder.config.name_or_path,  # of a writer, the decoder below its adapters
        "first": model.reader.first_token_id,
        "rows": rows.ids.tolist(),
        "questions": [{"old": old, "asked": question, "choices": choices} for old, question, choices in asked],
        "context": settings.context,
        "scored": settings.scored,
        "counts": [settings.context // ratio for ratio in settings.ratios],
        "presses": list(options.presses),
    }
    with TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        file.write_text(json.dumps(job))
        command = [str(environment(options)), str(_WORKER), str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 (our own file)
            for line in process.stdout or ():
                _add(json.loads(line), facts, found)
    if process.returncode:
        raise SystemExit(f"kvpress ended with {process.returncode}; --presses without a name leaves it out.")


def _add(line: dict[str, Any], facts: Questions, found: Found) -> None:
    if line["kind"] == "seconds":
        found.seconds[line["name"]] = line["seconds"]
        return
    key, number = (line["name"], line["count"]), line["number"]
    if line["kind"] == "row":
        found.nats.setdefault(key, {})[number] = line["nats"]
    else:
        found.right.setdefault(key, {})[number] = float(np.argmin(line["nats"]) == facts.right[number])


def environment(options: Options) -> Path:
    """Return the Python of the environment of kvpress, which is made if there is none."""
    python = Path(options.environment, "bin", "python").absolute()
    if not python.exists():
        print(f"making {options.environment} with {', '.join(options.packages)}", file=sys.stderr)
        venv.create(options.environment, with_pip=True)
        for package in options.packages:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)  # noqa: S603
    return python


class EntryBytes(NamedTuple):
    """Bytes of an entry."""

    cached: float
    stored: float


def bytes_of(model: MemoryDecoder, rows: GainRows, name: str) -> EntryBytes:
    """Return the bytes of an entry of one way, in fp16 in the cache, and as one would keep it on disk.

    Memories have a bias and a position, too, and are stored in four bits. Of tokens their text is stored, and of other
    ways what the cache has.
    """
    if name.startswith("memlm"):
        return EntryBytes(slot_bytes(model, 16), slot_bytes(model, 4))
    cached = math.prod(model.slot_sizes) * 2 * 2
    if name not in ("truncation", "found passages"):
        return EntryBytes(cached, cached)
    text = "".join(decode_ids(model.tokenizer, row) for row in rows.ids.tolist())
    return EntryBytes(cached, len(text.encode()) / rows.ids.numel())


def tables(found: Found, rows: GainRows, facts: Questions, options: Options) -> Iterator[str]:
    """Yield the lines of the tables."""
    ratios = options.measure.ratios
    counts = [options.measure.context // ratio for ratio in ratios]
    names = list(dict.fromkeys(name for name, count in found.nats if count))

    def column(of: dict[tuple[str, int], dict[int, float]], name: str, count: int) -> NDArray[np.float64]:
        return np.array([of[name, count][number] for number in range(len(of[name, count]))])

    def lines(title: str, value: Callable[[str, int], str], of: Sequence[str]) -> Iterator[str]:
        yield from (f"\n{title}\n", f"| | {' | '.join(map(str, ratios))} |", "|---" * (len(ratios) + 1) + "|")
        yield from (f"| {name} | {' | '.join(value(name, count) for count in counts)} |" for name in of)

    alone, full = (column(found.nats, name, 0) for name in ("nothing", "all tokens"))
    gain, ones = alone - full, np.ones_like(alone)
    yield from lines(
        "Share of the full-context gain, %",
        lambda n, c: cell(100 * (alone - column(found.nats, n, c)), gain, rows.document, ".1f"),
        names,
    )
    ours = {count: column(found.nats, "memlm, joint", count) for count in counts}
    yield from lines(
        "Joint memories save over each, nats per token",
        lambda n, c: cell(column(found.nats, n, c) - ours[c], ones, rows.document, ".4f"),
        [name for name in names if name != "memlm, joint"],
    )
    if facts.old:
        numbers = np.arange(len(facts.old))
        yield from lines(
            "Planted facts chosen out of eight, %",
            lambda n, c: cell(100 * column(found.right, n, c), np.ones(len(numbers)), numbers, ".1f"),
            names,
        )
        ends = [f"{100 * column(found.right, name, 0).mean():.1f} with {name}" for name in ("nothing", "all tokens")]
        yield ", ".join(ends)


def costs(model: MemoryDecoder, found: Found, rows: GainRows, entries: int) -> Iterator[str]:
    """Yield the lines of the table of seconds and bytes."""
    heads = (f"seconds to write a text, {entries} entries", "bytes of an entry in the cache, fp16", "on disk")
    yield f"\n| | {' | '.join(heads)} |\n|---|---|---|---|"
    for name, seconds in found.seconds.items():
        entry = bytes_of(model, rows, name)
        yield f"| {name} | {seconds:.2f} | {entry.cached:.0f} | {entry.stored:.1f} |"


def main(options: Options) -> None:
    """Measure and print."""
    model = options.load()
    rows = gain_rows(options.documents(), model.tokenizer, options.measure)
    of_facts = replace(options.measure, rows=max(1, options.facts))
    asked = FactOptions(options.decoder, text=options.text, split=options.split, measure=of_facts)
    facts = questions(model, asked) if options.facts else Questions([], [], [], [], [], np.zeros(0, np.int64))
    found = Found()
    measure_ours(model, rows, facts, options, found)
    if options.presses:
        measure_presses(model, rows, facts, options, found)
    settings = options.measure
    sizes = f"{settings.context} old tokens, window {settings.window}, {settings.scored} scored"
    read = f"{len(rows.ids)} rows, {len(facts.old)} facts, {options.split} of {options.text}"
    print(f"{sizes}; {read}")
    lines = [*tables(found, rows, facts, options), *costs(model, found, rows, settings.context // settings.ratios[0])]
    print("\n".join(lines))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(tyro.cli(Options))
