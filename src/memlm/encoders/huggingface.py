"""Any transformers model as an encoder (the pooled hidden states of one layer), and `open_encoder`."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from memlm.data import eos_id, load_tokenizer
from memlm.encoders.interface import MemoryEncoder, TextVectors, model_fingerprint
from memlm.errors import EncoderError, did_you_mean
from memlm.models import MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import RUN_MODELS, load_model
from memlm.models.runtime import no_shard_bars, wants_bf16

Hidden = Float[Tensor, "texts tokens width"]
Mask = Int[Tensor, "texts tokens"]
Pooled = Float[Tensor, "texts width"]


def _token(hidden: Hidden, mask: Mask, *, from_end: int) -> Pooled:
    """Return the state of the token at `from_end` from each text's end, or of its first; padding may be on any side."""
    positions = mask.long().cumsum(1)
    chosen = (positions[:, -1:] - from_end + 1).clamp(min=1)
    column = ((positions == chosen) & mask.bool()).long().argmax(1)
    return hidden[torch.arange(len(hidden)), column]


def _mean(hidden: Hidden, mask: Mask) -> Pooled:
    kept = mask.bool()[..., None]
    return hidden.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1)


def _first(hidden: Hidden, mask: Mask) -> Pooled:
    return hidden[torch.arange(len(hidden)), mask.long().argmax(1)]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": partial(_token, from_end=1),
    "penultimate": partial(_token, from_end=2),
    "mean": _mean,
    "cls": _first,
}
"""Functions from hidden states (texts, tokens, width) and a mask (texts, tokens) to one state of each text: of the last
token, the last but one (as in arXiv 2602.13466), the mean of all, and of the first token."""
_TEXTS = 64
"""Texts that are encoded at once."""
_LARGE = 20_000_000
"""Number of parameters from which bf16 is faster than fp32."""
_SENTENCE_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class ReadingSettings:
    """Settings that turn hidden states into a vector.

    Attributes:
        pooling: a key of POOLINGS.
        layer: the layer whose hidden states are pooled, 0 for the embeddings; None for the model's output.
        normalize: scale each vector to length one, as some sentence embedders do.
    """

    pooling: str
    layer: int | None = None
    normalize: bool = False


class HuggingFaceEncoder:
    """A transformers model whose hidden states are pooled to one vector per text.

    The settings are those of `open_encoder` and `ReadingSettings`; `name` is the name in tables.

    Raises:
        EncoderError: the model has no such layer, or the pooling does not fit it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        pooling: str | None = None,
        layer: int | None = None,
        normalize: bool = False,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = ReadingSettings(_pooling(model, pooling, name), _layer(model, layer, name), normalize)
        self.name = name
        self.width = int(model.config.hidden_size)
        self.fingerprint = model_fingerprint(model, tokenizer, self.settings, self._bf16())

    def _bf16(self) -> bool:
        return self.model.num_parameters() >= _LARGE and wants_bf16("auto")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Return one vector per text, (texts, width); a text with more tokens than the model has positions is cut."""
        parts = [self._vectors(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)]
        return torch.cat(parts) if parts else torch.empty(0, self.width)

    def _vectors(self, texts: Sequence[str]) -> TextVectors:
        longest = int(getattr(self.model.config, "max_position_embeddings", 0) or 0)
        batch = self.tokenizer(
            list(texts),
            padding=True,
            truncation=longest > 0,
            max_length=longest or None,
            return_tensors="pt",
            verbose=False,
            split_special_tokens=True,
        )
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if not ids.shape[1]:  # empty texts are read as an end-of-text token
            ids, mask = torch.full((len(ids), 1), eos_id(self.tokenizer)), torch.ones(len(ids), 1).long()
        # an added padding token may lie beyond the embedding table; masked positions are not read
        vocab_size = int(cast(Any, self.model.get_input_embeddings()).num_embeddings)
        ids = ids.masked_fill((mask == 0) | (ids >= vocab_size), 0)
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16()):
            output = cast(Any, self.model)(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                output_hidden_states=self.settings.layer is not None,
            )
        layer = self.settings.layer
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        vectors = POOLINGS[self.settings.pooling](hidden.float(), mask.to(device))
        return (torch.nn.functional.normalize(vectors, dim=-1) if self.settings.normalize else vectors).cpu()

    def untrained(self, seed: int) -> HuggingFaceEncoder:
        """Return an encoder of the same architecture with untrained weights."""
        config = copy.deepcopy(self.model.config)
        vars(config).pop("quantization_config", None)
        torch.manual_seed(seed)
        untrained = type(self.model)(config)
        name = f"{self.name} (untrained)"
        return HuggingFaceEncoder(untrained.float(), self.tokenizer, name=name, **asdict(self.settings))


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
            raise EncoderError(f"'{path_or_id}' has a bottleneck of its own; leave out --pooling and --layer.")
        model, tokenizer = load_model(folder, TextAutoencoder, MemoryModelForCausalLM)
        encoder = encoder_of(model) if isinstance(model, TextAutoencoder) else model.encoder
        return MemoryEncoder(encoder, tokenizer, name=folder.name)
    if gguf_file is not None and not (folder / gguf_file).is_file() and folder.is_dir():
        raise EncoderError(f"no '{gguf_file}' in '{path_or_id}'; give the name of a GGUF file in that folder.")
    if gguf_file is not None and importlib.util.find_spec("gguf") is None:
        raise EncoderError(f"reading '{gguf_file}' needs the package gguf; pip install 'memlm[gguf]'.")
    return _load(path_or_id, gguf_file=gguf_file, pooling=pooling, layer=layer)


