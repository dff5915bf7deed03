"""Texts without structure: uniform random tokens, to see whether a memory holds more than habits of language."""

from __future__ import annotations

from collections.abc import Collection

import torch

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
