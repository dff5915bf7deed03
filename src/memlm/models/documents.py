"""Documents cut into chunks, with what is asked of them: what every model that reads chunk by chunk begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from memlm.chunking import split, text_first
from memlm.objectives import ObjectiveSums, weighted_loss
from memlm.shapes import IGNORE_INDEX, Logits


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
        num_correct: (objectives,), how many of them came out right.
        num_targets: (objectives,), how many they were.
    """

    # accelerate rebuilds outputs from one mapping when it widens them to fp32; a check of the fields would refuse that
    __no_type_check__: ClassVar[bool] = True

    loss: Tensor | None = None
    logits: Tensor | None = None
    memories: Tensor | None = None
    nats: Tensor | None = None
    num_correct: Tensor | None = None
    num_targets: Tensor | None = None


class ChunkedDocuments(NamedTuple):
    """Ids, mask and labels (documents, chunks, length), text first, and how the tokens stood before."""

    ids: Tensor
    mask: Tensor
    labels: Tensor | None
    reconstruction: Tensor | None
    order: Tensor | None
    tokens: int

    def objectives(self, objective: Tensor | None, weights: Tensor | None) -> int:
        """How many the labels belong to; the reconstruction's is not among them."""
        if weights is not None:
            return len(weights) - (self.reconstruction is not None)
        return 1 if objective is None else int(objective.max()) + 1

    def joined(self, logits: Float[Tensor, "chunks length vocabulary"]) -> Logits:
        """Logits of folded chunks -> (documents, tokens, vocabulary), at the positions of the input."""
        rows = logits.unflatten(0, self.ids.shape[:2]).flatten(1, 2)[:, : self.tokens]
        rows = F.pad(rows, (0, 0, 0, self.tokens - rows.shape[1]))
        if self.order is None:
            return rows
        return rows.gather(1, self.order.argsort(dim=1)[..., None].expand_as(rows))


def chunked(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    reconstruction: Tensor | None = None,
    *,
    length: int,
    pad: int,
) -> ChunkedDocuments:
    """Documents (rows, tokens) with padding anywhere, cut into chunks of `length`; all-padding chunks are left out."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    order = text_first(mask)
    if order is not None:
        input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        labels = None if labels is None else labels.gather(1, order)
        reconstruction = None if reconstruction is None else reconstruction.gather(1, order)
    # chunks of padding alone are left out: how many are read depends on texts, not on how they were padded
    text = max(1, int(mask.bool().sum(1).max()))
    chunks = split(input_ids[:, :text], mask[:, :text], chunk_length=length, pad_token_id=pad)
    asked = [None if x is None else _asked(x[:, :text], length) for x in (labels, reconstruction)]
    return ChunkedDocuments(chunks.input_ids, chunks.attention_mask, asked[0], asked[1], order, input_ids.shape[1])


def loss_of(sums: ObjectiveSums, weights: Tensor | None, num_items: Tensor | int | None) -> Tensor:
    """Weighted mean over objectives; `num_items` tokens were asked for over all accumulated batches and devices."""
    weights = torch.ones_like(sums.nats) if weights is None else weights.to(sums.nats)
    asked = (
        sums.num_targets
        if num_items is None
        else torch.as_tensor(num_items).to(sums.num_targets).expand_as(sums.num_targets)
    )
    return weighted_loss(sums.nats, asked, weights)


def _asked(x: Tensor, length: int) -> Tensor:
    missing = -x.shape[1] % length
    return F.pad(x, (0, missing), value=IGNORE_INDEX).unflatten(1, (-1, length))
