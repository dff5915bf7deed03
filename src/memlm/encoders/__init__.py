"""Encoders of every kind behind one interface: texts in, vectors out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from memlm.encoders.base import Encoder, FunctionEncoder, MemoryEncoder, TextVectors
from memlm.encoders.huggingface import POOLINGS, HuggingFaceEncoder, load_huggingface
from memlm.errors import EncoderError
from memlm.models import MemoryModelConfig, MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import OURS, kind_of, load_model

__all__ = [
    "POOLINGS",
    "Encoder",
    "FunctionEncoder",
    "HuggingFaceEncoder",
    "MemoryEncoder",
    "TextVectors",
    "open_encoder",
]


def open_encoder(
    path_or_id: str, *, gguf_file: str | None = None, pooling: str | None = None, layer: int | None = None
) -> MemoryEncoder | HuggingFaceEncoder:
    """The encoder that lies there: one of ours, or any transformers model.

    Args:
        path_or_id: a run folder, a model folder, or a Hub id.
        gguf_file: a GGUF file inside it.
        pooling: "last", "penultimate", "mean" or "cls"; by default the model's own, "penultimate" for causal models,
            "mean" for others.
        layer: hidden states of this layer, 0 for the embeddings; the last by default.

    Raises:
        EncoderError, CheckpointError, TokenizerError: nothing there that can be read.
    """
    folder = Path(path_or_id)
    if gguf_file is None and _is_ours(folder):
        if pooling is not None or layer is not None:
            raise EncoderError(
                f"'{path_or_id}' writes its memories itself; --pooling and --layer are for other models."
            )
        return _ours(folder)
    if gguf_file is not None and not (folder / gguf_file).is_file() and folder.is_dir():
        raise EncoderError(f"no '{gguf_file}' in '{path_or_id}'; give the name of a GGUF file in that folder.")
    if gguf_file is not None and importlib.util.find_spec("gguf") is None:
        raise EncoderError(f"reading '{gguf_file}' needs the package gguf; pip install 'memlm[gguf]'.")
    return load_huggingface(path_or_id, gguf_file=gguf_file, pooling=pooling, layer=layer)


def _is_ours(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] in OURS
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / "run.json").is_file()


def _ours(folder: Path) -> MemoryEncoder:
    if (folder / "config.json").is_file() and kind_of(folder) == MemoryModelConfig.model_type:
        model, tokenizer = load_model(folder, MemoryModelForCausalLM)
        return MemoryEncoder(model.encoder, tokenizer, name=folder.name)
    autoencoder, tokenizer = load_model(folder, TextAutoencoder)
    return MemoryEncoder(encoder_of(autoencoder), tokenizer, name=folder.name)
