"""Texts without structure: uniform random tokens, to see whether a memory holds more than habits of language."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data.packing import PackedRows
from memlm.errors import DataError


def random_rows(
    num_rows: int, row_length: int, vocab_size: int, *, seed: int, exclude: Collection[int] = ()
) -> PackedRows:
    """Rows of tokens drawn uniformly from the vocabulary, every row a document of its own.

    Raises:
        DataError: nothing left to draw from.
    """
    allowed = torch.tensor([i for i in range(vocab_size) if i not in set(exclude)])
    if not len(allowed):
        raise DataError(f"all {vocab_size} token ids are excluded; leave at least one.")
    generator = torch.Generator().manual_seed(seed)
    ids = allowed[torch.randint(len(allowed), (num_rows, row_length), generator=generator)]
    names = tuple(f"random-{i}" for i in range(num_rows))
    return PackedRows(ids, torch.ones_like(ids), torch.arange(num_rows), names)


class Planted(NamedTuple):
    """Texts with a fact in each, and which of their tokens are the fact's."""

    input_ids: Int[Tensor, "rows tokens"]
    target_mask: Bool[Tensor, "rows tokens"]


def plant_pairs(
    input_ids: Int[Tensor, "rows tokens"], *, pairs: int, allowed: Collection[int], generator: torch.Generator
) -> Planted:
    """Key and value beside each other, both drawn from `allowed`, at places that do not overlap; values are asked for.

    Raises:
        DataError: more pairs than the text has room for, or nothing to draw from.
    """
    rows, tokens = input_ids.shape
    if not 1 <= pairs <= tokens // 2 or not allowed:
        raise DataError(f"{pairs} pairs of {len(allowed)} tokens do not fit {tokens} tokens of text.")
    places = torch.stack([torch.randperm(tokens // 2, generator=generator)[:pairs] for _ in range(rows)]) * 2
    ids = torch.tensor(sorted(allowed))
    drawn = ids[torch.randint(len(ids), (rows, pairs, 2), generator=generator)]
    planted = input_ids.scatter(1, places, drawn[..., 0]).scatter(1, places + 1, drawn[..., 1])
    return Planted(planted, torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, places + 1, True))


def plant_number(
    input_ids: Int[Tensor, "rows tokens"], *, digits: Collection[int], length: int, generator: torch.Generator
) -> Planted:
    """A number of so many digits in the middle of prose, at a place of its own in every row.

    Args:
        input_ids: prose.
        digits: ids of the tokens 0 to 9.
        length: digits of the number.
        generator: what draws.

    Raises:
        DataError: a number longer than the text, or no digits.
    """
    rows, tokens = input_ids.shape
    if not 1 <= length <= tokens or not digits:
        raise DataError(f"a number of {length} digits ({len(digits)} known) does not fit {tokens} tokens of text.")
    ids = torch.tensor(sorted(digits))
    starts = torch.randint(tokens - length + 1, (rows, 1), generator=generator)
    places = starts + torch.arange(length)
    drawn = ids[torch.randint(len(ids), (rows, length), generator=generator)]
    return Planted(
        input_ids.scatter(1, places, drawn), torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, places, True)
    )


def ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of all tokens that text may hold: none that stands for nothing, a beginning or an end."""
    special = set(tokenizer.all_special_ids)
    return [i for i in range(len(tokenizer)) if i not in special]


def digit_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that are one digit; fewer than ten where the tokenizer has none for some."""
    found = (tokenizer.encode(str(digit), add_special_tokens=False) for digit in range(10))
    return [ids[0] for ids in found if len(ids) == 1]
