"""Declarations of sentence embedders: what their makers say beside the weights, in files of sentence-transformers.

    modules.json                        the modules in order, each in a folder of its own
    sentence_bert_config.json           maximum length, lower case and options of the transformer
    config_sentence_transformers.json   prompts by name, the default prompt, and the length of vectors

What is declared is read completely or refused: a setting that is left out changes every vector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from memlm.encoders.modules import POOLINGS, VECTOR, Dense, LayerNorm, Normalize, Pooling, WeightedLayerPooling
from memlm.encoders.weights import inside, load_weights, read_entries, read_settings, weight_files
from memlm.errors import EncoderError, did_you_mean


class UnknownDeclarationError(EncoderError):
    """A module or a setting of sentence-transformers that this reading does not know, or code that it does not run."""

    needs_code = False


@dataclass(frozen=True)
class Declaration:
    """The declaration of a sentence embedder.

    Attributes:
        transformer: the folder of the transformer and its tokenizer.
        modules: what makes a vector of its hidden states, in order.
        prompts: texts that stand before a text, by name.
        default_prompt: the name of the prompt that is used where none is given.
        max_length: the greatest number of tokens, special ones included; None for that of the tokenizer.
        lower_case: texts are read in lower case.
        numbers: only so many leading numbers of a vector are kept; None for all.
        text_features: the vector is that of the model's `get_text_features`, as in CLIP.
        tokenizer: attributes of the tokenizer, such as `padding_side`.
        config: attributes of the transformer's configuration.
    """

    transformer: Path
    modules: tuple[nn.Module, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    default_prompt: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    numbers: int | None = None
    text_features: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_declaration(folder: Path, *, modules: bool = True) -> Declaration | None:
    """Return what a folder declares, or None if it is a plain model; without `modules`, what it declares before those.

    Raises:
        UnknownDeclarationError: a module or a setting that is not known.
        EncoderError: a file is damaged, or weights are missing.
    """
    listed = _modules_of(folder)
    if listed is None:
        return None
    (kind, path), *rest = listed or [("", "")]
    if kind not in ("Transformer", "CLIPModel"):
        raise _unknown_module(folder, kind)
    behind = [_module(folder, kind, path) for kind, path in rest if kind != "Dropout"] if modules else []
    return Declaration(
        folder / path,
        tuple(module.eval().requires_grad_(False) for module in behind),
        **_transformer_settings(folder / path, clip=kind == "CLIPModel"),
        **_vector_settings(folder),
    )


def _unknown_module(folder: Path, kind: str) -> UnknownDeclarationError:
    return UnknownDeclarationError(f"'{folder}' has a module '{kind}', which memlm does not know")


def _module(folder: Path, kind: str, path: str) -> nn.Module:
    if kind not in _MODULES:
        raise _unknown_module(folder, kind)
    return _MODULES[kind](folder / path)


def prompt_of(prompt: str | None, prompts: Mapping[str, str], default: str | None, name: str) -> str:
    """Return the text of a prompt that is given by its name or by itself, or that of the default prompt.

    Raises:
        EncoderError: a single word that is no prompt's name, where names are expected.
    """
    if prompt is None:
        return "" if default is None else prompts[default]
    if prompt in prompts:
        return prompts[prompt]
    if prompt.isidentifier() and (prompts or prompt in ("query", "document")):
        known = did_you_mean(prompt, prompts) if prompts else "It declares none."
        raise EncoderError(
            f"{name} declares no prompt '{prompt}'. {known} A text ends in a colon or a space, as in '{prompt}: '."
        )
    return prompt


def module_folders(folder: Path) -> list[Path]:
    """Return the folders of all modules in order, after a check that none holds weights that can run code.

    Raises:
        EncoderError: one does.
    """
    places = [folder / inside(folder, str(e.get("path") or "")) for e in read_entries(folder / "modules.json")]
    for place in places:
        if any(place.glob("*.bin")):
            weight_files(place)
    return places


def declared_files(places: list[Path]) -> str:
    """Return the settings in the folders of modules as one text."""
    files = sorted({file for place in places for file in place.glob("*.json") if not file.name.startswith("tokenizer")})
    return json.dumps([(file.name, file.read_text(encoding="utf-8", errors="replace")) for file in files])


_OWN = re.compile(r"sentence_transformers\.(?:[a-z_0-9]+\.)*([A-Za-z]+)")


def _modules_of(folder: Path) -> list[tuple[str, str]] | None:
    """Return the kind and the folder of each module, or None if there are none.

    Packages and uploads may lose modules.json; folders named as sentence-transformers names them stand for it then.
    """
    path = folder / "modules.json"
    if not path.is_file():
        found = sorted(entry.name for entry in folder.glob("[1-9]_*") if entry.is_dir())
        pooled = (folder / "1_Pooling" / "config.json").is_file()
        listed = [("Transformer", ""), *((name[2:], name) for name in found)] if pooled else None
    else:
        entries = read_entries(path)
        listed = [(_kind(folder, str(e.get("type"))), inside(path, str(e.get("path") or ""))) for e in entries]
    return listed


def _kind(folder: Path, reference: str) -> str:
    match = _OWN.fullmatch(reference)
    if match is None:
        error = UnknownDeclarationError(f"'{folder}' has a module '{reference}' with code of its own")
        error.needs_code = True
        raise error
    return match.group(1)


def _take(settings: dict[str, Any], path: Path, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    """Remove a setting and return it, or the default where it is absent or null.

    Raises:
        EncoderError: its value is of another kind.
    """
    value = settings.pop(name, None)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise EncoderError(f"'{path}' declares {name} as {str(value)[:60]!r}, which is no value for it; restore it.")
    return value


def _size(settings: dict[str, Any], path: Path, name: str) -> int | None:
    value = _take(settings, path, name, int, None)
    if value is not None and not 1 <= value <= 2**20:
        raise EncoderError(f"'{path}' declares {name} as {value}; it must be from 1 to {2**20}.")
    return value


def _needed_size(settings: dict[str, Any], path: Path, name: str) -> int:
    value = _size(settings, path, name)
    if value is None:
        raise EncoderError(f"'{path}' declares no {name}; restore it.")
    return value


def _check_rest(settings: Mapping[str, Any], path: Path, error: type[EncoderError] = EncoderError) -> None:
    """Check that nothing was declared beyond what was taken.

    Raises:
        error: something was.
    """
    for name, value in settings.items():
        raise error(f"'{path}' declares {name} ({str(value)[:60]}), which memlm does not know")


_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling before sentence-transformers 5.6, in the order of pooled states in the vector."""


