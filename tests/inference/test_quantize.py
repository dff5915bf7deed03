"""Rounding: error bounds, sizes, packing, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlm.errors import ConfigError, MemoryShapeError
from memlm.inference import dequantize, quantize, stored_bytes

numbers = st.floats(-1000, 1000, width=32)
vectors = st.integers(1, 9).flatmap(
    lambda w: st.lists(st.lists(numbers, min_size=w, max_size=w), min_size=1, max_size=4)
)


@settings(max_examples=200, deadline=None)
@given(vectors, st.sampled_from([8, 4]))
def test_no_number_moves_by_more_than_half_a_scale(rows: list[list[float]], bits: int) -> None:
    memories = torch.tensor(rows)
    quantized = quantize(memories, bits)
    error = (dequantize(quantized) - memories).abs()
    assert quantized.scale is not None
    assert (error <= quantized.scale.float() * 0.5001 + 1e-12).all()


@settings(max_examples=100, deadline=None)
@given(vectors)
def test_half_precision_is_a_cast(rows: list[list[float]]) -> None:
    memories = torch.tensor(rows)
    assert torch.equal(dequantize(quantize(memories, 16)), memories.half().float())


@pytest.mark.parametrize(("bits", "share"), [(8, 127), (4, 7.5)])
def test_scale_is_the_largest_number_over_the_levels_rounded_up(bits: int, share: float) -> None:
    memories = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    scale = quantize(memories, bits).scale
    exact = memories.abs().amax(-1, keepdim=True) / share
    assert scale is not None
    assert (scale.float() >= exact).all()
    assert (scale.float() <= exact * (1 + 2**-10)).all()


def test_sixteen_levels_beat_fifteen_on_bounded_memories() -> None:
    memories = torch.rand(500, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    step = memories.abs().amax(-1, keepdim=True) / 7
    fifteen = ((memories / step).round() * step - memories).square().mean()
    assert (dequantize(quantize(memories, 4)) - memories).square().mean() < fifteen


@pytest.mark.parametrize("width", [1, 2, 7, 8])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_num_bytes_counts_values_and_scales(bits: int, width: int) -> None:
    quantized = quantize(torch.ones(3, 2, width), bits)
    per_vector = {16: 2 * width, 8: width + 2, 4: (width + 1) // 2 + 2}[bits]
    assert quantized.num_bytes == 6 * per_vector == stored_bytes(6, width, bits)
    assert dequantize(quantized).shape == (3, 2, width)


def test_packing_keeps_the_order_of_an_odd_width() -> None:
    memories = torch.tensor([[-7.5, -2.5, 0.5, 3.5, 7.5]])
    assert torch.equal(dequantize(quantize(memories, 4)), memories)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_zeros_and_no_memories_come_back(bits: int) -> None:
    assert torch.equal(dequantize(quantize(torch.zeros(2, 5), bits)), torch.zeros(2, 5))
    assert dequantize(quantize(torch.zeros(0, 1, 6), bits)).shape == (0, 1, 6)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_large_vector_does_not_coarsen_another(bits: int) -> None:
    small = torch.linspace(-1, 1, 8)[None]
    together = dequantize(quantize(torch.cat([small, 1000 * small]), bits))
    assert torch.equal(together[:1], dequantize(quantize(small, bits)))


def test_the_callers_tensor_is_left_alone() -> None:
    memories = torch.randn(3, 5)
    before = memories.clone()
    for bits in (16, 8, 4):
        quantize(memories, bits)
    assert torch.equal(memories, before)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_is_refused(bits: int, bad: float) -> None:
    memories = torch.zeros(2, 3)
    memories[1, 1] = bad
    with pytest.raises(MemoryShapeError, match="1 of 6 numbers"):
        quantize(memories, bits)


def test_what_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(MemoryShapeError, match="65504"):
        quantize(torch.tensor([[7e4]]), 16)
    with pytest.raises(MemoryShapeError, match="65504"):
        quantize(torch.tensor([[7e6]]), 4)


def test_empty_width_and_unknown_bits_are_refused() -> None:
    with pytest.raises(MemoryShapeError, match=r"\(2, 0\)"):
        quantize(torch.zeros(2, 0), 8)
    with pytest.raises(ConfigError, match="5 bits"):
        quantize(torch.zeros(2, 3), 5)
