"""What memlm's models return."""

from __future__ import annotations

from dataclasses import dataclass

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

    loss: Tensor | None = None
    logits: Tensor | None = None
    memories: Tensor | None = None
