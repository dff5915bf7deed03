"""Any transformers model as an encoder: one layer's hidden states, pooled."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from memlm.data import eos_id, load_tokenizer
from memlm.encoders.base import TextVectors, model_fingerprint
from memlm.errors import EncoderError, did_you_mean
from memlm.models.runtime import no_shard_bars, wants_bf16

Hidden = Float[Tensor, "texts tokens width"]
Mask = Int[Tensor, "texts tokens"]
Pooled = Float[Tensor, "texts width"]


def last(hidden: Hidden, mask: Mask) -> Pooled:
    """The state of each text's last token."""
    return _at(hidden, mask, 1)


def penultimate(hidden: Hidden, mask: Mask) -> Pooled:
    """The state of the last token but one, or of the only one (the paper's choice for causal models)."""
    return _at(hidden, mask, 2)


def mean(hidden: Hidden, mask: Mask) -> Pooled:
    """The mean over a text's tokens."""
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden.masked_fill(~mask.bool()[..., None], 0) * weights).sum(1) / weights.sum(1).clamp(min=1)


def cls(hidden: Hidden, mask: Mask) -> Pooled:
    """The state of the first token."""
    first = mask.long().argmax(1)
    return hidden[torch.arange(len(hidden)), first]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last,
    "penultimate": penultimate,
    "mean": mean,
    "cls": cls,
}


def _at(hidden: Tensor, mask: Tensor, from_end: int) -> Tensor:
    """The state of the token that stands so many from the end of the text, on whichever side the padding is."""
    places = mask.long().cumsum(1)
    total = places[:, -1:]
    wanted = (total - from_end + 1).clamp(min=1)
    column = ((places == wanted) & mask.bool()).long().argmax(1)
    return hidden[torch.arange(len(hidden)), column]


_TEXTS = 64
_LARGE = 20_000_000
"""Parameters from which bf16 saves more time than it costs."""
_OWN = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


@dataclass(frozen=True)
class ReadingSettings:
    """How hidden states become a vector.

    Attributes:
        pooling: a key of POOLINGS.
        layer: hidden states of this layer, 0 for the embeddings; None for the model's last, as it returns it.
        normalize: scale each vector to length one, as some sentence embedders do.
    """

    pooling: str
    layer: int | None = None
    normalize: bool = False


class HuggingFaceEncoder:
    """Hidden states of a transformers model, pooled.

    Raises:
        EncoderError: a layer or pooling that the model does not have.
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
        """One vector per text; a text beyond the model's positions is cut there."""
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
        if not ids.shape[1]:  # no token at all: give the end of text something to stand on
            ids, mask = torch.full((len(ids), 1), eos_id(self.tokenizer)), torch.ones(len(ids), 1).long()
        # the padding token may be ours, and beyond the model's table; what is masked is not read
        known = int(cast(Any, self.model.get_input_embeddings()).num_embeddings)
        ids = ids.masked_fill((mask == 0) | (ids >= known), 0)
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
        """The same architecture with fresh weights."""
        config = copy.deepcopy(self.model.config)
        if hasattr(config, "quantization_config"):
            delattr(config, "quantization_config")
        torch.manual_seed(seed)
        fresh = type(self.model)(config)
        return HuggingFaceEncoder(
            fresh.float(),
            self.tokenizer,
            name=f"{self.name} (untrained)",
            pooling=self.settings.pooling,
            layer=self.settings.layer,
            normalize=self.settings.normalize,
        )


def load_huggingface(
    path_or_id: str, *, gguf_file: str | None = None, pooling: str | None = None, layer: int | None = None
) -> HuggingFaceEncoder:
    """A model and its tokenizer from a folder or the Hub, weights in fp32.

    A sentence-transformers folder is read with its own pooling unless another is asked for.

    Raises:
        EncoderError: no model there, or a layer or pooling it does not have.
        TokenizerError: no tokenizer.
    """
    own = _sentence_settings(Path(path_or_id))
    tokenizer = load_tokenizer(path_or_id, gguf_file=gguf_file)
    try:
        with no_shard_bars():
            extra = {"gguf_file": gguf_file} if gguf_file else {}
            model = AutoModel.from_pretrained(path_or_id, dtype=torch.float32, **extra)
    except Exception as error:  # hub, safetensors, GGUF and transformers each raise their own kind
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise EncoderError(
            f"cannot load an encoder from '{path_or_id}' ({reason}); give a folder or Hub id of a transformers model."
        ) from error
    return HuggingFaceEncoder(
        model,
        tokenizer,
        name=Path(path_or_id).name,
        pooling=pooling or (own.pooling if own else None),
        layer=layer,
        normalize=own is not None and own.normalize and pooling is None,
    )


def _sentence_settings(folder: Path) -> ReadingSettings | None:
    """The pooling that a sentence-transformers folder declares."""
    declared = folder / "1_Pooling" / "config.json"
    if not declared.is_file():
        return None
    try:
        modes = json.loads(declared.read_text(encoding="utf-8"))
        found = [name for key, name in _OWN.items() if modes.get(key)]
    except (OSError, ValueError, AttributeError) as error:
        raise EncoderError(f"cannot read '{declared}' ({error}); restore it or give --pooling.") from error
    if len(found) != 1:
        raise EncoderError(f"'{declared}' asks for {len(found)} known poolings, not one; give --pooling.")
    return ReadingSettings(found[0], None, normalize=_normalizes(folder))


def _normalizes(folder: Path) -> bool:
    """As modules.json says: the module's own folder is empty, and packages and uploads lose empty folders."""
    path = folder / "modules.json"
    if not path.is_file():
        return any(folder.glob("*_Normalize"))
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        return any(str(module["type"]).rsplit(".", 1)[-1] == "Normalize" for module in modules)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"cannot read '{path}' ({error}); restore it or give --pooling.") from error


def is_causal(model: PreTrainedModel) -> bool:
    """Whether the model's positions see only earlier ones."""
    kind = type(model.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _pooling(model: PreTrainedModel, asked: str | None, name: str) -> str:
    if asked is None:
        return "penultimate" if is_causal(model) else "mean"
    if asked not in POOLINGS:
        raise EncoderError(f"unknown pooling '{asked}'. {did_you_mean(asked, POOLINGS)}")
    if asked == "cls" and is_causal(model):
        raise EncoderError(
            f"{name} is a causal model: its first token has seen nothing else, so 'cls' holds nothing; "
            "use 'last', 'penultimate' or 'mean'."
        )
    return asked


def _layer(model: PreTrainedModel, asked: int | None, name: str) -> int | None:
    layers = int(model.config.num_hidden_layers)
    if asked is not None and not -layers - 1 <= asked <= layers:
        raise EncoderError(f"{name} has no layer {asked}; give one from 0 (embeddings) to {layers}.")
    return None if asked is None else asked % (layers + 1)
