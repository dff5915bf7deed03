"""Slots with rounded numbers: the codes of a store, and a fit that makes up for what the keys lose."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.errors import UserError
from memlm.models.slots import EncodingSettings, FitSettings, MemoryDecoder
from memlm.models.slots.codes import bits_per_slot, rotated, rounded
from memlm.models.slots.fit import fit_slots
from memlm.models.slots.naive import fit_head
from memlm.store import dequantize, quantize
from tests.models.test_slots import decoder_of, full_context, ids, logits


@pytest.mark.parametrize("numbers", [1, 6, 64, 80])
def test_rotation_is_its_own_inverse_and_keeps_products(numbers: int) -> None:
    vectors = torch.randn(2, 3, numbers)
    torch.testing.assert_close(rotated(rotated(vectors)), vectors, rtol=1e-5, atol=1e-5)
    products = vectors @ vectors.mT
    torch.testing.assert_close(rotated(vectors) @ rotated(vectors).mT, products, rtol=1e-4, atol=1e-4)


def test_rotation_spreads_a_large_number() -> None:
    vector = torch.zeros(16)
    vector[3] = 4.0
    assert torch.equal(rotated(vector).abs(), torch.ones(16))


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_rounded_slots_are_what_a_store_keeps_of_them(bits: Any) -> None:
    vectors = torch.randn(5, 7, 64) * torch.logspace(-2, 2, 64)
    found = rounded(vectors, bits)
    kept = quantize(rotated(found) if bits < 16 else found, bits)
    again = rotated(dequantize(kept)) if bits < 16 else dequantize(kept)
    torch.testing.assert_close(again, found, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(rounded(found, bits), found, rtol=1e-5, atol=1e-4)
    error = (found - vectors).norm() / vectors.norm()
    assert error < {16: 1e-3, 8: 0.01, 4: 0.15}[bits]


def test_vectors_of_zeros_stay_zeros() -> None:
    assert torch.equal(rounded(torch.zeros(2, 8), 4), torch.zeros(2, 8))
    vectors = torch.randn(2, 8)
    assert rounded(vectors, None) is vectors


def test_bytes() -> None:
    assert bits_per_slot(64, 16) == 16 * (64 + 64 + 2)
    assert bits_per_slot(64, 4) < 0.3 * bits_per_slot(64, 16)


@pytest.mark.parametrize("bits", [8, 4])
def test_fit_to_rounded_keys_equals_its_slow_version(bits: Any) -> None:
    torch.manual_seed(3)
    queries, keys, values = (torch.randn(3, n, 8, dtype=torch.double) for n in (40, 20, 20))

    def of(indices: Tensor) -> Tensor:
        return rounded(keys.gather(1, indices[..., None].expand(-1, -1, 8)), bits)

    score = 0.7 * queries @ keys.mT
    settings = FitSettings(ridge=1e-12, bits=bits)
    found = fit_slots(score, values, 5, settings, rescored=lambda indices: 0.7 * queries @ of(indices).mT)
    for i in range(3):
        kept, bias, fitted = fit_head(
            queries[i],
            keys[i],
            values[i],
            slots=5,
            scaling=0.7,
            bias_limit=3.0,
            refinements=2,
            rounded=lambda kept_keys: rounded(kept_keys, bits),
        )
        assert torch.equal(found.indices[i], kept)
        torch.testing.assert_close(found.bias[i], bias, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.values[i], fitted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_memories_of_few_bits_stay_as_they_are_when_they_are_stored(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = MemoryDecoder(decoder_of(family), tokenizer, EncodingSettings(query_distance=4))
    [text], [prompt] = ids(24), ids(5, seed=2)
    fit = FitSettings(bits=4)
    memories = model.memories([text], tokens_per_memory=2, fit=fit)
    encoded = model.encode([text], fit=fit).at(tokens_per_memory=2)
    for layer, other in zip(memories.layers, encoded.layers, strict=True):
        for name in ("keys", "values"):
            slots = getattr(layer, name)[:, :, 1:]  # the token before the text is kept as it is
            torch.testing.assert_close(rounded(slots, 4), slots, rtol=1e-5, atol=1e-5)
            assert torch.equal(getattr(layer, name), getattr(other, name))
    assert bool(logits(model, [prompt], memories).isfinite().all())
    every = model.memories([text], tokens_per_memory=1, fit=FitSettings(bits=16))
    expected = full_context(model, text, prompt)
    torch.testing.assert_close(logits(model, [prompt], every), expected, rtol=0.05, atol=0.05)


def test_unknown_bits() -> None:
    with pytest.raises(UserError, match="cannot have numbers of 5 bits; choose 16, 8 or 4"):
        FitSettings(bits=5)
