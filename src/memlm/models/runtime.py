"""Fingerprints of weights, numeric precision, and quiet loading."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.utils import logging


@contextmanager
def no_shard_bars() -> Generator[None]:
    """Within it those bars are off; whatever the setting was comes back."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@runtime_checkable
class Digest(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None:
        """Take these bytes in."""


def hash_weights(digest: Digest, model: nn.Module) -> None:
    """Take names, kinds, shapes and numbers of all weights in."""
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over all weights, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    hash_weights(digest, model)
    return digest.hexdigest()


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
