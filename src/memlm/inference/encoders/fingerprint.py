"""A name for everything that decides a model's vectors."""

from __future__ import annotations

import hashlib

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase


def model_fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *settings: object) -> str:
    """SHA-256 over weights, tokenizer and settings, 64 hexadecimal digits."""
    digest = hashlib.sha256(repr(settings).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    digest.update(vocabulary.encode())
    return digest.hexdigest()
