"""Sizes and time of a writer's training, from its settings and the decoder's configuration alone."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from memlm.data.tokenizer import gguf_option
from memlm.errors import CheckpointError, ConfigError
from memlm.models import SlotWriterConfig
from memlm.models.memory.adapter import LoraSettings
from memlm.switches import OWN_CODE, TRUST_REMOTE_CODE, needs_code
from memlm.training.config import RunConfig

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "8bit": 1}
_KEPT = (16, 7)
"""Numbers that each layer keeps of a token for the backward pass, in hidden and in intermediate sizes (LOG.md)."""
_GIB = 2**30


@dataclass(frozen=True)
class Estimate:
    """Sizes and time of a training.

    Attributes:
        parameters: of the decoder.
        trained: of the adapters.
        weight_bytes: of the decoder's weights.
        training_bytes: beside them, while a step is computed.
        seconds: of the whole training on this machine, without validation.
    """

    parameters: int
    trained: int
    weight_bytes: int
    training_bytes: int
    seconds: float

    def __str__(self) -> str:
        weights, more = self.weight_bytes / _GIB, self.training_bytes / _GIB
        return (
            f"{self.parameters / 1e6:,.1f} M parameters ({weights:.1f} GiB), adapters of {self.trained / 1e6:,.1f} M; "
            f"training takes about {more:.1f} GiB more and {max(1, round(self.seconds / 60)):,} minutes"
        )


def estimate(config: RunConfig, model: SlotWriterConfig) -> Estimate:
    """Return what a training will take.

    Raises:
        CheckpointError: the decoder's configuration cannot be read.
        ConfigError: the decoder does not fit into memory.
    """
    decoder = _outline(str(config.decoder.path), config.decoder.gguf_file)
    parameters = sum(p.numel() for p in decoder.parameters())
    trained = _adapter_size(decoder, LoraSettings.of(model.lora) if model.lora else LoraSettings(rank=32))
    weights = parameters * _BYTES[config.decoder.dtype]
    rows, length = config.training.batch_size, model.chunk_length
    # all chunks but one are written, all but one are read, and the teacher reads all
    learning, reading = 2 * rows * length * (model.num_chunks - 1), rows * length * model.num_chunks
    sizes, hidden = decoder.config, int(decoder.config.hidden_size)
    kept = _KEPT[0] * hidden + _KEPT[1] * int(getattr(sizes, "intermediate_size", 4 * hidden))
    training = 4 * (4 * trained + learning * kept * int(sizes.num_hidden_layers))
    # a forward pass takes two operations for each weight and token, a backward pass to inputs as many
    operations = 2 * parameters * (2 * learning + reading)
    found = Estimate(parameters, trained, weights, training, config.steps * operations / _operations_per_second())
    advice = "lower training.batch_size or model.num_chunks, or give decoder.dtype bfloat16 or 8bit"
    _check_memory(found.weight_bytes + found.training_bytes, advice)
    return found


def check_fits(model: PreTrainedModel, rows: int) -> None:
    """Check that a training is not certain to exceed the memory: weights, gradients, moments and one hidden state.

    Args:
        model: on any device; its sizes count.
        rows: of a step in this process.

    Raises:
        ConfigError: it does not fit.
    """
    parts = [model.config, *(part for part in vars(model.config).values() if isinstance(part, PreTrainedConfig))]
    width = max(int(getattr(part, "hidden_size", 0)) for part in parts)
    positions = max(int(getattr(part, "max_position_embeddings", 0) or 0) for part in parts)
    positions = max(positions, int(cast(Any, model.config).document_length))
    weights = sum(p.numel() * (4 if p.requires_grad else 1) for p in model.parameters())
    _check_memory(4 * (weights + rows * positions * width), "lower training.batch_size or the model's sizes")


def _outline(path: str, gguf_file: str | None) -> PreTrainedModel:
    option = gguf_option(path) if gguf_file is None else {"gguf_file": gguf_file}
    try:
        trusted = TRUST_REMOTE_CODE.is_on()
        config = AutoConfig.from_pretrained(path, trust_remote_code=trusted, **option)
        with torch.device("meta"):
            outline = AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)
        return _with_sizes(outline)
    except Exception as error:  # hub, JSON and transformers each raise their own kind
        if needs_code(error):
            raise CheckpointError(f"'{path}' {OWN_CODE}") from error
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot load a decoder from '{path}' ({reason}); give a causal language model's folder or Hub id."
        ) from error


def _with_sizes(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose configuration has the sizes of a plain decoder."""
    for name in ("hidden_size", "num_hidden_layers"):
        if not hasattr(model.config, name):
            raise ValueError(f"a {model.config.model_type} has no {name}")
    return model


def _adapter_size(decoder: PreTrainedModel, lora: LoraSettings) -> int:
    head = decoder.get_output_embeddings()
    sizes = [sum(m.weight.shape) for m in decoder.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    return lora.rank * sum(sizes)


def _operations_per_second() -> float:
    """Measure the speed of matrix products on the device that will train."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = torch.rand(1024, 1024, device=device), torch.rand(1024, 1024, device=device)
    (one @ other).sum().item()
    began = time.perf_counter()
    (one @ other @ one @ other).sum().item()
    return 3 * 2 * 1024**3 / (time.perf_counter() - began)


def _check_memory(needed: int, advice: str) -> None:
    if torch.cuda.is_available():
        free, where = torch.cuda.mem_get_info()[0], "of the GPU"
    else:
        free, where = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "of this machine"
    if needed > free:
        sizes = f"{needed / _GIB:.1f} GiB, more than the {free / _GIB:.1f} GiB {where}"
        raise ConfigError(f"training needs about {sizes}; {advice}.")
