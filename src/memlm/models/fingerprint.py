"""A name for a model's weights: equal where every number is."""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import torch
from torch import nn


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
