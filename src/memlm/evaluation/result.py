"""The result of an evaluation: measurements, and the passages and costs that a report shows beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.errors import DataError
from memlm.measurement import Cost, DocumentTally, Measurement, Passage

_PASSAGES = 5
Decode = Callable[[Sequence[int]], str]
"""Function from token ids to text."""
Report = Callable[[str], None]
"""Function that is told which part of an evaluation begins."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        measurements: all figures.
        accuracy_by_position: token accuracy at each position of a chunk.
        passages: texts beside what was decoded from their memories.
        costs: bits per byte of the memories and of general compressors.
    """

    measurements: list[Measurement]
    accuracy_by_position: list[float]
    passages: list[Passage]
    costs: list[Cost]


def check_text_unchanged(before: Mapping[str, Any], now: Mapping[str, Any], source: str) -> None:
    """Compare the text with the one that the run was trained on.

    Raises:
        DataError: the fingerprints differ.
    """
    if any(now[f"fingerprint_{half}"] != before[f"fingerprint_{half}"] for half in ("held_out", "train")):
        raise DataError(f"'{source}' has changed since the run was trained; measure it by name with --text.")


def per_document(rows: PackedRows, values: Tensor) -> DocumentTally:
    """Sum values (rows, tokens) of readable tokens by document."""
    tally = DocumentTally(len(rows.document_ids))
    readable = values * rows.attention_mask
    tally.add(rows.document_index, readable.sum(1), rows.attention_mask.sum(1))
    return tally


def passages_of(decode: Decode, rows: PackedRows, returned: Int[Tensor, "rows tokens"]) -> list[Passage]:
    """Return full chunks at even distances, chosen by position and never by score, beside the returned tokens."""
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
