"""Loading of trained models and their tokenizers from folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.checksums import check_folder
from memlm.data import load_tokenizer
from memlm.data.given import folder_of
from memlm.data.tokenizer import gguf_option
from memlm.errors import CheckpointError, TokenizerError
from memlm.models import (
    MemoryModelConfig,
    MemoryModelForCausalLM,
    RecurrentMemoryConfig,
    RecurrentMemoryForCausalLM,
    SlotWriter,
    SlotWriterConfig,
    TextAutoencoder,
    TextAutoencoderConfig,
)
from memlm.models.runtime import check_weight_files, no_shard_bars

RUN_MODELS: dict[str, type[PreTrainedModel]] = {
    TextAutoencoderConfig.model_type: TextAutoencoder,
    MemoryModelConfig.model_type: MemoryModelForCausalLM,
    RecurrentMemoryConfig.model_type: RecurrentMemoryForCausalLM,
    SlotWriterConfig.model_type: SlotWriter,
}
"""The models that a run folder may hold, by their `model_type`."""
Model = TypeVar("Model", bound=PreTrainedModel)


def kind_of(folder: Path) -> str:
    """Return the `model_type` of the model in a folder.

    Raises:
        CheckpointError: the folder has no readable config.json.
    """
    config = folder / "config.json"
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"'{config}' is not a model's settings ({error}); restore it or train again.") from error


def is_decoder(path_or_id: str) -> bool:
    """Return whether a model is a decoder that reads slots, trained to write them or not."""
    folder = Path(path_or_id)
    if (folder / "config.json").is_file():
        return kind_of(folder) not in RUN_MODELS.keys() - {SlotWriterConfig.model_type}
    return not folder.exists() or bool(gguf_option(folder))  # what does not exist may be an id of the Hub


def load_model(directory: str | Path, *classes: type[Model]) -> tuple[Model, PreTrainedTokenizerBase]:
    """Load a trained model and its tokenizer.

    Args:
        directory: a run folder, or a folder that `save_pretrained` wrote.
        classes: the classes that the model may have.

    Raises:
        CheckpointError: the folder holds no model, a damaged one, or one of another class.
        TokenizerError: the folder holds no tokenizer.
    """
    folder = folder_of(directory)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"no {name} in '{directory}'; give the folder of a finished run (memlm train, memlm demo)."
            )
    kind = kind_of(folder)
    by_kind = {str(cast(Any, one.config_class).model_type): one for one in classes}
    if kind not in by_kind:
        kinds = "' or '".join(by_kind)
        advice = "give a memlm run, or open an exported decoder with transformers' AutoModelForCausalLM"
        if kind in RUN_MODELS:
            advice = "give another memlm run"
        raise CheckpointError(f"'{directory}' holds a model of kind '{kind}', not '{kinds}'; {advice}.")
    check_weight_files(folder, CheckpointError)
    check_folder(folder)
    model = _weights(folder, by_kind[kind])
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(
            f"no tokenizer.json in '{directory}'; copy the tokenizer the model was trained with beside it."
        )
    return model, load_tokenizer(folder)


def summary_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Describe a model in one line: its kind, the sizes of a chunk's memories, its parameters and its tokenizer."""
    config = model.config
    if isinstance(model, RecurrentMemoryForCausalLM):
        vectors, width = model.start.shape
    else:
        encoder = model.encoder.config if isinstance(model, MemoryModelForCausalLM) else config
        vectors, width = encoder.memories_per_chunk, encoder.bottleneck_size
    return (
        f"{config.model_type}, chunks of {config.chunk_length} tokens as {vectors} x {width} numbers, "
        f"{model.num_parameters():,} parameters, {type(tokenizer).__name__} of {len(tokenizer):,} tokens"
    )


def _weights(folder: Path, model_class: type[Model]) -> Model:
    try:
        with no_shard_bars():
            model, info = cast(Any, model_class.from_pretrained(folder, use_safetensors=True, output_loading_info=True))
    except Exception as error:  # safetensors, JSON, transformers and strict configurations raise different errors
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot load a model from '{folder}' ({reason}); it is damaged or not a memlm model."
        ) from error
    mismatched = sorted(info["missing_keys"]) or sorted(info["unexpected_keys"])
    if mismatched:
        raise CheckpointError(
            f"config.json and model.safetensors in '{folder}' differ ({mismatched[0]} is in one only); restore both."
        )
    return model
