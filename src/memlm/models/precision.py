"""Which precision this machine computes fastest in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

_SHORT = 256
"""Positions below which fused attention in bf16 is slower on processors than in fp32 (LOG.md)."""


def wants_bf16(precision: str) -> bool:
    """Whether to compute in bf16: as asked, or where the machine has instructions for it."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return _cpu_has_bf16()


class ShortAttentionInFp32(TorchFunctionMode):
    """Within it processors attend in fp32 where autocast would have them do so in bf16 over few positions.

    PyTorch's fused attention goes back through few positions several times slower in bf16 than in fp32 there
    (`python -m benchmarks.attention`).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention or not _is_slow(args[0]):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_in_fp32, args), **{name: _in_fp32(value) for name, value in kwargs.items()})
        return found.to(torch.get_autocast_dtype("cpu"))


def _is_slow(query: Tensor) -> bool:
    return query.device.type == "cpu" and torch.is_autocast_enabled("cpu") and query.shape[-2] < _SHORT


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _cpu_has_bf16() -> bool:
    supported = (torch.cpu._is_avx512_bf16_supported, torch.cpu._is_amx_tile_supported)  # pyright: ignore[reportPrivateUsage]
    return any(ask() for ask in supported)
