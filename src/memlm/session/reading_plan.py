"""How densely each chunk of a session's documents is read for a question, within a budget of slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from memlm.errors import UserError, Within, check_numbers

_MOST = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class AskSettings:
    """How a session reads its documents for a question.

    Raises:
        UserError: a value out of its range.
    """

    tokens_per_memory: Annotated[int | float, Within(1, _MOST)] = 8.0
    """Tokens for each memory."""
    dense_chunks: Annotated[int, Within(0, _MOST)] = 2
    """Chunks that share most with the question, by a search, and are read more densely; 0 reads all chunks alike."""
    dense_tokens_per_memory: Annotated[int | float, Within(1, _MOST)] = 2.0
    """Tokens for each memory of these."""
    passages: Annotated[int, Within(0, _MOST)] = 1
    """Passages that share most with the question and also stand in the prompt as tokens."""
    slots: Annotated[int | None, Within(1, _MOST)] = 2048
    """Memories in all, at most; None for no limit. What shares least with the question is left out; without a search,
    all chunks are read more sparsely."""
    least_support: Annotated[float | None, Within(-_MOST, _MOST)] = None
    """Nats per token by which documents must make an answer likelier; below it, the answer counts as not found. None to
    count every answer as found."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.dense_tokens_per_memory > self.tokens_per_memory:
            raise UserError(
                f"dense_tokens_per_memory ({self.dense_tokens_per_memory:g}) must not exceed tokens_per_memory "
                f"({self.tokens_per_memory:g})."
            )


class ChunkReading(NamedTuple):
    """A chunk that is read, and the tokens for each of its memories."""

    chunk: int
    tokens_per_memory: int | float


def plan_reading(sizes: Sequence[int], scores: Sequence[float], settings: AskSettings) -> list[ChunkReading]:
    """Return the chunks to read, in their order.

    Args:
        sizes: tokens of each chunk.
        scores: how much each chunk shares with the question.
        settings: densities and the budget.
    """
    if not settings.dense_chunks:
        return _alike(sizes, settings)
    left = math.inf if settings.slots is None else settings.slots
    by_score = sorted(range(len(sizes)), key=lambda chunk: -scores[chunk])
    chosen: list[ChunkReading] = []
    for rank, chunk in enumerate(by_score):
        dense = rank < settings.dense_chunks and scores[chunk] > 0
        ratios = [settings.dense_tokens_per_memory] * dense + [settings.tokens_per_memory]
        fits = next((ratio for ratio in ratios if slots_of(sizes[chunk], ratio) <= left), None)
        if fits is not None:
            chosen.append(ChunkReading(chunk, fits))
            left -= slots_of(sizes[chunk], fits)
    return sorted(chosen)


def _alike(sizes: Sequence[int], settings: AskSettings) -> list[ChunkReading]:
    """Return all chunks at one ratio; where there are more chunks than slots, the last ones."""
    read = range(len(sizes)) if settings.slots is None else range(max(0, len(sizes) - settings.slots), len(sizes))
    ratio = settings.tokens_per_memory
    if settings.slots is not None:
        # each chunk may round up to one slot more
        room = max(settings.slots - len(read), 1)
        within = sum(slots_of(sizes[chunk], ratio) for chunk in read) <= settings.slots
        ratio = ratio if within else max(ratio, sum(sizes[chunk] for chunk in read) / room)
    return [ChunkReading(chunk, min(ratio, float(sizes[chunk]))) for chunk in read]


def slots_of(tokens: int, tokens_per_memory: int | float) -> int:
    """Return the number of slots of a chunk."""
    return math.ceil(tokens / tokens_per_memory)
