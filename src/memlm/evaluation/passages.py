"""Passages for reading: the original beside what came back, in pieces that are whole characters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, cast

import torch
from transformers import PreTrainedTokenizerBase

from memlm.evaluation.reconstruction import ReconstructionScores

_LONGEST_CHARACTER: Final = 4
"""Bytes of UTF-8, and so the most tokens that one character can be split over."""


class Piece(NamedTuple):
    """A token, or the tokens that a character is split over."""

    original: str
    returned: str
    correct: bool


@dataclass(frozen=True)
class Passage:
    """One chunk as it was and as it came back.

    Attributes:
        id: document and row.
        pieces: in order; the originals joined are the chunk's text.
    """

    id: str
    pieces: tuple[Piece, ...]


def passages(
    scores: ReconstructionScores, tokenizer: PreTrainedTokenizerBase, *, count: int, seed: int
) -> list[Passage]:
    """Some rows at random, the same for the same seed; padding and ends of text are left out.

    Args:
        scores: of these rows.
        tokenizer: that made them.
        count: at most so many.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(scores.rows), generator=generator)[:count].sort().values
    owners = scores.rows.document_index[chosen]
    return [
        Passage(f"{scores.rows.document_ids[owner]} / {row}", tuple(_pieces(scores, row, tokenizer)))
        for owner, row in zip(owners.tolist(), chosen.tolist(), strict=True)
    ]


def _pieces(scores: ReconstructionScores, row: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[Piece]:
    kept = scores.asked[row] & (scores.labels[row] != tokenizer.eos_token_id)
    original: list[int] = scores.labels[row][kept].tolist()
    returned: list[int] = scores.predictions[row][kept].tolist()
    for start, end in _characters(original, tokenizer):
        ours, theirs = original[start:end], returned[start:end]
        yield Piece(_show(tokenizer, ours), _show(tokenizer, theirs), ours == theirs)


def _characters(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[int, int]]:
    """Bounds of runs of tokens that decode to whole characters."""
    start = 0
    for end in range(1, len(ids) + 1):
        broken = "\ufffd" in _show(tokenizer, ids[start:end])
        if not broken or end - start >= _LONGEST_CHARACTER or end == len(ids):
            yield start, end
            start = end


def _show(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of the ids, special tokens by their names."""
    return cast(str, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
