"""Base classes that connect memlm's configurations and models to transformers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast, get_origin

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast

from memlm.durable import seal_folder
from memlm.errors import ConfigError, did_you_mean, shown
from memlm.files import disk_errors

CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""Name of the key-value cache in transformers' arguments and outputs: `cache` since 5.24, `past_key_values` before."""


def with_cache_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a model's arguments with the key-value cache, under either name, by the name that transformers uses."""
    caches = {name: arguments.get(name) for name in ("cache", "past_key_values")}
    found = [cache for cache in caches.values() if cache is not None]
    return {**{n: v for n, v in arguments.items() if n not in caches}, CACHE_NAME: found[0] if found else None}


_TRANSFORMERS_OWN = frozenset(
    {"torch_dtype", "name_or_path", "_name_or_path", "_commit_hash", "attn_implementation", "auto_map"}
    | {"experts_implementation", "output_attentions", "num_labels", "per_layer_config", "model_type"}
    | {"_attn_implementation_internal", "_experts_implementation_internal", "_attn_implementation"}
)


class MemlmConfig(PreTrainedConfig):
    """Base class of every memlm configuration.

    A configuration class is the only declaration of its settings: runs store it, and the command line takes names,
    defaults and help texts (the attribute docstrings) from it. Fields in `from_data` are no settings of a run; they
    are filled in from its data when the model is built.

    Raises:
        ConfigError: an unknown key, or values that do not fit each other.
    """

    from_data: ClassVar[frozenset[str]] = frozenset(
        {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings"}
    )
    # jaxtyping's check would refuse the unknown keys before we can name them
    __no_type_check__: ClassVar[bool] = True

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_unknown_keys(kwargs)
        super().__post_init__(**kwargs)
        self.check_types()
        self.check()

    def check_types(self) -> None:
        """Raise ConfigError for the first value of another type than its field's."""
        for name, adapter in _field_types(type(self)).items():
            try:
                adapter.validate_python(getattr(self, name))
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise ConfigError(
                    f"{name} ({shown(getattr(self, name))}) does not fit: {reason[0].lower()}{reason[1:]}."
                ) from error

    def check_unknown_keys(self, extra: dict[str, Any]) -> None:
        """Raise ConfigError for the first key that is neither a field nor one of transformers' own."""
        own = _TRANSFORMERS_OWN | set(GenerationConfig().to_dict())
        for key in extra:
            if key not in own:
                known = [name for name in self.__dataclass_fields__ if not name.startswith("_")]
                raise ConfigError(f"unknown setting '{key}' for {self.model_type}. {did_you_mean(key, known)}")

    def check(self) -> None:
        """Raise ConfigError where settings do not fit each other; overridden by each family."""


@cache
def _field_types(kind: type[MemlmConfig]) -> dict[str, Any]:
    """Return checks of fields' types; @strict checks none where annotations are strings."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("memlm."):
            hints = inspect.get_annotations(base, eval_str=True)
            # other configurations check themselves
            own = [name for name in hints if "Config" not in str(hints[name]) and name in vars(base)]
            found |= {
                name: TypeAdapter(hints[name], config=ConfigDict(strict=True))
                for name in own
                if get_origin(hints[name]) is not ClassVar
            }
    return found


def require_positive(config: PreTrainedConfig, *names: str) -> None:
    """Raise ConfigError for the first of these settings that is below 1 or above 2**20; None is neither."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} ({shown(value)}) must be at least 1.")
        if value is not None and value > 2**20:
            raise ConfigError(f"{name} ({shown(value)}) must be at most {2**20}.")


def require_known(config: PreTrainedConfig, **kinds: Iterable[str]) -> None:
    """Raise ConfigError for the first of these settings whose value is not among its kinds."""
    for name, known in kinds.items():
        value = getattr(config, name)
        if value not in known:
            listed = [f"'{kind}'" for kind in known]
            choices = f"{', '.join(listed[:-1])} or {listed[-1]}"
            hint = did_you_mean(str(value), known)
            raise ConfigError(f"{name} ({value!r}) must be {choices}.{f' {hint}' if hint.endswith('?') else ''}")


def require_divisible(config: PreTrainedConfig, dividend: str, divisor: str) -> None:
    """Raise ConfigError where one setting is no multiple of another."""
    whole, part = getattr(config, dividend), getattr(config, divisor)
    if whole % part:
        raise ConfigError(f"{dividend} ({whole}) must be divisible by {divisor} ({part}).")


def is_model_file(file: Path) -> bool:
    """Return whether a file is one of those that hold a model's settings and weights."""
    return file.name in ("config.json", "generation_config.json") or file.name.startswith("model")


TRAINABLE_PARTS = ("all", "decoder", "readout")


class MemlmModel(PreTrainedModel):
    """Base class of models over mixer or Llama layers, without a base model inside."""

    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["MixerBlock", "LlamaDecoderLayer"]  # noqa: RUF012  (transformers reads a plain class attribute)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Save the model as transformers does, with the checksums of its files (`memlm.durable`)."""
        with disk_errors():
            super().save_pretrained(save_directory, *args, **kwargs)
        seal_folder(Path(save_directory), [file.name for file in Path(save_directory).iterdir() if is_model_file(file)])

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module)

    def set_trainable(self, part: str = "all", *, freeze_encoder: bool = False) -> None:
        """Enable gradients for a part of the model and disable them for the rest.

        Args:
            part: `all`; models with more parts name them.
            freeze_encoder: keep the encoder as it is, where the model has one of its own.

        Raises:
            ConfigError: an unknown part.
        """
        if part not in TRAINABLE_PARTS:
            raise ConfigError(f"unknown part '{part}'. {did_you_mean(part, TRAINABLE_PARTS)}")
        self.requires_grad_(True)


def init_weights(module: nn.Module) -> None:
    """Initialise a layer: torch's own starts for linear and norm layers (the paper's choice), normal embeddings.

    Layers with other parameters initialise them in a method `init_own_weights`.
    """
    if hasattr(module, "init_own_weights"):
        cast(Any, module).init_own_weights()
    elif isinstance(module, nn.Linear):
        init.kaiming_uniform_(module.weight, a=5**0.5)
        if module.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        init.normal_(module.weight, std=1.0)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)


class DecoderInside(MemlmModel):
    """Base class of models whose token table and output layer are those of an inner decoder."""

    decoder: PreTrainedModel

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the decoder's token table."""
        return cast(nn.Embedding, self.decoder.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder's output layer."""
        return cast(nn.Module, self.decoder.get_output_embeddings())
