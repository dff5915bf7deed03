"""What an attacker with the vectors can read: names and numbers that come back whole, besides tokens.

Spans are found by rule, in the passage as written: a name is a run of capitalised words that does not begin a sentence,
a number begins with a digit. A span has come back when every token that touches it is right.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from memlm.evaluation.probe.dataset import Question
from memlm.measurement import DocumentTally

ROUNDINGS = ("fp16", "int8", "binary")
_SPANS = {
    "names": re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+(?: [A-Z][a-z]+)*"),
    "numbers": re.compile(r"\d[\d,.]*"),
}


def recovered_spans(question: Question, predictions: Int[Tensor, "passages tokens"]) -> dict[str, DocumentTally]:
    """Spans that came back over spans, by kind and document.

    Args:
        question: what the probe was asked.
        predictions: classes for each held-out passage.
    """
    passages, rows = question.passages["held_out"], question.classes("held_out")
    right = (predictions == rows.input_ids) & rows.attention_mask.bool()
    tallies = {kind: DocumentTally(len(passages.document_ids)) for kind in _SPANS}
    for row, text in enumerate(passages.texts):
        places = _token_places(question, text)
        for kind, rule in _SPANS.items():
            whole = [_whole(right[row], places, match.span()) for match in rule.finditer(text)]
            asked = [w for w in whole if w is not None]
            counts = torch.tensor([float(sum(asked))]), torch.tensor([float(len(asked))])
            tallies[kind].add(passages.document_index[row : row + 1], *counts)
    return tallies


def _token_places(question: Question, text: str) -> list[tuple[int, int]]:
    encoded = question.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    return cast("list[tuple[int, int]]", encoded["offset_mapping"])[: question.length]


def _whole(right: Bool[Tensor, " tokens"], places: list[tuple[int, int]], span: tuple[int, int]) -> bool | None:
    """Whether the span's tokens are all right; None where the passage's tokens do not reach to its end."""
    touching = [i for i, (start, end) in enumerate(places) if start < span[1] and end > span[0]]
    if not touching or places[-1][1] < span[1]:
        return None
    return bool(right[touching].all())
