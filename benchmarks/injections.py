"""Injections of memories into a pretrained decoder, trained alike: what they keep of a text and what they cost.

OMP_NUM_THREADS=1 python -m benchmarks.injections --decoder PATH_OR_HUB_ID

Each injection is trained by the recipe `memory-pretrained` with the same text, steps and seed. The table shows the
share of the full-context gain at each ratio, the numbers that are stored and the bytes of the decoder's cache for each
token of text, and the seconds from stored memories to the logits of the first token behind a prompt.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from jaxtyping import Int
from torch import Tensor

from benchmarks.source import Source
from memlm.evaluation.memory.context_gain import ContextGainSettings, gain_rows, token_nats_behind
from memlm.evaluation.memory.contexts import nothing
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.models.slots.vectors import EncodedVectors
from memlm.recipes import get_recipe
from memlm.training import train_run
from memlm.training.config import merge_run


@dataclass(frozen=True)
class Options(Source):
    """A decoder, text, sizes of the training and of the measurement."""

    injections: tuple[str, ...] = ("kv", "input", "layer", "code")
    """Injections to train, one after the other."""
    injection_layer: int | None = None
    """The layer whose inputs `layer` and `code` store; the one in the middle by default."""
    steps: int = 40
    """Steps of each training."""
    batch_size: int = 2
    """Rows of a step."""
    chunk_length: int = 128
    """Tokens of a chunk."""
    num_chunks: int = 3
    """Chunks of a training row."""
    seed: int = 0
    """Seed of weights, rows and ratios."""
    cost_ratio: int = 8
    """Tokens for each memory at which costs are measured."""
    repeats: int = 5
    """Repetitions of each timing, of which the median is printed."""
    measure: ContextGainSettings = field(default_factory=lambda: ContextGainSettings(rows=32))
    """Rows, contexts and ratios of the measurement."""


@dataclass(frozen=True)
class Costs:
    """What memories of a text cost.

    Attributes:
        numbers: stored for each token of text.
        cache: bytes of keys and values in the decoder's cache for each token of text.
        seconds: from stored memories to the logits of the first token behind a prompt.
    """

    numbers: float
    cache: float
    seconds: float

    def cells(self) -> list[str]:
        """Return the cells of the table."""
        return [f"{self.numbers:.1f}", f"{self.cache:.0f}", f"{self.seconds:.3f}"]


def trained(injection: str, options: Options, folder: Path) -> MemoryDecoder:
    """Train an injection with the recipe and return the decoder with it, from its run's folder."""
    changes: dict[str, Any] = {
        "model": {
            "injection": injection,
            "chunk_length": options.chunk_length,
            "num_chunks": options.num_chunks,
            "scored_tokens": min(48, options.chunk_length),
            "injection_layer": options.injection_layer,
        },
        "decoder": {"path": options.decoder},
        "data": {"text": options.text},
        "training": {
            "steps": options.steps,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "device": options.device,
            "evaluate_every": options.steps,
            "checkpoint_every": options.steps,
            "evaluate_rows": options.batch_size,
        },
    }
    train_run(merge_run(get_recipe("memory-pretrained"), changes), folder, progress=False)
    return MemoryDecoder.from_pretrained(str(folder), dtype="float32")


def costs(model: MemoryDecoder, row: Int[Tensor, "1 tokens"], options: Options) -> Costs:
    """Measure what memories of the old tokens of a row cost."""
    tokens = options.measure.context
    encoded = model.encode(row[:, :tokens].tolist(), mode="chunks")
    slots = encoded.at(tokens_per_memory=options.cost_ratio)
    kept = [part for layer in slots.layers for part in (layer.keys, layer.values)]
    numbers, read = sum(part.numel() for part in kept), lambda: slots
    if isinstance(encoded, EncodedVectors):
        vectors = encoded.vectors(tokens_per_memory=options.cost_ratio)
        numbers, read = vectors.vectors.numel(), lambda: model.from_vectors(vectors)
    cache = sum(part.numel() * part.element_size() for part in kept)
    return Costs(numbers / tokens, cache / tokens, first_token(model, read, row[0, tokens:].tolist(), options.repeats))


@torch.no_grad()
def first_token(model: MemoryDecoder, read: Callable[[], SlotMemories], prompt: list[int], repeats: int) -> float:
    """Return the median seconds to the logits behind what `read` returns and a prompt."""
    seconds: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        model.decoder(**model.inputs([prompt], read()), logits_to_keep=1)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


Read = Callable[[MemoryDecoder, list[list[int]]], Mapping[str, SlotMemories]]
"""Function from old tokens to what the decoder reads of them, by name."""


def mean_losses(
    model: MemoryDecoder, ids: Int[Tensor, "rows tokens"], settings: ContextGainSettings, read: Read
) -> dict[str, float]:
    """Return the mean loss of the scored tokens behind each of what `read` returns, in nats."""
    found: dict[str, list[Tensor]] = {}
    for rows in ids.split(settings.batch_size):
        for name, memories in read(model, rows[:, : settings.context].tolist()).items():
            found.setdefault(name, []).append(token_nats_behind(model, rows, memories, settings).mean(1))
    return {name: float(torch.cat(nats).mean()) for name, nats in found.items()}


def context_of(settings: ContextGainSettings) -> Read:
    """Return a function that reads no old token, all of them, and the last ones at each ratio."""

    def read(model: MemoryDecoder, old: list[list[int]]) -> dict[str, SlotMemories]:
        encoded = model.encode(old, mode="joint")
        last = {r: [row[-(settings.context // r) :] for row in old] for r in settings.ratios}
        truncated = {str(r): model.encode(rows, mode="joint").keep_all() for r, rows in last.items()}
        return {"alone": nothing(encoded), "full": encoded.keep_all(), **truncated}

    return read


def memories_of(settings: ContextGainSettings) -> Read:
    """Return a function that makes memories at each ratio."""

    def read(model: MemoryDecoder, old: list[list[int]]) -> dict[str, SlotMemories]:
        encoded = model.encode(old, mode="chunks")
        return {str(ratio): encoded.at(tokens_per_memory=ratio) for ratio in settings.ratios}

    return read


def row_of(name: str, losses: dict[str, float], known: dict[str, float], *costs: str) -> str:
    """Return a row of the table: shares of the full-context gain in percent, and costs."""
    gain = known["alone"] - known["full"]
    shares = [f"{100 * (known['alone'] - loss) / gain:.1f}" for ratio, loss in losses.items() if ratio.isdigit()]
    return f"| {name} | " + " | ".join([*shares, *costs]) + " |"


def main(options: Options) -> None:
    """Train, measure and print."""
    settings = options.measure
    documents = options.documents()
    plain = options.load()
    ids = gain_rows(documents, plain.tokenizer, settings).ids
    known = mean_losses(plain, ids, settings, context_of(settings))
    print(f"{len(ids)} rows of {settings.context} old tokens, {options.split} of {options.text}; {options.steps} steps")
    print(f"| | {' | '.join(map(str, settings.ratios))} | numbers | cache bytes | first token, s |")
    print("|---" * (len(settings.ratios) + 4) + "|")
    print(row_of("truncation", known, known, "", "", ""), flush=True)
    for injection in options.injections:
        began = time.perf_counter()
        with TemporaryDirectory() as folder:
            model = trained(injection, options, Path(folder) / "run")
        print(f"{injection}: trained in {(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)
        cost = costs(model, ids[:1], options)
        losses = mean_losses(model, ids, settings, memories_of(settings))
        print(row_of(injection, losses, known, *cost.cells()), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Options))