def _is_run(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] in RUN_MODELS
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / "run.json").is_file()


def _load(path_or_id: str, *, gguf_file: str | None, pooling: str | None, layer: int | None) -> HuggingFaceEncoder:
    """Load a transformers model in fp32 and its tokenizer."""
    own = _sentence_settings(Path(path_or_id))
    tokenizer = load_tokenizer(path_or_id, gguf_file=gguf_file)
    extra = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with no_shard_bars():
            model = AutoModel.from_pretrained(path_or_id, dtype=torch.float32, **extra)
    except Exception as error:  # the Hub, safetensors, GGUF and transformers raise different errors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        message = f"cannot load an encoder from '{path_or_id}' ({reason}); give a folder or Hub id of a model."
        raise EncoderError(message) from error
    normalize = own is not None and own.normalize and pooling is None
    pooling = pooling or (own.pooling if own else None)
    name = Path(path_or_id).name
    return HuggingFaceEncoder(model, tokenizer, name=name, pooling=pooling, layer=layer, normalize=normalize)


def _sentence_settings(folder: Path) -> ReadingSettings | None:
    """Return the pooling that a sentence-transformers folder declares, or None."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    found = _read_list(path, lambda modes: [name for key, name in _SENTENCE_POOLINGS.items() if modes.get(key)])
    if len(found) != 1:
        raise EncoderError(f"'{path}' declares {len(found)} known poolings, not one; give --pooling.")
    modules = folder / "modules.json"
    # packages and uploads may lose the empty folder of a Normalize module, so modules.json decides
    if modules.is_file():
        kinds = _read_list(modules, lambda listed: [str(module["type"]).rsplit(".", 1)[-1] for module in listed])
        return ReadingSettings(found[0], None, normalize="Normalize" in kinds)
    return ReadingSettings(found[0], None, normalize=any(folder.glob("*_Normalize")))


def _read_list(path: Path, select: Callable[[Any], list[str]]) -> list[str]:
    """Return what a selection finds in a JSON file."""
    try:
        return select(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise EncoderError(f"cannot read '{path}' ({error}); restore it or give --pooling.") from error


def is_causal(model: PreTrainedModel) -> bool:
    """Return True if each position of the model sees only earlier ones."""
    kind = type(model.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _pooling(model: PreTrainedModel, pooling: str | None, name: str) -> str:
    if pooling is None:
        return "penultimate" if is_causal(model) else "mean"
    if pooling not in POOLINGS:
        raise EncoderError(f"unknown pooling '{pooling}'. {did_you_mean(pooling, POOLINGS)}")
    if pooling == "cls" and is_causal(model):
        reason = f"{name} is a causal model, whose first token sees no other, so 'cls' holds nothing"
        raise EncoderError(f"{reason}; use 'penultimate', 'last' or 'mean'.")
    return pooling


def _layer(model: PreTrainedModel, layer: int | None, name: str) -> int | None:
    layers = int(model.config.num_hidden_layers)
    if layer is not None and not -layers - 1 <= layer <= layers:
        raise EncoderError(f"{name} has no layer {layer}; give one from 0 (embeddings) to {layers}.")
    return None if layer is None else layer % (layers + 1)
