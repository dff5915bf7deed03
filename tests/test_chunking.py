"""Splitting and joining are exact inverses, wherever the padding stands."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlm.chunking import left_align, split
from memlm.errors import UserError

ROWS = st.lists(st.lists(st.integers(2, 50), max_size=13), min_size=1, max_size=4)


def placed(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(1, max(map(len, rows)))
    ids, mask = torch.full((len(rows), width), 99), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        places = {"left": range(width - len(row), width), "right": range(len(row))}[side]
        ids[i, list(places)] = torch.tensor(row, dtype=torch.long)
        mask[i, list(places)] = 1
    return ids, mask


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, length=st.integers(1, 6), side=st.sampled_from(["left", "right"]))
def test_chunks_joined_again_give_the_tokens_back(rows: list[list[int]], length: int, side: str) -> None:
    ids, mask = placed(rows, side)
    before = ids.clone()
    chunks = split(ids, mask, chunk_length=length, pad_token_id=0)
    assert chunks.input_ids.shape[2] == length
    text = zip(chunks.input_ids.flatten(1), chunks.attention_mask.flatten(1).bool(), strict=True)
    assert [row[mask].tolist() for row, mask in text] == rows
    assert (chunks.input_ids[chunks.attention_mask == 0] == 0).all()
    assert torch.equal(ids, before)


def test_left_align_keeps_order_and_holes_close() -> None:
    ids, mask = left_align(torch.tensor([[7, 1, 8, 2, 3]]), torch.tensor([[0, 1, 0, 1, 1]]))
    assert ids[0, :3].tolist() == [1, 2, 3]
    assert mask.tolist() == [[1, 1, 1, 0, 0]]


def test_chunk_length_must_be_positive() -> None:
    with pytest.raises(UserError, match=r"chunk_length \(0\) must be at least 1"):
        split(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long), chunk_length=0, pad_token_id=0)
