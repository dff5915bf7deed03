"""A name for everything that decides a model's vectors."""

from __future__ import annotations

import hashlib
import json

from torch import nn
from transformers import PreTrainedTokenizerBase

from memlm.models.fingerprint import hash_weights


def model_fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *settings: object) -> str:
    """SHA-256 over weights, tokenizer and settings, 64 hexadecimal digits."""
    digest = hashlib.sha256(repr(settings).encode())
    hash_weights(digest, model)
    digest.update(vocabulary_of(tokenizer).encode())
    return digest.hexdigest()


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """How text becomes ids; padding and truncation are left out, which each use of a tokenizer sets anew."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    settings = json.loads(backend.to_str())
    return json.dumps({name: value for name, value in settings.items() if name not in ("padding", "truncation")})
