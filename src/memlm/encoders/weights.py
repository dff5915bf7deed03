"""The files of a model: its settings in JSON, and weights in safetensors that are all there, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING

from memlm.errors import EncoderError
from memlm.files import reason_of
from memlm.models.runtime import SAFE_WEIGHTS, check_weight_files, no_shard_bars, unsafe_weights
from memlm.switches import OWN_CODE


def inside(path: Path, name: str) -> str:
    """Return the name of a file or folder that a file declares, which must lie beside or below that file.

    Raises:
        EncoderError: it does not.
    """
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts:
        raise EncoderError(f"'{path}' names a place outside of its folder ('{name}'); do not use this model.")
    return name


def read_settings(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no file.

    Raises:
        EncoderError: the file is not a JSON object.
    """
    return _read(path, dict) if path.is_file() else {}


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Return the objects in a JSON list.

    Raises:
        EncoderError: the file is not a JSON list of objects.
    """
    entries = _read(path, list)
    if not all(isinstance(entry, dict) for entry in entries):
        raise EncoderError(f"cannot read '{path}' (its entries are no objects); restore it, or give --pooling.")
    return entries


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"cannot read '{path}' ({reason_of(error)}); restore it, or give --pooling.") from error
    if not isinstance(value, kind):
        found = f"it holds a {type(value).__name__}, not a {kind.__name__}"
        raise EncoderError(f"cannot read '{path}' ({found}); restore it, or give --pooling.")
    return value


def load_weights(module: nn.Module, folder: Path) -> nn.Module:
    """Load the weights of a module, each of which must be there as floating-point numbers of its shape.

    Raises:
        EncoderError: weights are missing, of another shape or type, or not declared.
    """
    files = weight_files(folder)
    check_dtypes(module, files)
    try:
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"cannot read '{files[0]}' ({reason_of(error)}); it is damaged.") from error
    own = module.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        if name not in weights or name not in own:
            where = "missing" if name not in weights else "there, but not declared"
            raise EncoderError(f"the weights '{name}' in '{folder}' are {where}; restore the model's files.")
        if weights[name].shape != own[name].shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
            raise EncoderError(
                f"the weights '{name}' in '{folder}' have the shape {shapes}; restore the model's files."
            )
    module.load_state_dict(weights)
    return module


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a module or a model.

    Raises:
        EncoderError: there are none, or only weights of another format, which may run code.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return [single]
    if index.is_file():
        names = read_settings(index).get("weight_map")
        found = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
        return [folder / inside(index, name) for name in found]
    others = unsafe_weights(folder)
    found = f"holds its weights in {others[0]}" if others else "holds no model.safetensors"
    raise EncoderError(f"'{folder}' {found}; {SAFE_WEIGHTS}")


def check_complete(module: nn.Module, folder: Path) -> None:
    """Check that another library found the weights of a module in its folder, as floating-point numbers.

    Raises:
        EncoderError: it did not, and weights are random or of unknown scale.
    """
    if not list(module.parameters()):
        return
    files = weight_files(folder)
    check_dtypes(module, files)
    stored = {tail for file in files for name in _stored(file) for tail in _tails(name)}
    for name, _ in module.named_parameters():
        if not stored & _tails(name):
            raise EncoderError(f"'{folder}' lacks the weights '{name}', which would be random; give the whole model.")


def _tails(name: str) -> set[str]:
    """Return a name without up to three of the modules before it, which differ between libraries."""
    return {name, *(name.split(".", i)[-1] for i in range(1, 4))}


def _stored(file: Path) -> dict[str, str]:
    """Return the type of each tensor in a safetensors file."""
    try:
        with safe_open(file, "pt") as stored:
            return {name: str(stored.get_slice(name).get_dtype()) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"cannot read '{file}' ({reason_of(error)}); it is damaged or missing.") from error


def check_dtypes(module: nn.Module, files: list[Path]) -> None:
    """Check that weights are stored as floating-point numbers.

    Raises:
        EncoderError: weights are whole numbers, whose scale is not known, or a file is damaged.
    """
    own = {name for name, _ in module.named_parameters()}
    for file in files:
        for name, kind in sorted(_stored(file).items()):
            if kind not in _FLOATS and own & _tails(name):
                raise EncoderError(
                    f"'{file}' stores the weights '{name}' as {kind}, numbers of unknown scale; "
                    "give the model in fp32, fp16 or bf16."
                )


_FLOATS = ("F64", "F32", "F16", "BF16")


_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_NOT_READ = ("onnx/*", "openvino/*", "coreml/*", "*.onnx*", ".git/*")


def local_folder(path_or_id: str, *, trust_remote_code: bool = False, gguf_file: str | None = None) -> Path:
    """Return the folder of a model; what a model of the Hub needs is downloaded, or found in the Hub's cache.

    Raises:
        EncoderError: there is no such folder, and no such model on the Hub.
    """
    if Path(path_or_id).exists():
        return Path(path_or_id)
    wanted = [*_SMALL, *(["*.py"] if trust_remote_code else []), *([gguf_file] if gguf_file else [])]
    try:
        folder = Path(snapshot_download(path_or_id, allow_patterns=wanted, ignore_patterns=list(_NOT_READ)))
        listed = read_entries(folder / "modules.json") if (folder / "modules.json").is_file() else []
        for place in [] if gguf_file else sorted({"", *(str(entry.get("path") or "") for entry in listed)}):
            index = read_settings(folder / place / "model.safetensors.index.json").get("weight_map") or {}
            files = sorted({str(name) for name in index.values()}) or ["model.safetensors"]
            own = [str(PurePosixPath(place, name)) for name in files]
            snapshot_download(path_or_id, allow_patterns=own)
    except Exception as error:  # the Hub's client raises errors of many libraries
        if isinstance(error, EncoderError):
            raise
        raise cannot_load(path_or_id, error) from error
    return folder


def cannot_load(path_or_id: str, error: Exception) -> EncoderError:
    """Return the error of a model that another library could not load."""
    return EncoderError(
        f"cannot load an encoder from '{path_or_id}' ({reason_of(error)}); give a folder or Hub id of a model."
    )


def load_transformer(
    folder: Path,
    *,
    options: dict[str, Any] | None = None,
    declared: bool = False,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
) -> PreTrainedModel:
    """Load a transformer in fp32, the encoder alone of an encoder-decoder.

    Args:
        folder: the model.
        options: attributes of the configuration.
        declared: read it as sentence-transformers does, to which some encoder-decoders are models as a whole.
        trust_remote_code: run Python code that comes with the model.
        gguf_file: a GGUF file in the folder, which is read instead.

    Raises:
        EncoderError: there is no model, it needs code of its own, or weights are missing or no floating-point numbers.
    """
    check_code(folder, trust_remote_code=trust_remote_code)
    files = [] if gguf_file else weight_files(folder)
    given: dict[str, Any] = {"trust_remote_code": trust_remote_code, **({"gguf_file": gguf_file} if gguf_file else {})}
    try:
        config = AutoConfig.from_pretrained(folder, **given)
        for name, value in (options or {}).items():
            if not hasattr(config, name):
                raise EncoderError(f"'{folder}' declares {name} ({value!r}), which its transformer does not know.")
            setattr(config, name, value)
        own = _encoder_class(config)
        with no_shard_bars():
            model, info = own.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **given
            )
    except EncoderError:
        raise
    except Exception as error:  # the Hub, safetensors, GGUF and transformers raise different errors
        raise cannot_load(str(folder), error) from error
    whole = own is not AutoModel or not config.is_encoder_decoder or (declared and config.model_type not in _BY_ENCODER)
    encoder = model if whole else model.get_encoder()
    _check_missing(folder, model, encoder, info["missing_keys"])
    if not getattr(config, "quantization_config", None):
        check_dtypes(encoder, files)
    return encoder


_BY_ENCODER = (
    *("longt5", "switch_transformers", "prophetnet", "blenderbot", "blenderbot-small"),
    *("m2m_100", "pegasus", "pegasus_x", "marian"),
)
"""Encoder-decoders of which sentence-transformers 6 reads the encoder, beside T5 and its kin. Of others, as BART, it
reads the decoder's states."""


