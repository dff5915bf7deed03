"""Model configurations as settings of a run: what a user sets, what the data fills in, and the help texts.

A configuration class is the only declaration of its fields. Fields in its `from_data` (sizes of the vocabulary, ids,
positions, frozen parts) are no settings: `complete` fills them in, with placeholders until the data is known.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from memlm.errors import ConfigError, did_you_mean
from memlm.models import (
    ChunkEncoderConfig,
    MemoryModelConfig,
    MixerConfig,
    RecurrentMemoryConfig,
    SlotWriterConfig,
    TextAutoencoderConfig,
)
from memlm.models.memory.adapter import LoraSettings
from memlm.models.memory.slots import memory_blocks_needed

ModelConfig = TextAutoencoderConfig | MemoryModelConfig | RecurrentMemoryConfig | SlotWriterConfig
"""Configurations of the models that runs train."""
_FOREIGN = frozenset(
    {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings", "use_cache"}
)
"""Fields of other libraries' decoders that the data fills in."""
_PARTS = {"encoder": ChunkEncoderConfig.model_type, "decoder": MixerConfig.model_type}
"""Kind of each part that settings do not name."""
_ROTARY_POSITIONS = 2**15
"""Positions of decoders that are not mixers; relative positions let them read more chunks than in training."""


@dataclass(frozen=True)
class TokenIds:
    """Sizes and ids of a run's tokenizer; the defaults stand in until it is known."""

    vocab_size: int = 1024
    pad_token_id: int = 0
    eos_token_id: int = 1


def settable(kind: type[PreTrainedConfig]) -> list[str]:
    """Return the names of a configuration's settings, without the fields that the data fills in."""
    hidden = {field.name for field in fields(PreTrainedConfig)} | getattr(kind, "from_data", _FOREIGN)
    return [field.name for field in fields(kind) if field.name not in hidden]


def settings_of(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the settings of a configuration as nested plain values, `model_type` first."""
    kind = type(config)
    values = {name: getattr(config, name) for name in settable(kind)}
    if not hasattr(kind, "from_data"):
        values = _needed(kind, values)
    plain = {name: settings_of(v) if isinstance(v, PreTrainedConfig) else v for name, v in values.items()}
    return {"model_type": config.model_type, **plain}


def _needed(kind: type[PreTrainedConfig], values: dict[str, Any]) -> dict[str, Any]:
    """Leave out values that the class derives from the others, so that changes to those are not contradicted."""
    for name in list(values):
        rest = {other: value for other, value in values.items() if other != name}
        try:
            derived = getattr(kind(**rest), name)
        except (StrictDataclassError, ValueError):  # its default does not fit the other values
            continue
        if derived == values[name]:
            values = rest
    return values


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return nested values with changes over them.

    A mapping that changes its `model_type` keeps the values of settings that both types have.
    """
    kind = changes.get("model_type", base.get("model_type"))
    if kind != base.get("model_type") and kind in CONFIG_MAPPING:
        shared = settable(CONFIG_MAPPING[str(kind)])
        base = {name: value for name, value in base.items() if name in shared}
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        out[key] = merged(cast("dict[str, Any]", old), cast("dict[str, Any]", value)) if both else value
    return out


def complete(
    settings: Mapping[str, Any],
    tokens: TokenIds | None = None,
    *,
    encoder: ChunkEncoderConfig | None = None,
    **filled: Any,
) -> ModelConfig:
    """Return a model's configuration from its settings and from what the data fills in.

    Args:
        settings: nested values by name; `model_type` names the model, the text autoencoder by default.
        tokens: sizes and ids of the tokenizer; placeholders where None.
        encoder: configuration of a trained encoder, in place of the settings.
        filled: more fields that are no settings.

    Raises:
        ConfigError: an unknown model or setting, or values that do not fit each other.
    """
    tokens = tokens or TokenIds()
    values = dict(settings)
    kind = _class_of(str(values.pop("model_type", TextAutoencoderConfig.model_type)), MODEL_CONFIGS)
    _check_names(kind, values, "model")
    if kind in (TextAutoencoderConfig, SlotWriterConfig):
        return cast(ModelConfig, _made(kind, {**values, **vars(tokens), **filled}, "model"))
    parts: dict[str, Any] = {"pad_token_id": tokens.pad_token_id, "eos_token_id": tokens.eos_token_id}
    if kind is MemoryModelConfig:
        # one more id, which stands for a slot in prompts
        parts |= {"memory_token_id": tokens.vocab_size, "decoder": _decoder(values, tokens, tokens.vocab_size + 1)}
        parts["encoder"] = _encoder(values, tokens) if encoder is None else encoder
    else:
        parts["decoder"] = _decoder(values, tokens, tokens.vocab_size)
    config = cast(MemoryModelConfig | RecurrentMemoryConfig, _made(kind, {**values, **parts, **filled}, "model"))
    _set_positions(config)
    return config


MODEL_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    kind.model_type: kind
    for kind in (TextAutoencoderConfig, MemoryModelConfig, RecurrentMemoryConfig, SlotWriterConfig)
}
"""Configurations of the models that runs train, by model_type."""


