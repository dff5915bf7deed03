"""Synthetic texts: random tokens, which have no structure to exploit, and texts with planted facts."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data.packing import PackedRows
from memlm.errors import DataError

TEST_NAMES = (
    *("Alice", "Martin", "Clara", "Victor", "Nora", "Oscar", "Helen", "Simon", "Julia", "Frank", "Rosa", "Edgar"),
    *("Anna", "Peter", "Laura", "Henry", "Emma", "Jacob", "Grace", "Louis", "Ruth", "Walter", "Irene", "Hugo"),
)
TEST_WORDS = (
    *("river", "garden", "silver", "mountain", "harbor", "winter", "bridge", "orange", "forest", "window", "castle"),
    *("summer", "letter", "island", "engine", "market", "copper", "valley", "candle", "meadow", "thunder", "basket"),
    *("village", "cotton", "lantern", "desert", "anchor", "pepper", "marble", "falcon", "saddle", "temple"),
)
"""Names and words that measurements of recall ask for; facts of training rows never hold them."""


def random_rows(
    num_rows: int, row_length: int, vocab_size: int, *, seed: int, exclude: Collection[int] = ()
) -> PackedRows:
    """Return rows of tokens drawn uniformly from ids below `vocab_size` without `exclude`; every row is a document.

    Raises:
        DataError: all token ids are excluded.
    """
    allowed = torch.tensor([i for i in range(vocab_size) if i not in set(exclude)])
    if not len(allowed):
        raise DataError(f"all {vocab_size} token ids are excluded; leave at least one.")
    generator = torch.Generator().manual_seed(seed)
    ids = allowed[torch.randint(len(allowed), (num_rows, row_length), generator=generator)]
    names = tuple(f"random-{i}" for i in range(num_rows))
    return PackedRows(ids, torch.ones_like(ids), torch.arange(num_rows), names)


class Planted(NamedTuple):
    """Texts with planted facts.

    Attributes:
        input_ids: (rows, tokens).
        target_mask: (rows, tokens), True for the tokens of facts to be predicted.
    """

    input_ids: Int[Tensor, "rows tokens"]
    target_mask: Bool[Tensor, "rows tokens"]


def plant_pairs(
    input_ids: Int[Tensor, "rows tokens"], *, pairs: int, allowed: Collection[int], generator: torch.Generator
) -> Planted:
    """Plant pairs of a key and a value, both from `allowed`, at random positions of each row that do not overlap.

    Values are the targets.

    Raises:
        DataError: the text has no room for the pairs, or no token ids are allowed.
    """
    rows, tokens = input_ids.shape
    if not 1 <= pairs <= tokens // 2 or not allowed:
        raise DataError(f"{pairs} pairs of {len(allowed)} tokens do not fit {tokens} tokens of text.")
    keys = torch.stack([torch.randperm(tokens // 2, generator=generator)[:pairs] for _ in range(rows)]) * 2
    ids = torch.tensor(sorted(allowed))
    drawn = ids[torch.randint(len(ids), (rows, pairs, 2), generator=generator)]
    planted = input_ids.scatter(1, keys, drawn[..., 0]).scatter(1, keys + 1, drawn[..., 1])
    return Planted(planted, torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, keys + 1, True))


def plant_number(
    input_ids: Int[Tensor, "rows tokens"], *, digits: Collection[int], length: int, generator: torch.Generator
) -> Planted:
    """Plant a number of `length` random digits, given by their token ids, at a random position in each row.

    The digits are the targets.

    Raises:
        DataError: the number is longer than the text, or there are no digits.
    """
    rows, tokens = input_ids.shape
    if not 1 <= length <= tokens or not digits:
        raise DataError(f"a number of {length} digits ({len(digits)} known) does not fit {tokens} tokens of text.")
    ids = torch.tensor(sorted(digits))
    starts = torch.randint(tokens - length + 1, (rows, 1), generator=generator)
    positions = starts + torch.arange(length)
    drawn = ids[torch.randint(len(ids), (rows, length), generator=generator)]
    target_mask = torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, positions, True)
    return Planted(input_ids.scatter(1, positions, drawn), target_mask)


def ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens that are not special."""
    special = set(tokenizer.all_special_ids)
    return [i for i in range(len(tokenizer)) if i not in special]


def digit_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens of single digits; digits that are not one token are left out."""
    found = (tokenizer.encode(str(digit), add_special_tokens=False) for digit in range(10))
    return [ids[0] for ids in found if len(ids) == 1]