def check_code(folder: Path, *, trust_remote_code: bool) -> None:
    """Check that a model needs no code of its own, or that the caller trusts it.

    Raises:
        EncoderError: it does, and the caller does not.
    """
    settings = read_settings(folder / "config.json")
    if settings.get("auto_map") and settings.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise EncoderError(f"'{folder}' {OWN_CODE}")
    if (folder / "adapter_config.json").is_file():
        check_weight_files(folder, EncoderError)
    named = str(settings.get("transformers_weights") or "model.safetensors")
    if not named.endswith((".safetensors", ".safetensors.index.json")):
        raise EncoderError(f"'{folder}' holds its weights in {named}, a format that can run code; convert them.")


def _encoder_class(config: PreTrainedConfig) -> Any:
    """Return the class that loads a model, of T5 and its kin that of the encoder."""
    known: Any = MODEL_FOR_TEXT_ENCODING_MAPPING.get(type(config), None)
    return known if known is not None and known.__name__.endswith("EncoderModel") else AutoModel


def _check_missing(folder: Path, model: nn.Module, encoder: nn.Module, missing: set[str]) -> None:
    """Check that no weights of the encoder are missing, which transformers would fill at random.

    A pooler is no part of an encoder's hidden states; one without weights is removed.
    """
    read = {id(weights) for weights in encoder.parameters()}
    named = dict(model.named_parameters(remove_duplicate=False))
    lost = sorted(name for name in missing if name in named and id(named[name]) in read)
    if lost and all(name.startswith("pooler.") for name in lost):
        cast(Any, encoder).pooler = None
        return
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise EncoderError(
            f"'{folder}' lacks the weights '{lost[0]}'{more}, which would be random numbers; give the whole model."
        )
