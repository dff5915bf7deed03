"""Which precision this machine computes fastest in."""

from __future__ import annotations

import torch


def wants_bf16(precision: str) -> bool:
    """Whether to compute in bf16: as asked, or where the machine has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return _cpu_has_bf16()


def _cpu_has_bf16() -> bool:
    supported = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)  # pyright: ignore[reportPrivateUsage]
    return any(ask() for ask in supported)
