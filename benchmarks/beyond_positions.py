"""Texts that are longer than a decoder's positions: what it still finds of a passage near their beginning.

OMP_NUM_THREADS=1 python -m benchmarks.beyond_positions --decoder PATH_OR_HUB_ID

A session reads a text as memories, with fewer positions than the text has tokens. A passage from the part that no
longer fits is then begun once more, and the loss and the accuracy of its next tokens are measured: without memories,
where the oldest memories are forgotten, where they share the first positions, and with positions for all of the text.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import tyro
from torch.nn import functional as F

from benchmarks.source import Source
from memlm.evaluation.memory.context_gain import ContextGainSettings, gain_rows
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.session import SlotSession


@dataclass(frozen=True)
class Options(Source):
    """A decoder, text and sizes."""

    rows: int = 16
    """Texts."""
    tokens: int = 4096
    """Tokens of a text."""
    max_positions: int = 2048
    """Positions that a session may use."""
    tokens_per_memory: int = 8
    """Tokens for each memory."""
    begun: int = 64
    """Tokens of the passage that are read again."""
    scored: int = 64
    """Tokens behind them that are measured."""


def read_behind(model: MemoryDecoder, row: list[int], options: Options) -> Iterator[tuple[str, SlotMemories | None]]:
    """Yield what the decoder reads of a text, by name."""
    yield "no memories", None
    for name, beyond, positions in (
        ("oldest forgotten", "forget", options.max_positions),
        ("oldest overlap", "overlap", options.max_positions),
        ("positions for all", "forget", None),
    ):
        session = SlotSession(
            model, tokens_per_memory=options.tokens_per_memory, max_positions=positions, beyond=beyond
        )
        session.read_tokens(row)
        yield name, session.memories(behind=options.begun + options.scored)


@torch.no_grad()
def scores(model: MemoryDecoder, passage: list[int], memories: SlotMemories | None, scored: int) -> tuple[float, float]:
    """Return the loss in nats and the accuracy of the last tokens of a passage."""
    first = [model.reader.first_token_id] if memories is None else []
    logits = model.decoder(**model.inputs([[*first, *passage]], memories), logits_to_keep=scored + 1).logits[0, :-1]
    targets = torch.tensor(passage[-scored:], device=logits.device)
    return float(F.cross_entropy(logits.float(), targets)), float((logits.argmax(-1) == targets).float().mean())


def main(options: Options) -> None:
    """Measure and print."""
    began = time.perf_counter()
    model = options.load()
    documents = options.documents()
    settings = ContextGainSettings(rows=options.rows, context=options.tokens, window=1, scored=1)
    found: dict[str, list[tuple[float, float]]] = {}
    length, lost = options.begun + options.scored, max(1, options.tokens - options.max_positions)
    for number, ids in enumerate(gain_rows(documents, model.tokenizer, settings).ids.tolist()):
        # from the beginning of the text to its last passage that no longer fits
        start = number * max(0, lost - length) // max(1, options.rows - 1)
        passage = ids[start : start + length]
        for name, memories in read_behind(model, ids[: options.tokens], options):
            found.setdefault(name, []).append(scores(model, passage, memories, options.scored))
    print(
        f"{options.rows} texts of {options.tokens} tokens, {options.tokens_per_memory} for each memory, "
        f"{options.max_positions} positions, {options.split} of {options.text}"
    )
    print("| | nats per token | accuracy, % |\n|---|---|---|")
    for name, values in found.items():
        nats, hits = (sum(column) / len(values) for column in zip(*values, strict=True))
        print(f"| {name} | {nats:.3f} | {100 * hits:.1f} |")
    print(f"{(time.perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main(tyro.cli(Options))
