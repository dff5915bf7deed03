"""What a probe needs of an encoder, and an encoder made of any function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.errors import EncoderError

TextVectors = Float[Tensor, "texts numbers"]


@runtime_checkable
class Encoder(Protocol):
    """Texts to vectors.

    Attributes:
        name: for tables and sentences.
        width: numbers in one vector.
        fingerprint: changes with anything that changes a vector: weights, tokenizer, layer, pooling.
    """

    name: str
    width: int
    fingerprint: str

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """One vector per text, in order, in fp32 on the CPU."""
        ...


class FunctionEncoder:
    """Any Python function from a list of texts to vectors.

    Args:
        function: texts -> (texts, numbers), as a tensor or anything torch.as_tensor takes.
        name: for tables.
        fingerprint: names this very function, with its weights; vectors are kept on disk under it.

    Raises:
        EncoderError: the function gives something else than one finite vector per text.
    """

    def __init__(self, function: Callable[[list[str]], object], *, name: str, fingerprint: str) -> None:
        self.function = function
        self.name = name
        self.fingerprint = f"function {fingerprint}"
        self.width = self.encode(["a"]).shape[1]

    def encode(self, texts: Sequence[str]) -> TextVectors:
        """One vector per text."""
        vectors = torch.as_tensor(self.function(list(texts)), dtype=torch.float32).cpu()
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise EncoderError(
                f"{self.name} gave an array of shape {tuple(vectors.shape)} for {len(texts)} texts; "
                "it must give (texts, numbers)."
            )
        return vectors
