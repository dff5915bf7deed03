"""Token mixing as it is defined (arXiv 2602.13466), position by position: the oracle of the tests."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def naive_token_mixing(
    x: Float[Tensor, "batch heads tokens channels"],
    weight: Float[Tensor, "heads taps length length"],
    bias: Float[Tensor, "heads length"],
    *,
    causal: bool,
    readable: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens channels"]:
    """Each output position sums what it may read, each tap shifted along the channels, zeros beyond the edge."""
    batch, heads, tokens, channels = x.shape
    taps = weight.shape[1]
    rows: list[Tensor] = []
    for i in range(tokens):
        row = bias[None, :, i, None].expand(batch, heads, channels)
        for j in range(i + 1 if causal else tokens):
            source = x[:, :, j]
            if readable is not None:
                source = torch.where(readable[:, j, None, None], source, torch.zeros_like(source))
            for tap in range(taps):
                row = row + weight[None, :, tap, i, j, None] * _shifted(source, tap - (taps - 1) // 2)
        rows.append(row)
    return torch.stack(rows, dim=2)


def _shifted(x: Tensor, offset: int) -> Tensor:
    """`out[c] = x[c + offset]`, zero where that lies outside."""
    out = torch.zeros_like(x)
    channels = x.shape[-1]
    for c in range(channels):
        if 0 <= c + offset < channels:
            out[..., c] = x[..., c + offset]
    return out
