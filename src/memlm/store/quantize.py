"""Quantization of memories to fp16, int8 or packed int4, with one scale per vector.

Rounding is symmetric: the largest absolute number of a vector becomes the largest code (127 or 7), and zero stays zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.data.given import check_kind, finite_tensor
from memlm.errors import MemoryShapeError, Within, did_you_mean

Bits = Literal[16, 8, 4]
_SCALE_BITS = 16


@dataclass(frozen=True)
class QuantizedMemories:
    """Vectors of rounded numbers.

    Attributes:
        values: (..., numbers) in fp16 or int8; for int4 (..., ceil(numbers / 2)) in uint8, two numbers in a byte.
        scale: (..., 1) in fp16; None for fp16 values.
        bits: bits of one number: 16, 8 or 4.
        numbers: the length of one vector.
    """

    values: Tensor
    scale: Tensor | None
    bits: Bits
    numbers: int


def bits_per_vector(numbers: int, bits: Bits) -> int:
    """Return the bits of one vector, including its scale."""
    return numbers * bits + (0 if bits == 16 else _SCALE_BITS)


def quantize(memories: Float[Tensor, "*batch numbers"], bits: Bits) -> QuantizedMemories:
    """Round each vector, (..., numbers), to numbers of 16, 8 or 4 bits.

    Raises:
        MemoryShapeError: values are not finite, or `bits` is another number.
    """
    memories = finite_tensor(memories, name="memories")
    if not memories.ndim or not memories.shape[-1]:
        raise MemoryShapeError(f"memories of shape {tuple(memories.shape)} have no numbers; give (..., numbers).")
    Within(4, 16).check("bits", bits, whole=True)
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
    """Return the rounded vectors in fp32, (..., numbers).

    Raises:
        DataError: it is something else than what `quantize` returned.
    """
    check_kind(quantized, QuantizedMemories, name="memories", instead="what quantize returned")
    if quantized.scale is None:
        return quantized.values.float()
    codes = quantized.values if quantized.bits == 8 else _unpacked(quantized.values)[..., : quantized.numbers]
    return codes.float() * quantized.scale.float()


def rows_of(memories: QuantizedMemories, rows: slice | Int[Tensor, " chosen"]) -> QuantizedMemories:
    """Return the memories of some rows."""
    scale = None if memories.scale is None else memories.scale[rows]
    return QuantizedMemories(memories.values[rows], scale, memories.bits, memories.numbers)


ROUNDINGS = ("none", "fp16", "int8", "int4", "binary")


def rounded(vectors: Float[Tensor, "*batch numbers"], kind: str) -> Float[Tensor, "*batch numbers"]:
    """Return vectors in fp32 after rounding them to one of ROUNDINGS; "binary" keeps only signs.

    Raises:
        MemoryShapeError: values are not finite, or the kind is unknown.
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
    """Pack two codes of -7..7 into one byte, the first in the low half."""
    shifted = torch.nn.functional.pad((codes + 8).to(torch.uint8), (0, codes.shape[-1] % 2))
    return shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def _unpacked(packed: Tensor) -> Tensor:
    halves = torch.stack([packed & 15, packed >> 4], dim=-1)
    return halves.flatten(-2).to(torch.int8) - 8
