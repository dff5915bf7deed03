"""What memlm's models return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class AutoencoderOutput(ModelOutput):
    """Output of a text autoencoder.

    Attributes:
        loss: mean cross-entropy in nats over the tokens asked for, where labels were given.
        logits: (batch, tokens, vocabulary), at the positions of the input.
        memories: (batch, memories, numbers), one group per chunk.
    """

    # accelerate rebuilds outputs from one mapping when it widens them to fp32; a check of the fields would refuse that
    __no_type_check__: ClassVar[bool] = True

    loss: Tensor | None = None
    logits: Tensor | None = None
    memories: Tensor | None = None


@dataclass
class MemoryModelOutput(ModelOutput):
    """Output of a memory model that read documents.

    Attributes:
        loss: weighted mean over objectives of their mean cross-entropy in nats, where labels were given.
        logits: (documents, tokens, vocabulary), at the positions of the input; None in training.
        memories: (documents, chunks, memories, numbers), what the encoder wrote.
        nats: (objectives,), summed over the tokens each was asked for.
        right: (objectives,), how many of them came out right.
        asked: (objectives,), how many they were.
    """

    # accelerate rebuilds outputs from one mapping when it widens them to fp32; a check of the fields would refuse that
    __no_type_check__: ClassVar[bool] = True

    loss: Tensor | None = None
    logits: Tensor | None = None
    memories: Tensor | None = None
    nats: Tensor | None = None
    right: Tensor | None = None
    asked: Tensor | None = None
