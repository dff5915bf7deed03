"""The interface of encoders, and encoders made of a function, of a memory model, or of sentence-transformers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from memlm.data import chunk_texts, encode_texts, eos_id
from memlm.data.given import finite_tensor, list_of_texts
from memlm.encoders.declaration import UnknownDeclarationError, declared_files, module_folders, prompt_of
from memlm.encoders.weights import check_code, check_complete, reason_of
from memlm.errors import EncoderError, MemoryShapeError
from memlm.models import ChunkEncoder
from memlm.models.runtime import weights_fingerprint

TextVectors = Float[Tensor, "texts numbers"]


@runtime_checkable
class Encoder(Protocol):
    """An object that encodes texts as vectors.

    Attributes:
        name: the name in tables and sentences.
        width: the length of a vector.
        fingerprint: a text that changes with everything that changes a vector: weights, tokenizer, layer, pooling.
    """

    name: str
    width: int
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Return one vector per text, (texts, numbers), in fp32 on the CPU."""
        ...


class FunctionEncoder:
    """An encoder that calls a Python function.

    Args:
        function: maps a list of texts to (texts, numbers), a tensor or anything that `torch.as_tensor` accepts.
        name: the name in tables.
        fingerprint: identifies the function and its weights; cached vectors on disk are found by it.
    """

    def __init__(self, function: Callable[[list[str]], object], *, name: str, fingerprint: str) -> None:
        if not callable(function):
            raise EncoderError(f"function (a {type(function).__name__}) must be a function from texts to vectors.")
        self.function = function
        self.name = name
        self.fingerprint = f"function {fingerprint}"
        self.width = self.encode(["a"]).shape[1]

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Return one vector per text, (texts, numbers).

        Raises:
            DataError: they are no texts.
            EncoderError: the function does not return one vector of finite numbers per text.
        """
        given = list_of_texts(texts)
        if not given:
            return torch.empty(0, self.width)
        try:
            vectors = finite_tensor(self.function(given), name=f"vectors of {self.name}").float().cpu()
        except MemoryShapeError as error:
            raise EncoderError(str(error)) from error
        if vectors.ndim != 2 or len(vectors) != len(given):
            found = f"an array of shape {tuple(vectors.shape)} for {len(given)} texts"
            raise EncoderError(f"{self.name} returned {found}; it must return (texts, numbers).")
        return vectors


def model_fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *settings: object) -> str:
    """Return the SHA-256 over weights, tokenizer and settings in hexadecimal digits."""
    return weights_fingerprint(model, before=repr(settings), after=vocabulary_of(tokenizer))


def vocabulary_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the tokenizer's rules as text, without padding and truncation, which every call sets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    settings = json.loads(backend.to_str())
    return json.dumps({name: value for name, value in settings.items() if name not in ("padding", "truncation")})


_ROWS = 256
"""Texts that are encoded at once."""


class MemoryEncoder:
    """An encoder that returns the memories of a text's first chunk as one vector; longer texts are cut there."""

    def __init__(self, encoder: ChunkEncoder, tokenizer: PreTrainedTokenizerBase, *, name: str) -> None:
        self.model = encoder.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.width = encoder.config.memories_per_chunk * encoder.config.bottleneck_size
        self.fingerprint = model_fingerprint(self.model, self.tokenizer, "memories")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Return one vector per text, (texts, memories * numbers)."""
        config, device = self.model.config, self.model.device
        tokens = [ids[: config.chunk_length] for ids in encode_texts(self.tokenizer, texts)]
        # the vector of an empty text is that of an end-of-text token
        rows = [ids or [eos_id(self.tokenizer)] for ids in tokens]
        ids, mask, _ = chunk_texts(rows, self.tokenizer, chunk_length=config.chunk_length)
        pairs = zip(ids.to(device).split(_ROWS), mask.to(device).split(_ROWS), strict=True)
        written = [self.model(*pair).flatten(1) for pair in pairs if len(pair[0])]
        return torch.cat([torch.empty(0, self.width), *(part.float().cpu() for part in written)])

    def untrained(self, seed: int) -> MemoryEncoder:
        """Return an encoder of the same architecture with untrained weights."""
        torch.manual_seed(seed)
        return MemoryEncoder(ChunkEncoder(self.model.config), self.tokenizer, name=f"{self.name} (untrained)")


class SentenceTransformersEncoder:
    """A model that sentence-transformers reads, because it declares what memlm does not know.

    Args:
        model: a SentenceTransformer.
        name: the name in tables.
        prompt: the text before every text.
        declared: everything that the model's files declare, for the fingerprint.
    """

    def __init__(self, model: Any, *, name: str, prompt: str = "", declared: str = "") -> None:
        self.model, self.name, self.prompt = model.eval(), name, prompt
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        self.width = self.encode(["a"]).shape[1]
        rules = vocabulary_of(self.tokenizer) if isinstance(self.tokenizer, PreTrainedTokenizerBase) else ""
        self.fingerprint = weights_fingerprint(model, before=f"{declared} {prompt!r}", after=rules)

    @classmethod
    def open(
        cls, folder: Path, unknown: UnknownDeclarationError, *, name: str, prompt: str | None, trust_remote_code: bool
    ) -> SentenceTransformersEncoder:
        """Load a folder of which `unknown` is what memlm does not know.

        Raises:
            EncoderError: sentence-transformers is not installed or does not know it either; or the folder brings code
                of its own, lacks weights, or holds them in files that can run code.
        """
        if unknown.needs_code and not trust_remote_code:
            raise EncoderError(f"{unknown}; --trust-remote-code (trust_remote_code=True) runs it.") from unknown
        if importlib.util.find_spec("sentence_transformers") is None:
            raise EncoderError(f"{unknown}; pip install 'memlm[sentence-transformers]' to read it.") from unknown
        places = module_folders(folder)
        for place in places:
            check_code(place, trust_remote_code=trust_remote_code)
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

        options = {
            "trust_remote_code": trust_remote_code,
            "model_kwargs": {"use_safetensors": True, "dtype": "float32"},
        }
        try:
            model = SentenceTransformer(str(folder), device="cpu", **options)
            for module, place in zip(model, places, strict=True):
                check_complete(module, place)
            text = prompt_of(prompt, model.prompts, model.default_prompt_name, name)
            return cls(model, name=name, prompt=text, declared=declared_files(places))
        except EncoderError:
            raise
        except Exception as error:  # sentence-transformers raises errors of many libraries
            raise EncoderError(f"{unknown}, nor does sentence-transformers ({reason_of(error)}).") from error

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """Return one vector per text, (texts, numbers)."""
        return self._encode(texts, self.prompt)

    def encode_query(self, texts: Sequence[str], prompt: str | None = None) -> TextVectors:
        """Return the vectors of queries, with this prompt (a name or a text) or the declared one."""
        declared = self.model.prompts.get("query") or self.prompt
        return self._encode(
            texts, declared if prompt is None else prompt_of(prompt, self.model.prompts, None, self.name)
        )

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str], prompt: str) -> TextVectors:
        given = list_of_texts(texts)
        if not given:
            return torch.empty(0, self.width)
        options = {"batch_size": _ROWS, "convert_to_tensor": True, "show_progress_bar": False}
        return self.model.encode(given, prompt=prompt, **options).float().cpu()
