"""Seconds that memories of a text take, beside a decoder that reads all of its tokens; both are measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch

from memlm.data import Document, encode_texts
from memlm.errors import DataError
from memlm.measurement import Measurement
from memlm.models.slots import MemoryDecoder

_TOKENS, _PROMPT = 8000, 32


class PairedSeconds(NamedTuple):
    """Two functions that ran alternately, so that other load affects both alike.

    Attributes:
        first: median seconds of one.
        second: median seconds of the other.
        ratio: median of the pairs' ratios.
        low: the smallest of them.
        high: the largest of them.
    """

    first: float
    second: float
    ratio: float
    low: float
    high: float


def paired_seconds(one: Callable[[], object], other: Callable[[], object], repeats: int) -> PairedSeconds:
    """Time two functions in turn, `repeats` times behind one pair that is not counted."""
    seconds = [(_timed(one), _timed(other)) for _ in range(repeats + 1)][1:]
    ratios = [a / b for a, b in seconds]
    first, second = (statistics.median(column) for column in zip(*seconds, strict=True))
    return PairedSeconds(first, second, statistics.median(ratios), min(ratios), max(ratios))


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def prefill(model: MemoryDecoder, tokens: Sequence[int]) -> None:
    """Let the decoder read tokens as they are, up to the logits of the next one."""
    ids = torch.tensor([[model.reader.first_token_id, *tokens]], device=model.decoder.device)
    model.decoder(ids, logits_to_keep=1)


def reading_seconds(
    model: MemoryDecoder, documents: Sequence[Document], *, tokens_per_memory: int = 8, repeats: int = 2
) -> list[Measurement]:
    """Measure what encoding and reading cost, as a share of the seconds in which the decoder reads all tokens.

    Args:
        model: the decoder.
        documents: of which the first tokens are read, 8,000 or as many as the decoder has positions for.
        tokens_per_memory: tokens for each memory.
        repeats: pairs of each timing; the interval goes from the smallest to the largest of them.

    Returns:
        `seconds/chunks over prefill`, encoding in chunks; and `seconds/first token over prefill`, the first token
        behind memories that are kept.

    Raises:
        DataError: the documents have too few tokens.
    """
    most = int(model.decoder.config.max_position_embeddings) - _PROMPT - 3
    [ids] = encode_texts(model.tokenizer, ["\n\n".join(document.text for document in documents)])
    tokens = min(_TOKENS, most, len(ids) - _PROMPT)
    if tokens < tokens_per_memory:
        raise DataError(f"{len(ids)} tokens are too few to measure seconds; give more text.")
    text, prompt = ids[:tokens], ids[tokens : tokens + _PROMPT]
    encode = partial(model.memories, [text], tokens_per_memory=tokens_per_memory, mode="chunks")
    memories = encode()

    @torch.no_grad()
    def behind() -> None:
        model.decoder(**model.inputs([prompt], memories), logits_to_keep=1)

    pairs = {
        "chunks": paired_seconds(encode, partial(prefill, model, text), repeats),
        "first token": paired_seconds(behind, partial(prefill, model, [*text, *prompt]), repeats),
    }
    note = f"smallest to largest of {repeats} pairs"
    return [
        Measurement(
            name=f"seconds/{name} over prefill",
            value=found.ratio,
            unit="ratio",
            low=found.low,
            high=found.high,
            interval_note=note,
            count=tokens,
            split="held_out",
            protocol=f"{tokens} tokens, {tokens_per_memory} for each memory",
        )
        for name, found in pairs.items()
    ]
