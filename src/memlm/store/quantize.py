"""Memories in fewer bits: fp16, int8 or packed int4, one scale per vector.

Symmetric rounding: the largest absolute number of a vector becomes the largest code (127 or 7); zero stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.errors import MemoryShapeError, did_you_mean

Bits = Literal[16, 8, 4]
_SCALE_BITS = 16


@dataclass(frozen=True)
class QuantizedMemories:
    """Vectors in few bits.

    Attributes:
        values: (..., numbers) fp16 or int8; (..., numbers rounded up to even / 2) uint8 for int4, two numbers a byte.
        scale: (..., 1) fp16, None for fp16 values.
        bits: 16, 8 or 4.
        numbers: numbers in one vector.
    """

    values: Tensor
    scale: Tensor | None
    bits: Bits
    numbers: int

    @property
    def num_bytes(self) -> int:
        """Bytes of values and scales."""
        scales = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return self.values.numel() * self.values.element_size() + scales


def bits_per_vector(numbers: int, bits: Bits) -> int:
    """Bits that one vector takes, its scale included."""
    return numbers * bits + (0 if bits == 16 else _SCALE_BITS)


def quantize(memories: Float[Tensor, "*batch numbers"], bits: Bits) -> QuantizedMemories:
    """Round each vector.

    Raises:
        MemoryShapeError: values that are not finite, or other bits.
    """
    if not bool(torch.isfinite(memories).all()):
        bad = int((~torch.isfinite(memories)).sum())
        raise MemoryShapeError(
            f"{bad} of {memories.numel()} numbers are NaN or infinite and cannot be rounded; encode the text again."
        )
    if bits not in (16, 8, 4):
        raise MemoryShapeError(f"memories cannot be kept in {bits} bits; choose 16, 8 or 4.")
    numbers = memories.shape[-1]
    if bits == 16:
        return QuantizedMemories(memories.clamp(-65504, 65504).half(), None, bits, numbers)
    top = 2 ** (bits - 1) - 1
    largest = memories.float().abs().amax(-1, keepdim=True)
    # the rounded scale divides, so that encoder and decoder use the same number; zero vectors keep a scale of one
    scale = torch.where(largest > 0, largest / top, torch.ones_like(largest)).clamp(6e-8, 65504).half()
    codes = (memories.float() / scale.float()).round().clamp(-top, top).to(torch.int8)
    return QuantizedMemories(codes if bits == 8 else _packed(codes), scale, bits, numbers)


def dequantize(quantized: QuantizedMemories) -> Float[Tensor, "*batch numbers"]:
    """The vectors in fp32, as near as the rounding left them."""
    if quantized.scale is None:
        return quantized.values.float()
    codes = quantized.values if quantized.bits == 8 else _unpacked(quantized.values)[..., : quantized.numbers]
    return codes.float() * quantized.scale.float()


def rows_of(memories: QuantizedMemories, rows: slice | Int[Tensor, " chosen"]) -> QuantizedMemories:
    """Some of the memories."""
    scale = None if memories.scale is None else memories.scale[rows]
    return QuantizedMemories(memories.values[rows], scale, memories.bits, memories.numbers)


ROUNDINGS = ("none", "fp16", "int8", "int4", "binary")


def rounded(vectors: Float[Tensor, "*batch numbers"], kind: str) -> Float[Tensor, "*batch numbers"]:
    """What is left of vectors kept in fewer bits, in fp32; "binary" keeps signs only.

    Raises:
        MemoryShapeError: values that are not finite, or another kind.
    """
    if kind == "none":
        return vectors.float()
    if kind == "binary":
        return torch.where(vectors > 0, 1.0, -1.0)
    widths: dict[str, Bits] = {"fp16": 16, "int8": 8, "int4": 4}
    if kind not in widths:
        raise MemoryShapeError(f"unknown rounding '{kind}'. {did_you_mean(kind, ROUNDINGS)}")
    return dequantize(quantize(vectors, widths[kind]))


def _packed(codes: Tensor) -> Tensor:
    """Two codes of -7..7 in one byte, the first in the low half."""
    shifted = torch.nn.functional.pad((codes + 8).to(torch.uint8), (0, codes.shape[-1] % 2))
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def _unpacked(packed: Tensor) -> Tensor:
    halves = torch.stack([packed & 15, packed >> 4], dim=-1)
    return halves.flatten(-2).to(torch.int8) - 8