def _pooling(folder: Path) -> Pooling:
    path = folder / "config.json"
    if not path.is_file():
        raise EncoderError(f"'{path}' is missing, which declares the pooling; restore it, or give --pooling.")
    settings = read_settings(path)
    old = [mode for key, mode in _OLD_POOLINGS.items() if _take(settings, path, key, bool, False)]
    given = _take(settings, path, "pooling_mode", (str, list), old or "mean")
    include_prompt = _take(settings, path, "include_prompt", bool, True)
    _needed_size(settings, path, "embedding_dimension" if "embedding_dimension" in settings else _OLD_WIDTH)
    _check_rest(settings, path)
    modes = [given] if isinstance(given, str) else given
    names = ["last" if mode == "lasttoken" else str(mode) for mode in modes]
    unknown = [name for name in names if name not in POOLINGS or name == "penultimate"]
    if unknown or not names:
        raise UnknownDeclarationError(
            f"'{path}' declares a pooling '{(unknown or [''])[0]}', which memlm does not know"
        )
    return Pooling(names, include_prompt=include_prompt)


_OLD_WIDTH = "word_embedding_dimension"


def _ends(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    return {
        "source": _take(settings, path, "module_input_name", str, VECTOR),
        "target": _take(settings, path, "module_output_name", str, None),
    }


def _normalize(folder: Path) -> Normalize:
    path = folder / "config.json"
    settings = read_settings(path)
    found = Normalize(**_ends(settings, path))
    _check_rest(settings, path)
    return found


def _activation(path: Path, name: str) -> nn.Module:
    """Return an activation of torch; a name from a file imports nothing."""
    kind: Any = getattr(nn, name.rpartition(".")[2], None)
    is_known = re.fullmatch(r"torch\.nn\.(modules\.[a-z]+\.)?[A-Za-z0-9]+", name) and isinstance(kind, type)
    try:
        if is_known and kind.__module__ in ("torch.nn.modules.activation", "torch.nn.modules.linear"):
            return kind()
    except TypeError:  # an activation with settings, which are not declared
        pass
    raise EncoderError(f"'{path}' declares an activation '{name[:80]}', which memlm does not know; give another model.")


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    settings = read_settings(path)
    found = Dense(
        _needed_size(settings, path, "in_features"),
        _needed_size(settings, path, "out_features"),
        bias=_take(settings, path, "bias", bool, True),
        activation=_activation(path, _take(settings, path, "activation_function", str, "torch.nn.Tanh")),
        residual=_take(settings, path, "use_residual", bool, False),
        **_ends(settings, path),
    )
    _check_rest(settings, path)
    return cast(Dense, load_weights(found, folder))


def _layer_norm(folder: Path) -> nn.Module:
    path = folder / "config.json"
    settings = read_settings(path)
    found = LayerNorm(_needed_size(settings, path, "dimension"))
    _check_rest(settings, path)
    return load_weights(found, folder)


def _weighted_layers(folder: Path) -> nn.Module:
    path = folder / "config.json"
    settings = read_settings(path)
    settings.pop("embedding_dimension", settings.pop(_OLD_WIDTH, None))
    layers, start = (_take(settings, path, n, int, d) for n, d in (("num_hidden_layers", 12), ("layer_start", 4)))
    _check_rest(settings, path)
    if not 0 <= start <= layers <= 1000:
        raise EncoderError(f"'{path}' declares layer_start {start} of {layers} layers; restore it.")
    return load_weights(WeightedLayerPooling(layers, layer_start=start), folder)


_MODULES: dict[str, Callable[[Path], nn.Module]] = {
    "Pooling": _pooling,
    "Normalize": _normalize,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "WeightedLayerPooling": _weighted_layers,
}


_IGNORED = ("unpad_inputs", "query_length", "document_length", "query_expansion", "tokenizer_class")
"""Settings without effect on the vector of a text that is encoded by itself."""
_ANY_PRECISION = ("torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "use_safetensors")
_FORWARD = {"method": "forward", "method_output_name": "last_hidden_state"}
_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")


def _transformer_settings(folder: Path, *, clip: bool) -> dict[str, Any]:
    """Return the settings of the transformer's part: lengths, lower case, and options of model and tokenizer."""
    paths = [folder / f"sentence_{name}_config.json" for name in _NAMES]
    path = next((path for path in paths if path.is_file()), paths[0])
    settings = read_settings(path)
    max_length, lower_case = (
        _size(settings, path, "max_seq_length"),
        _take(settings, path, "do_lower_case", bool, False),
    )
    options = {new: {**(settings.pop(old, None) or {}), **(settings.pop(new, None) or {})} for old, new in _OPTIONS}
    for given in options.values():
        given.pop("trust_remote_code", None)
    text_features = clip or _reads_features(settings, path)
    for name in _IGNORED:
        settings.pop(name, None)
    if settings.get("transformer_task") == "feature-extraction":
        settings.pop("transformer_task")
    if not settings.get("processing_kwargs", True):
        settings.pop("processing_kwargs")
    rest = {k: v for k, v in options["model_kwargs"].items() if k not in _ANY_PRECISION}
    _check_rest(settings | rest, path, UnknownDeclarationError)
    length = options["processor_kwargs"].pop("model_max_length", None)
    return {
        "max_length": length or max_length,
        "lower_case": lower_case,
        "text_features": text_features,
        "tokenizer": options["processor_kwargs"],
        "config": options["config_kwargs"],
    }


_OPTIONS = (("model_args", "model_kwargs"), ("tokenizer_args", "processor_kwargs"), ("config_args", "config_kwargs"))


def _reads_features(settings: dict[str, Any], path: Path) -> bool:
    """Return whether the vector is that of `get_text_features`; text that becomes chat messages is not known."""
    ways, output = settings.pop("modality_config", None), settings.pop("module_output_name", None)
    if ways is None:
        return False
    text = ways.get("text") if isinstance(ways, dict) and "message" not in ways else None
    if text == _FORWARD and output == "token_embeddings":
        return False
    if isinstance(text, dict) and text.get("method") == "get_text_features" and output == VECTOR:
        return True
    raise UnknownDeclarationError(f"'{path}' declares modality_config ({str(ways)[:60]}), which memlm does not know")


def _vector_settings(folder: Path) -> dict[str, Any]:
    """Return prompts and the length of vectors."""
    path = folder / "config_sentence_transformers.json"
    settings = read_settings(path)
    kind = _take(settings, path, "model_type", str, "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise EncoderError(f"'{folder}' is a {kind}, which gives no single vector of a text; give another model.")
    prompts = _take(settings, path, "prompts", dict, {})
    default = _take(settings, path, "default_prompt_name", str, None)
    if not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise EncoderError(f"'{path}' declares prompts that are no texts; restore it.")
    texts = {"query": "", "document": ""} if default in ("query", "document") else {}
    texts |= {str(name): text or "" for name, text in prompts.items()}
    if default is not None and default not in texts:
        raise EncoderError(f"'{path}' declares '{default}' as its default prompt, and no such prompt; restore it.")
    return {"prompts": texts, "default_prompt": default, "numbers": _size(settings, path, "truncate_dim")}
