"""Passages next to what came back, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.data import PackedRows

_PASSAGES = 5
Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""


@dataclass(frozen=True)
class Passage:
    """One chunk and what came back: (original, returned, right) piece by piece."""

    name: str
    pieces: list[tuple[str, str, bool]]


def passages_of(decode: Decode, rows: PackedRows, returned: Int[Tensor, "rows tokens"]) -> list[Passage]:
    """Full chunks spread over the rows, chosen by place and never by score."""
    full = rows.attention_mask.all(1).nonzero().flatten()
    if not len(full):
        return []
    chosen = full[torch.linspace(0, len(full) - 1, min(_PASSAGES, len(full))).long()].unique()
    return [_passage(decode, rows, returned, int(row)) for row in chosen]


def _passage(decode: Decode, rows: PackedRows, returned: Int[Tensor, "rows tokens"], row: int) -> Passage:
    original, given = rows.input_ids[row].tolist(), returned[row].tolist()
    pieces: list[tuple[str, str, bool]] = []
    before: list[int] = []
    after: list[int] = []
    for a, b in zip(original, given, strict=True):
        before.append(a)
        after.append(b)
        texts = decode(before), decode(after)
        if "\ufffd" in texts[0]:
            continue  # half a character: wait for the rest of it
        pieces.append((*texts, before == after))
        before, after = [], []
    if before:
        pieces.append((decode(before), decode(after), before == after))
    return Passage(rows.document_ids[int(rows.document_index[row])], pieces)
