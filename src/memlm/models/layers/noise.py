"""Quantisation noise: memories trained with it survive rounding (paper 1.4, 2.12).

Departures from the reference code: the noise is centred, and there is none outside training.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class QuantizationNoise(nn.Module):
    """Adds uniform noise as wide as one step of rounding to `bits` bits with one scale per vector."""

    def __init__(self, bits: int | None) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Float[Tensor, "*batch numbers"]) -> Float[Tensor, "*batch numbers"]:
        """In training `x` plus centred noise; otherwise, or with no bits set, `x` itself."""
        if self.bits is None or not self.training:
            return x
        step = x.detach().abs().amax(-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        return x + (torch.rand_like(x) - 0.5) * step
