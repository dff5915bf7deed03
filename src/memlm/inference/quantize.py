"""Memories in fewer bits: half precision, 8-bit and 4-bit integers with one scale per vector.

Departures from a plain absmax scheme:
- 4 bits use all 16 codes, at odd multiples of half a step (-7.5 ... 7.5). The largest error is 1/15 of the
  largest number instead of 1/14 with 15 levels around zero, and no offset has to be kept beside the scale.
  A zero in a vector becomes half a step; a vector of zeros stays one, its scale being zero.
- the half-precision scale is rounded up: no number is clipped, and every error is at most half a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import ConfigError, MemoryShapeError

BIT_WIDTHS: Final = (16, 8, 4)
_LEVELS: Final = {8: 127.0, 4: 7.5}
_SCALE_BYTES: Final = 2
_LARGEST_HALF: Final = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class QuantizedMemories:
    """Memories as they are kept.

    Attributes:
        values: (..., W) float16 or int8; for 4 bits (..., ceil(W / 2)) uint8, the first of two
            numbers in the low half of a byte.
        scale: (..., 1) float16, what one step is worth; None for 16 bits.
        bits: 16, 8 or 4.
        width: W, numbers in one memory.
    """

    values: Tensor
    scale: Tensor | None
    bits: int
    width: int

    @property
    def num_bytes(self) -> int:
        """Bytes of values and scales together."""
        scales = 0 if self.scale is None else self.scale.numel() * self.scale.element_size()
        return self.values.numel() * self.values.element_size() + scales


def stored_bytes(num_vectors: int, width: int, bits: int) -> int:
    """Bytes that so many memories of this width take, their scales included.

    Raises:
        ConfigError: bits other than 16, 8 or 4.
    """
    _require_bits(bits)
    per_vector = 2 * width if bits == 16 else -(-width * bits // 8) + _SCALE_BYTES
    return num_vectors * per_vector


def quantize(memories: Float[Tensor, "... numbers"], bits: int) -> QuantizedMemories:
    """Round each memory to this many bits per number.

    Args:
        memories: (..., W), finite.
        bits: 16 (half precision), 8 or 4.

    Raises:
        ConfigError: bits other than 16, 8 or 4.
        MemoryShapeError: no vectors, NaN or infinite numbers, or numbers too large for half precision.
    """
    _require_bits(bits)
    _require_vectors(memories)
    width = memories.shape[-1]
    largest = memories.abs().amax(dim=-1, keepdim=True).float()
    if bits == 16:
        _require_half(largest)
        return QuantizedMemories(memories.to(torch.float16), None, bits, width)
    scale = _half_above(largest / _LEVELS[bits])
    steps = memories.float() / scale.float().masked_fill(scale == 0, 1)
    values = steps.round().to(torch.int8) if bits == 8 else _pack(steps)
    return QuantizedMemories(values, scale, bits, width)


def dequantize(quantized: QuantizedMemories) -> Float[Tensor, "... numbers"]:
    """The rounded memories as float32 (..., W)."""
    if quantized.scale is None:
        return quantized.values.float()
    steps = quantized.values.float() if quantized.bits == 8 else _unpack(quantized.values, quantized.width)
    return steps * quantized.scale.float()


def _pack(steps: Tensor) -> Tensor:
    codes = (steps.floor() + 8).clamp(0, 15).to(torch.uint8)
    low, high = F.pad(codes, (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2)).unbind(-1)
    return low | (high << 4)


def _unpack(packed: Tensor, width: int) -> Tensor:
    codes = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :width]
    return codes.float() - 7.5


def _half_above(x: Tensor) -> Tensor:
    """The smallest half-precision number that is at least x; x is not negative."""
    _require_half(x)
    half = x.to(torch.float16)
    # the bits of a positive float, read as an integer, count upwards with it
    return (half.view(torch.int16) + (half.float() < x)).to(torch.int16).view(torch.float16)


def _require_bits(bits: int) -> None:
    if bits not in BIT_WIDTHS:
        raise ConfigError(f"memories cannot be kept in {bits} bits per number; choose from {BIT_WIDTHS}.")


def _require_vectors(memories: Tensor) -> None:
    if memories.dim() < 1 or memories.shape[-1] < 1:
        raise MemoryShapeError(
            f"memories of shape {tuple(memories.shape)} hold no vectors; give (..., numbers)."
        )
    finite = torch.isfinite(memories)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise MemoryShapeError(
            f"{bad} of {memories.numel()} numbers in the memories are NaN or infinite; encode the text again."
        )


def _require_half(x: Tensor) -> None:
    if bool((x > _LARGEST_HALF).any()):
        raise MemoryShapeError(
            f"{float(x.max()):.3g} is beyond half precision ({_LARGEST_HALF:.0f}); scale them down first."
        )
