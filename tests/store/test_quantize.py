"""Rounding is as near as its bits allow, small on disk, and refuses what cannot be rounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from memlm.errors import MemoryShapeError
from memlm.store import bits_per_vector, dequantize, quantize


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 4),
    numbers=st.integers(1, 9),
    exponent=st.floats(-3, 3),
    bits=st.sampled_from([16, 8, 4]),
    seed=st.integers(0, 99),
)
def test_rounding_errs_by_half_a_step_at_most(rows: int, numbers: int, exponent: float, bits: int, seed: int) -> None:
    x = torch.randn(rows, numbers, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    quantized = quantize(x, bits)  # type: ignore[arg-type]
    step = x.abs().amax(-1, keepdim=True) / {16: 1000, 8: 127, 4: 7}[bits]
    # scales are kept in fp16, whose smallest numbers lie 2**-24 apart
    scale_error = {16: 0, 8: 127, 4: 7}[bits] * 2.0**-25
    assert ((dequantize(quantized) - x).abs() <= 0.52 * step + scale_error + 1e-7).all()
    assert dequantize(quantized).shape == x.shape
    if numbers % 2 == 0 or bits != 4:
        stored = [quantized.values] if quantized.scale is None else [quantized.values, quantized.scale]
        assert sum(part.nbytes for part in stored) * 8 == rows * bits_per_vector(numbers, bits)  # type: ignore[arg-type]


def test_zero_vectors_stay_zero() -> None:
    for bits in (16, 8, 4):
        assert not dequantize(quantize(torch.zeros(2, 5), bits)).any()  # type: ignore[arg-type]


def test_what_cannot_be_rounded() -> None:
    with pytest.raises(MemoryShapeError, match="1 of 4 numbers in the memories are NaN or infinite"):
        quantize(torch.tensor([[1.0, 2.0], [3.0, torch.inf]]), 8)
    with pytest.raises(MemoryShapeError, match="cannot be kept in 5 bits"):
        quantize.__wrapped__(torch.zeros(1, 1), 5)
