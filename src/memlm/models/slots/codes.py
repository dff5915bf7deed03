"""Keys and values of slots, rounded to numbers of 16, 8 or 4 bits, with one scale for each key and each value.

A few numbers of a key are much larger than the others and would set the scale of all. Keys and values are therefore
rotated by a Hadamard matrix before they are rounded, which spreads every number over all others (QuaRot, arXiv
2404.00456). The matrix is its own inverse and nothing about it has to be stored.

The fit rounds keys first and then fits biases and values to the rounded keys, so that it makes up for most of what
the keys lose (`FitSettings.bits`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_BITS_OF_SCALE = _BITS_OF_BIAS = _BITS_OF_POSITION = 16
_LARGEST, _SMALLEST = 65504.0, 6e-8
"""Bounds of numbers in fp16."""


def bits_per_slot(numbers: int, bits: int) -> int:
    """Return the bits of one head's slot: a key and a value of so many numbers, their scales, bias and position."""
    scales = 0 if bits == 16 else 2 * _BITS_OF_SCALE
    return 2 * numbers * bits + scales + _BITS_OF_BIAS + _BITS_OF_POSITION


def rotated(vectors: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch numbers"]:
    """Return vectors rotated by a Hadamard matrix, in fp32; rotated again they are what they were.

    Vectors whose length is no power of two are rotated in parts of the largest power of two that divides it.
    """
    numbers = vectors.shape[-1]
    size = numbers & -numbers
    parts = vectors.float().unflatten(-1, (numbers // size, size))
    return (parts @ _hadamard(size).to(vectors.device)).flatten(-2)


def rounded(vectors: Float[Tensor, "*batch numbers"], bits: int | None) -> Float[Tensor, "*batch numbers"]:
    """Return vectors whose rotations have numbers of so many bits; as they are if `bits` is None.

    Vectors that were rounded before stay as they are.
    """
    if bits is None:
        return vectors
    if bits == 16:
        return vectors.clamp(-_LARGEST, _LARGEST).half().to(vectors.dtype)
    top = 2 ** (bits - 1) - 1
    turned = rotated(vectors)
    # the rounded scale divides, as in a store, so that both use the same number
    scale = (turned.abs().amax(-1, keepdim=True) / top).clamp(_SMALLEST, _LARGEST).half().float()
    return rotated((turned / scale).round().clamp(-top, top) * scale).to(vectors.dtype)


def _hadamard(size: int) -> Float[Tensor, "size size"]:
    """Return the symmetric, orthogonal matrix whose numbers are all of one size."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix * size**-0.5
