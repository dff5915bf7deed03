"""Facts are fresh, lie where they are said to lie, and leave the rest of the text alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from memlm.data import digit_ids, plant_number, plant_pairs
from memlm.errors import DataError


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(2, 17), data=st.data())
def test_pairs_do_not_overlap_and_only_values_are_asked(tokens: int, data: st.DataObject) -> None:
    pairs = data.draw(st.integers(1, tokens // 2))
    ids = torch.zeros(5, tokens, dtype=torch.long)
    planted = plant_pairs(ids, pairs=pairs, allowed={7, 8, 9}, generator=torch.Generator().manual_seed(pairs))
    assert planted.target_mask.sum(1).tolist() == [pairs] * 5
    assert (planted.input_ids != 0).sum(1).tolist() == [2 * pairs] * 5
    assert bool((planted.input_ids[planted.target_mask] != 0).all())
    keys = planted.target_mask.roll(-1, 1)
    assert bool((planted.input_ids[keys] != 0).all())
    assert not bool((keys & planted.target_mask).any())
    assert not ids.any()  # the text itself is as it was


def test_a_number_lies_in_prose_and_another_seed_gives_another(tokenizer: PreTrainedTokenizerFast) -> None:
    digits = digit_ids(tokenizer)
    assert sorted(tokenizer.decode([i]) for i in digits) == list("0123456789")
    ids = torch.full((200, 12), 299)
    one, two = (
        plant_number(ids, digits=digits, length=4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert one.target_mask.sum(1).tolist() == [4] * 200
    assert torch.equal(one.input_ids != 299, one.target_mask)
    assert bool((one.target_mask[:, 1:] & one.target_mask[:, :-1]).sum(1).eq(3).all())  # in one piece
    assert not torch.equal(one.input_ids, two.input_ids)
    assert one.target_mask[:, 0].any()
    assert one.target_mask[:, -1].any()


def test_what_does_not_fit_is_refused() -> None:
    ids = torch.zeros(1, 6, dtype=torch.long)
    with pytest.raises(DataError, match="4 pairs of 1 tokens do not fit 6 tokens"):
        plant_pairs(ids, pairs=4, allowed=[1], generator=torch.Generator())
    with pytest.raises(DataError, match=r"7 digits \(2 known\) does not fit 6"):
        plant_number(ids, digits=[1, 2], length=7, generator=torch.Generator())