def _encoder(values: dict[str, Any], tokens: TokenIds) -> PreTrainedConfig:
    length = values.get("chunk_length")
    if not isinstance(length, int) or length < 1:  # the model's own check names a wrong one
        length = MemoryModelConfig.chunk_length
    own = {"vocab_size": tokens.vocab_size, "pad_token_id": tokens.pad_token_id, "chunk_length": length}
    return _part("encoder", values, own)


def _decoder(values: dict[str, Any], tokens: TokenIds, vocab_size: int) -> PreTrainedConfig:
    match values.get("decoder"):
        case {"hidden_size": int(width), "num_attention_heads": int(heads)} if heads > 0 and width % (2 * heads):
            raise ConfigError(
                f"model.decoder.hidden_size ({width}) must be divisible by twice num_attention_heads ({heads}), "
                "since rotary positions turn pairs of numbers."
            )
        case _:
            ids = {"pad_token_id": tokens.pad_token_id, "bos_token_id": None, "eos_token_id": None}
            sizes = {"vocab_size": vocab_size, "max_position_embeddings": _ROTARY_POSITIONS}
            return _part("decoder", values, {**sizes, **ids})


def _part(name: str, values: dict[str, Any], filled: dict[str, Any]) -> PreTrainedConfig:
    given = values.get(name) or {}
    if not isinstance(given, dict):
        raise ConfigError(f"model.{name} ({given!r}) must hold settings by name.")
    own = cast("dict[str, Any]", dict(given))
    choices = CONFIG_MAPPING if name == "decoder" else {_PARTS[name]: ChunkEncoderConfig}
    kind = _class_of(str(own.pop("model_type", _PARTS[name])), choices)
    _check_names(kind, own, f"model.{name}")
    return _made(kind, {**own, **filled}, f"model.{name}")


def _set_positions(config: MemoryModelConfig | RecurrentMemoryConfig) -> None:
    """Set the positions of the decoder; a mixer's matrices are as large as its longest input."""
    if isinstance(config, RecurrentMemoryConfig):
        inputs = config.inputs
    else:
        blocks = memory_blocks_needed(config.layout, chunks=config.num_chunks, trained=config.num_chunks)
        slots = blocks * config.slots_per_chunk if config.injection == "token" else 0
        inputs = slots + config.chunk_length
    decoder = cast(Any, config.decoder_config)
    mixes = decoder.model_type == MixerConfig.model_type
    decoder.max_position_embeddings = inputs if mixes else max(_ROTARY_POSITIONS, inputs)


def _class_of(model_type: str, known: Any) -> type[PreTrainedConfig]:
    if model_type not in known:
        raise ConfigError(f"unknown model_type '{model_type}'. {did_you_mean(model_type, [*known])}")
    return known[model_type]


def _check_names(kind: type[PreTrainedConfig], values: dict[str, Any], where: str) -> None:
    known = settable(kind)
    for name in values:
        if name in getattr(kind, "from_data", _FOREIGN):
            raise ConfigError(f"{where}.{name} is no setting: it follows from the data; leave it out.")
        if name not in known:
            raise ConfigError(f"unknown setting '{where}.{name}'. {did_you_mean(name, known)}")


def _made(kind: type[PreTrainedConfig], values: dict[str, Any], where: str) -> PreTrainedConfig:
    try:
        return kind(**values)
    except StrictDataclassError as error:
        raise ConfigError(f"{where} does not fit: {' '.join(str(error).split()).rstrip('.')}.") from error
    except ConfigError as error:
        named = str(error).split(" ", 1)[0] in kind.__dataclass_fields__
        raise ConfigError(f"{where}.{error}" if named else str(error)) from error


def model_settings_help(kind: type[PreTrainedConfig]) -> dict[str, tuple[Any, str]]:
    """Return the dotted name of every setting of a model with its default and help text.

    A decoder has the settings of a mixer or of Llama; other decoders' are not listed.
    """
    found = _help_of(kind, "model.")
    if "encoder" in settable(kind):
        found |= _help_of(ChunkEncoderConfig, "model.encoder.")
    if "lora" in settable(kind):
        found |= _help_of(LoraSettings, "model.lora.")
    if "decoder" in settable(kind):
        found |= _help_of(LlamaConfig, "model.decoder.") | _help_of(MixerConfig, "model.decoder.")
    return {name: value for name, value in found.items() if name not in ("model.encoder", "model.decoder")}


def _help_of(kind: type[Any], prefix: str) -> dict[str, tuple[Any, str]]:
    names = settable(kind) if issubclass(kind, PreTrainedConfig) else [field.name for field in fields(kind)]
    defaults = {field.name: field.default for field in fields(kind) if field.default is not MISSING}
    texts = attribute_docstrings(kind)
    other = f"See transformers.{kind.__name__}."
    listed = {f"{prefix}{name}": (defaults.get(name), texts.get(name, other)) for name in names}
    own = {f"{prefix}model_type": (kind.model_type, "Kind of model.")} if issubclass(kind, PreTrainedConfig) else {}
    return own | listed


def attribute_docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the docstring below each attribute of a class and of its bases, read from their source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("memlm."):
            body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
            for field, text in pairwise(body):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    found[cast(ast.Name, field.target).id] = " ".join(ast.literal_eval(text.value).split())
    return found
