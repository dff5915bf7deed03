"""Any transformers model as an encoder: hidden states of one layer become one vector per text; and `open_encoder`."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from memlm.data import eos_id, load_tokenizer
from memlm.data.given import folder_of, list_of_texts
from memlm.encoders.declaration import Declaration, UnknownDeclarationError, prompt_of, read_declaration
from memlm.encoders.interface import MemoryEncoder, SentenceTransformersEncoder, TextVectors, model_fingerprint
from memlm.encoders.modules import (
    POOLINGS,
    VECTOR,
    Features,
    Normalize,
    Pooling,
    WeightedLayerPooling,
    untrained_modules,
)
from memlm.encoders.weights import load_transformer, local_folder
from memlm.errors import EncoderError, did_you_mean
from memlm.files import reason_of
from memlm.models import MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import RUN_MODELS, load_model
from memlm.models.runtime import wants_bf16
from memlm.switches import TRUST_REMOTE_CODE

_TEXTS = 64
"""Texts that are encoded at once."""
_LARGE = 100_000_000
"""Number of parameters from which bf16 is used; a model of 22 million is faster in fp32 (LOG.md)."""


@dataclass(frozen=True)
class ReadingSettings:
    """Settings that turn texts into vectors.

    Attributes:
        pooling: keys of POOLINGS, joined by "+"; "features" where the model makes a vector itself, as CLIP does.
        layer: the layer whose hidden states are pooled, 0 for the embeddings; None for the model's output.
        prompt: the text before every text.
        max_length: the greatest number of tokens; 0 for any.
        numbers: the number of leading numbers that are kept; None for all.
    """

    pooling: str
    layer: int | None = None
    prompt: str = ""
    max_length: int = 0
    numbers: int | None = None


class HuggingFaceEncoder:
    """A transformers model whose hidden states become one vector per text, as its makers declare it.

    Args:
        model: the transformer.
        tokenizer: its tokenizer, with tokens for padding and the end of a text.
        name: the name in tables.
        pooling: as in `open_encoder`; a pooling that is given stands for everything that is declared behind the model.
        layer: as in `open_encoder`.
        prompt: as in `open_encoder`.
        declared: what a sentence embedder declares.
        own_tokenizer: the tokenizer as its makers left it, which reads the texts; `tokenizer` by default.

    Raises:
        EncoderError: the model has no such layer or prompt, or what is declared does not fit it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        pooling: str | None = None,
        layer: int | None = None,
        prompt: str | None = None,
        declared: Declaration | None = None,
        own_tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.model, self.name = model.eval(), name
        self.tokenizer, self._reader = tokenizer, own_tokenizer or tokenizer
        self.declared, self._given, known = declared, prompt, declared or Declaration(Path())
        layer = _layer(model, layer, name)
        self.modules = nn.ModuleList(_modules(model, declared, pooling, layer, name))
        self.settings = ReadingSettings(
            "+".join(m for module in self.modules if isinstance(module, Pooling) for m in module.modes) or "features",
            layer,
            prompt_of(prompt, known.prompts, known.default_prompt, name),
            _max_length(_text_part(model), self._reader, declared),
            known.numbers if pooling is None else None,
        )
        self.width = self._checked_width()
        self.fingerprint = self._fingerprint()

    def _checked_width(self) -> int:
        try:
            return self.encode(["a"]).shape[1]
        except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
            raise EncoderError(
                f"{self.name} cannot be read as declared ({reason_of(error)}); try --pooling mean, or another model."
            ) from error

    def _fingerprint(self) -> str:
        parts = nn.ModuleDict({"model": self.model, "behind": self.modules})
        return model_fingerprint(parts, self._reader, self.settings, repr(self.modules))

    def _bf16(self) -> bool:
        return self.model.num_parameters() >= _LARGE and wants_bf16("auto")

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Return one vector per text, (texts, width); a text with more tokens than the model reads is cut."""
        return self._encode(texts, self.settings.prompt)

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> TextVectors:
        """Return the vectors of queries, with this prompt (a name or a text) or the declared one."""
        known = self.declared or Declaration(Path())
        declared = known.prompts.get("query", self.settings.prompt)
        return self._encode(texts, declared if prompt is None else prompt_of(prompt, known.prompts, None, self.name))

    def encode_document(self, texts: Sequence[str]) -> TextVectors:
        """Return the vectors of documents, with the given prompt or the declared one."""
        prompts = {} if self.declared is None or self._given is not None else self.declared.prompts
        names = [name for name in ("document", "passage", "corpus") if name in prompts]
        return self._encode(texts, prompts[names[0]] if names else self.settings.prompt)

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], prompt: str) -> TextVectors:
        given = list_of_texts(texts)
        parts = [self._vectors(given[i : i + _TEXTS], prompt) for i in range(0, len(given), _TEXTS)]
        return torch.cat(parts) if parts else torch.empty(0, self.width)

    def _vectors(self, texts: Sequence[str], prompt: str) -> TextVectors:
        features = self._states(self._tokens([prompt + text for text in texts]))
        if any(isinstance(module, Pooling) and not module.include_prompt for module in self.modules):
            features["prompt_length"] = self._prompt_length(prompt)
        for module in self.modules:
            features = module(features)
        return features[VECTOR][:, : self.settings.numbers].float().cpu()

    def _tokens(self, texts: list[str]) -> dict[str, Tensor]:
        limit = self.settings.max_length
        return dict(
            self._reader(
                texts,
                padding=True,
                truncation=limit > 0,
                max_length=limit or None,
                return_tensors="pt",
                return_attention_mask=True,
                verbose=False,
                # sentence-transformers reads words that look like special tokens as these
                split_special_tokens=self.declared is None,
            )
        )

    def _prompt_length(self, prompt: str) -> int:
        """Return the number of tokens before a text behind the prompt: the prompt's, and special ones at its start."""
        if not prompt:
            return 0
        ids = self._tokens([prompt])["input_ids"][0].tolist()
        return len(ids) - (ids[-1] in self._reader.all_special_ids)

    def _states(self, batch: dict[str, Tensor]) -> Features:
        """Return the features that the transformer gives."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if not ids.shape[1]:  # empty texts are read as an end-of-text token
            ids, mask = torch.full((len(ids), 1), eos_id(self.tokenizer)), torch.ones(len(ids), 1).long()
        part, device = _text_part(self.model), self.model.device
        # an added padding token may lie beyond the embedding table; masked positions are not read
        rows, pad = _vocabulary_rows(part), _text_config(self.model).pad_token_id
        known = pad if isinstance(pad, int) and 0 <= pad < rows else 0
        given = {"input_ids": ids.masked_fill(ids >= rows, known).to(device), "attention_mask": mask.to(device)}
        kinds = batch.get("token_type_ids")
        if kinds is not None and kinds.any():  # zeros are what a model assumes
            given["token_type_ids"] = kinds.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16()):
            return self._features(part, given)

    def _features(self, part: nn.Module, given: dict[str, Tensor]) -> Features:
        if self.settings.pooling == "features":
            found = cast(Any, self.model).get_text_features(**given)
            return {VECTOR: (found if isinstance(found, Tensor) else found.pooler_output).float()}
        layer = self.settings.layer
        layers = layer is not None or any(isinstance(module, WeightedLayerPooling) for module in self.modules)
        output = cast(Any, part)(**given, output_hidden_states=layers)
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        features: Features = {"token_embeddings": hidden.float(), "attention_mask": given["attention_mask"]}
        return features | ({"all_layer_embeddings": output.hidden_states} if layers else {})

    def untrained(self, seed: int) -> HuggingFaceEncoder:
        """Return an encoder of the same architecture and the same settings with untrained weights."""
        config = copy.deepcopy(self.model.config)
        vars(config).pop("quantization_config", None)
        torch.manual_seed(seed)
        twin = copy.copy(self)
        twin.model, twin.modules = type(self.model)(config).float().eval(), untrained_modules(self.modules).eval()
        twin.name = f"{self.name} (untrained)"
        twin.fingerprint = twin._fingerprint()
        return twin


def open_encoder(
    path_or_id: str,
    *,
    gguf_file: str | None = None,
    pooling: str | None = None,
    layer: int | None = None,
    prompt: str | None = None,
    trust_remote_code: bool = False,
) -> MemoryEncoder | HuggingFaceEncoder | SentenceTransformersEncoder:
    """Open the encoder of a run, or any model of transformers or sentence-transformers as an encoder.

    What files of sentence-transformers declare is read completely: modules, prompts, maximum length and lower case.
    What memlm does not know of it is read by sentence-transformers where that is installed, and else refused.

    Args:
        path_or_id: a run folder, a model folder, or a Hub id.
        gguf_file: the name of a GGUF file inside the folder.
        pooling: a key of POOLINGS, such as "last", "penultimate", "mean" or "cls", in place of what is declared. By
            default the model's own pooling, or else "penultimate" for causal models and "mean" for others.
        layer: the layer whose hidden states are pooled, 0 for the embeddings; the last by default.
        prompt: the name of a prompt that the model declares, or the text before every text; "" for none.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        EncoderError: there is no model; it has no such layer, pooling or prompt; it declares what is not known; or
            weights are missing, no floating-point numbers, or in files that can run code.
        CheckpointError: the run folder holds no model with an encoder, or a damaged one.
        TokenizerError: there is no tokenizer.
    """
    folder = folder_of(path_or_id, name="encoder")
    trust_remote_code = trust_remote_code or TRUST_REMOTE_CODE.is_on()
    if gguf_file is None and _is_run(folder):
        if any(option is not None for option in (pooling, layer, prompt)):
            options = "--pooling, --layer and --prompt"
            raise EncoderError(f"'{path_or_id}' has a bottleneck of its own; leave out {options}.")
        model, tokenizer = load_model(folder, TextAutoencoder, MemoryModelForCausalLM)
        encoder = encoder_of(model) if isinstance(model, TextAutoencoder) else model.encoder
        return MemoryEncoder(encoder, tokenizer, name=folder.name)
    if gguf_file is not None and not (folder / gguf_file).is_file() and folder.is_dir():
        raise EncoderError(f"no '{gguf_file}' in '{path_or_id}'; give the name of a GGUF file in that folder.")
    if gguf_file is not None and importlib.util.find_spec("gguf") is None:
        raise EncoderError(f"reading '{gguf_file}' needs the package gguf; pip install 'memlm[gguf]'.")
    place = local_folder(path_or_id, trust_remote_code=trust_remote_code, gguf_file=gguf_file)
    try:
        declared = read_declaration(place, modules=pooling is None) if gguf_file is None else None
    except UnknownDeclarationError as error:
        if pooling is not None or layer is not None:
            raise
        return SentenceTransformersEncoder.open(
            place, error, name=folder.name, prompt=prompt, trust_remote_code=trust_remote_code
        )
    options = {"pooling": pooling, "layer": layer, "prompt": prompt}
    return _load(place, declared, gguf_file=gguf_file, trust_remote_code=trust_remote_code, name=folder.name, **options)


def _is_run(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] in RUN_MODELS
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / "run.json").is_file()


def _load(
    place: Path, declared: Declaration | None, *, gguf_file: str | None, trust_remote_code: bool, **options: Any
) -> HuggingFaceEncoder:
    """Load a transformers model in fp32 and its tokenizer."""
    folder = place if declared is None else declared.transformer
    code: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    config = None if declared is None else dict(declared.config)
    model = load_transformer(folder, declared=declared is not None, options=config, gguf_file=gguf_file, **code)
    tokenizer = load_tokenizer(folder, gguf_file=gguf_file, **code)
    if declared is None:
        return HuggingFaceEncoder(model, tokenizer, **options)
    own = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(folder, **code))
    for reader in (tokenizer, own):
        _set_options(reader, declared, folder)
    if own.pad_token_id is None:
        own = tokenizer
    return HuggingFaceEncoder(model, tokenizer, declared=declared, own_tokenizer=own, **options)


def _set_options(tokenizer: PreTrainedTokenizerBase, declared: Declaration, folder: Path) -> None:
    """Set what is declared of a tokenizer."""
    for name, value in declared.tokenizer.items():
        if name not in ("padding_side", "truncation_side") or value not in ("left", "right"):
            raise EncoderError(f"'{folder}' declares {name} ({value!r}) of its tokenizer, which memlm does not know.")
        setattr(tokenizer, name, value)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if declared.lower_case and backend is not None:
        before = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = Normalizers([Lowercase(), *before])


def _text_config(model: PreTrainedModel) -> Any:
    """Return the configuration of the part that reads text."""
    return model.config.get_text_config()


def _text_part(model: PreTrainedModel) -> PreTrainedModel:
    """Return the part that reads text, of a model with several kinds of input as CLIP."""
    return cast(Any, model).text_model if _makes_features(model) and hasattr(model, "text_model") else model


def _makes_features(model: PreTrainedModel) -> bool:
    """Return True if the model makes vectors of texts by itself, to compare with those of images."""
    return hasattr(model, "get_text_features")


def _vocabulary_rows(part: PreTrainedModel) -> int:
    return int(cast(Any, part.get_input_embeddings()).num_embeddings)


def _max_length(part: nn.Module, tokenizer: PreTrainedTokenizerBase, declared: Declaration | None) -> int:
    """Return the greatest number of tokens that is declared and that the model has positions for; 0 for any."""
    own = min(int(tokenizer.model_max_length), 2**31)
    positions = int(getattr(cast(Any, part).config.get_text_config(), "max_position_embeddings", 0) or 0)
    limits = [declared.max_length if declared is not None and declared.max_length else own]
    limits += [positions] if positions > 0 else []
    for module in part.modules():
        table, padding = getattr(module, "position_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(table, nn.Embedding) and isinstance(padding, int):
            # positions of RoBERTa and its kin begin behind that of padding
            limits.append(table.num_embeddings - padding - 1)
    return min(limits) if min(limits) < 2**31 else 0


def is_causal(model: PreTrainedModel) -> bool:
    """Return True if each position of the model sees only earlier ones."""
    kind = type(model.config)
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING


def _modules(
    model: PreTrainedModel, declared: Declaration | None, pooling: str | None, layer: int | None, name: str
) -> list[nn.Module]:
    """Return the modules behind the transformer."""
    if pooling is not None:
        return [Pooling([_checked_pooling(model, pooling, name)])]
    if declared is None:
        if _makes_features(model) and layer is None:
            return []
        return [Pooling(["penultimate" if is_causal(model) else "mean"])]
    others = [m for m in declared.modules if not isinstance(m, Pooling | Normalize)]
    if layer is not None and (others or declared.text_features):
        raise EncoderError(f"{name} maps its own layer further; give --pooling with --layer.")
    return list(declared.modules)


def _checked_pooling(model: PreTrainedModel, pooling: str, name: str) -> str:
    if pooling not in POOLINGS:
        raise EncoderError(f"unknown pooling '{pooling}'. {did_you_mean(pooling, POOLINGS)}")
    if pooling == "cls" and is_causal(model):
        reason = f"{name} is a causal model, whose first token sees no other, so 'cls' holds nothing"
        raise EncoderError(f"{reason}; use 'penultimate', 'last' or 'mean'.")
    return pooling


def _layer(model: PreTrainedModel, layer: int | None, name: str) -> int | None:
    if layer is None:
        return None
    layers = int(_text_config(model).num_hidden_layers)
    if not -layers - 1 <= layer <= layers:
        raise EncoderError(f"{name} has no layer {layer}; give one from 0 (embeddings) to {layers}.")
    return layer % (layers + 1)
