"""`open_encoder`: an encoder from a run folder, a model folder or a Hub id."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

from memlm.encoders.huggingface import HuggingFaceEncoder, load_huggingface
from memlm.encoders.interface import MemoryEncoder
from memlm.errors import EncoderError
from memlm.models import MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import RUN_MODELS, load_model


def open_encoder(
    path_or_id: str, *, gguf_file: str | None = None, pooling: str | None = None, layer: int | None = None
) -> MemoryEncoder | HuggingFaceEncoder:
    """Open the encoder of a run, or any transformers model as an encoder.

    Args:
        path_or_id: a run folder, a model folder, or a Hub id.
        gguf_file: the name of a GGUF file inside the folder.
        pooling: "last", "penultimate", "mean" or "cls". By default the model's own pooling, or else "penultimate" for
            causal models and "mean" for others.
        layer: the layer whose hidden states are pooled, 0 for the embeddings; the last by default.

    Raises:
        EncoderError: there is no model, or it has no such layer or pooling.
        CheckpointError: the run folder holds no model with an encoder, or a damaged one.
        TokenizerError: there is no tokenizer.
    """
    folder = Path(path_or_id)
    if gguf_file is None and _is_run(folder):
        if pooling is not None or layer is not None:
            raise EncoderError(
                f"'{path_or_id}' has a bottleneck of its own; --pooling and --layer are for other models."
            )
        return _run_encoder(folder)
    if gguf_file is not None and not (folder / gguf_file).is_file() and folder.is_dir():
        raise EncoderError(f"no '{gguf_file}' in '{path_or_id}'; give the name of a GGUF file in that folder.")
    if gguf_file is not None and importlib.util.find_spec("gguf") is None:
        raise EncoderError(f"reading '{gguf_file}' needs the package gguf; pip install 'memlm[gguf]'.")
    return load_huggingface(path_or_id, gguf_file=gguf_file, pooling=pooling, layer=layer)


def _is_run(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] in RUN_MODELS
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / "run.json").is_file()


def _run_encoder(folder: Path) -> MemoryEncoder:
    model, tokenizer = load_model(folder, TextAutoencoder, MemoryModelForCausalLM)
    encoder = encoder_of(model) if isinstance(model, TextAutoencoder) else model.encoder
    return MemoryEncoder(encoder, tokenizer, name=folder.name)
