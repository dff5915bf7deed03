"""Corrections: whatever was ranked comes back from logits that other machines would move."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlm.errors import DamagedStoreError
from memlm.store.corrections import EXPLICIT, MARGIN, pack, stable_ranks, tokens_of, unpack


def logits_for(seed: int, spread: float, vocabulary: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, vocabulary, generator=generator) * spread
    ids = torch.randint(vocabulary, (3, 7), generator=generator)
    return logits, ids


@given(st.integers(0, 1000), st.sampled_from([0.1, 1.0, 5.0, 40.0]))
@settings(max_examples=40, deadline=None)
def test_tokens_come_back_from_logits_moved_by_half_the_margin(seed: int, spread: float) -> None:
    logits, ids = logits_for(seed, spread)
    ranks = stable_ranks(logits, ids)
    explicit = torch.where(ranks == EXPLICIT, ids, 0)
    moved = logits + (torch.rand_like(logits) - 0.5) * 0.99 * MARGIN
    assert torch.equal(tokens_of(moved, ranks, explicit), ids)


def test_a_near_tie_is_kept_as_a_token_and_a_clear_one_costs_nothing() -> None:
    logits = torch.tensor([[[9.0, 5.0, 4.5, -3.0]] * 4])
    ids = torch.tensor([[0, 1, 2, 3]])
    assert stable_ranks(logits, ids).tolist() == [[0, EXPLICIT, EXPLICIT, 3]]


def test_logits_that_are_no_numbers_keep_every_token() -> None:
    logits, ids = logits_for(0, 1.0)
    ranks = stable_ranks(torch.full_like(logits, torch.nan), ids)
    assert bool((ranks == EXPLICIT).all())
    assert torch.equal(tokens_of(torch.full_like(logits, torch.nan), ranks, ids), ids)


@given(st.lists(st.tuples(st.sampled_from([0, 0, 0, 0, 1, 3, 254, EXPLICIT]), st.integers(0, 2**31)), max_size=200))
@settings(max_examples=60, deadline=None)
def test_what_is_packed_is_unpacked(places: list[tuple[int, int]]) -> None:
    ranks = torch.tensor([rank for rank, _ in places], dtype=torch.uint8)
    ids = torch.tensor([token for _, token in places], dtype=torch.long)
    # a text that deflates badly, so that the list is chosen
    text = bytes(torch.randint(256, (4000,), generator=torch.Generator().manual_seed(0)).tolist())
    packed = pack(ranks, ids, text, by_tokens=True)
    found = unpack(packed, tokens=len(places), text_bytes=len(text))
    assert not isinstance(found, bytes)
    assert torch.equal(found[0], ranks)
    assert torch.equal(found[1], torch.where(ranks == EXPLICIT, ids, 0))


def test_nothing_to_correct_takes_nothing() -> None:
    assert pack(torch.zeros(50, dtype=torch.uint8), torch.arange(50), b"text", by_tokens=True) == b""


@pytest.mark.parametrize("text", [b"", b"x", b"abc" * 500])
def test_the_text_itself_where_tokens_do_not_give_it_back(text: bytes) -> None:
    packed = pack(torch.zeros(3, dtype=torch.uint8), torch.arange(3), text, by_tokens=False)
    assert unpack(packed, tokens=3, text_bytes=len(text)) == text
    assert len(packed) <= len(text) + 1


def test_the_shortest_form_is_taken() -> None:
    ranks = torch.full((400,), EXPLICIT, dtype=torch.uint8)
    ids = torch.randint(1000, (400,), generator=torch.Generator().manual_seed(0))
    assert len(pack(ranks, ids, b"ab" * 600, by_tokens=True)) < 40


@pytest.mark.parametrize(
    "damaged",
    [
        b"\x09",
        b"\x00",
        b"\x00\x05",
        b"\x00\x01\x00\x01",
        b"\x00\x01\x7f\x01",
        b"\x00\x01\x01\xff",
        b"\x00\x01\x01\x01\x01",
        b"\x00\xff\xff\xff\xff\xff\xff\x01",
        b"\x01no deflate",
        b"\x03\xff",
        pack(torch.zeros(1, dtype=torch.uint8), torch.zeros(1, dtype=torch.long), b"a" * 10_000, by_tokens=False),
    ],
)
def test_damage_is_one_line(damaged: bytes) -> None:
    with pytest.raises(DamagedStoreError, match="corrections are damaged"):
        unpack(damaged, tokens=4, text_bytes=10)
