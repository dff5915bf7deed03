"""A model of memlm and its tokenizer from a folder, or one clear line why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.data import load_tokenizer
from memlm.errors import CheckpointError, TokenizerError
from memlm.models import MemoryModelConfig, MemoryModelForCausalLM, TextAutoencoder, TextAutoencoderConfig
from memlm.models.runtime import no_shard_bars

OURS: dict[str, type[PreTrainedModel]] = {
    TextAutoencoderConfig.model_type: TextAutoencoder,
    MemoryModelConfig.model_type: MemoryModelForCausalLM,
}
"""Models that a run folder may hold, by their model_type."""
Model = TypeVar("Model", bound=PreTrainedModel)


def kind_of(folder: Path) -> str:
    """`model_type` of the model there.

    Raises:
        CheckpointError: no readable config.json.
    """
    config = folder / "config.json"
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{config}' is not a model's settings ({error}); restore it or train again.") from error


def load_model(directory: str | Path, *wanted: type[Model]) -> tuple[Model, PreTrainedTokenizerBase]:
    """A trained model of one of these kinds with its tokenizer, from a run folder or any that save_pretrained wrote.

    Raises:
        CheckpointError: no model there, damaged, or of another kind.
        TokenizerError: no tokenizer.
    """
    folder = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"no {name} in '{directory}'; give the folder of a finished run (memlm train, memlm demo)."
            )
    kind = kind_of(folder)
    asked = {str(cast(Any, one.config_class).model_type): one for one in wanted}
    if kind not in asked:
        kinds = "' or '".join(asked)
        raise CheckpointError(f"'{directory}' holds a model of kind '{kind}', not '{kinds}'; give a memlm run.")
    model = _weights(folder, asked[kind])
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(
            f"no tokenizer.json in '{directory}'; copy the tokenizer the model was trained with beside it."
        )
    return model, load_tokenizer(folder)


def _weights(folder: Path, wanted: type[Model]) -> Model:
    try:
        with no_shard_bars():
            model, info = cast(Any, wanted.from_pretrained(folder, output_loading_info=True))
    except Exception as error:  # safetensors, JSON, transformers and strict settings each raise their own kind
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot load a model from '{folder}' ({reason}); it is damaged or not a memlm model."
        ) from error
    absent = sorted(info["missing_keys"]) or sorted(info["unexpected_keys"])
    if absent:
        raise CheckpointError(
            f"config.json and model.safetensors in '{folder}' differ ({absent[0]} is in one only); restore both."
        )
    return model
