"""Documents cut into chunks, with the targets of their tokens: the input of every model that reads chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers.utils import ModelOutput

from memlm.chunking import in_input_order, split, text_first
from memlm.objectives import ObjectiveSums, sums_by_objective, weighted_loss
from memlm.shapes import IGNORE_INDEX, Labels, Logits


@dataclass
class AutoencoderOutput(ModelOutput):
    """Output of a text autoencoder, a passage encoder or a probe.

    Attributes:
        loss: mean cross-entropy in nats over the targets, if labels were given.
        logits: (batch, tokens, vocabulary), at the positions of the input.
        memories: (batch, memories, numbers), those of one chunk per row.
    """

    # accelerate rebuilds outputs from one mapping when it widens them to fp32; a check of the fields would refuse that
    __no_type_check__: ClassVar[bool] = True

    loss: Tensor | None = None
    logits: Tensor | None = None
    memories: Tensor | None = None


@dataclass
class MemoryModelOutput(AutoencoderOutput):
    """Output of a memory model that read documents.

    Attributes:
        loss: weighted mean over objectives of their mean cross-entropy in nats, if labels were given.
        logits: (documents, tokens, vocabulary), at the positions of the input; None in training.
        memories: (documents, chunks, memories, numbers), as the encoder wrote them.
        nats: (objectives,), cross-entropy summed over the targets of each objective.
        num_correct: (objectives,), number of targets predicted correctly.
        num_targets: (objectives,), number of targets.
    """

    nats: Tensor | None = None
    num_correct: Tensor | None = None
    num_targets: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DocumentTargets:
    """Targets of the tokens of documents, and the objectives they belong to.

    Attributes:
        labels: (documents, tokens), the target of each position or IGNORE_INDEX; not shifted by the model.
        objective: (documents,), the objective of each row; all rows belong to one if None.
        loss_weights: (objectives,), weights of the objectives; all equal if None.
        reconstruction_labels: (documents, tokens), targets of the reconstruction head, which is the last objective.
        num_items_in_batch: (objectives,), number of targets over all accumulated batches and devices.
    """

    labels: Labels | None = None
    objective: Int[Tensor, " documents"] | None = None
    loss_weights: Float[Tensor, " objectives"] | None = None
    reconstruction_labels: Labels | None = None
    num_items_in_batch: Tensor | int | None = None

    @property
    def num_objectives(self) -> int:
        """The number of objectives of `labels`, without that of the reconstruction head."""
        if self.loss_weights is not None:
            return len(self.loss_weights) - (self.reconstruction_labels is not None)
        return 1 if self.objective is None else int(self.objective.max()) + 1

    def row_objectives(self) -> Int[Tensor, " documents"]:
        """Return the objective of each row."""
        labels = cast(Tensor, self.labels)
        return labels.new_zeros(len(labels)) if self.objective is None else self.objective

    def sums(self, logits: Logits) -> ObjectiveSums | None:
        """Return the sums of each objective, or None without labels."""
        if self.labels is None:
            return None
        return sums_by_objective(logits, self.labels, self.row_objectives(), count=self.num_objectives)

    def results(self, sums: ObjectiveSums | None) -> dict[str, Tensor]:
        """Return the loss and the sums of each objective, by their names in MemoryModelOutput.

        Raises:
            UserError: no objective with a weight has a target.
        """
        if sums is None:
            return {}
        weights = torch.ones_like(sums.nats) if self.loss_weights is None else self.loss_weights.to(sums.nats)
        count = sums.num_targets
        if self.num_items_in_batch is not None:
            count = torch.as_tensor(self.num_items_in_batch).to(count).expand_as(count)
        loss = weighted_loss(sums.nats, count, weights)
        counts = {"num_correct": sums.num_correct, "num_targets": sums.num_targets}
        return {"loss": loss, "nats": sums.nats.detach(), **counts}


class ChunkedDocuments(NamedTuple):
    """Documents as chunks, text first.

    Attributes:
        ids: (documents, chunks, length).
        mask: (documents, chunks, length), nonzero for text.
        labels: (documents, chunks, length), or None.
        reconstruction: (documents, chunks, length), targets of the reconstruction head, or None.
        order: (documents, tokens), the order that put text first, or None if it was first.
        tokens: number of tokens of the input.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor | None
    reconstruction: Tensor | None
    order: Tensor | None
    tokens: int

    def joined(self, logits: Float[Tensor, "chunks length vocabulary"]) -> Logits:
        """Return the logits of folded chunks as (documents, tokens, vocabulary), at the positions of the input."""
        rows = logits.unflatten(0, self.ids.shape[:2]).flatten(1, 2)[:, : self.tokens]
        return in_input_order(F.pad(rows, (0, 0, 0, self.tokens - rows.shape[1])), self.order)


def chunked(
    input_ids: Int[Tensor, "documents tokens"],
    attention_mask: Tensor | None,
    targets: DocumentTargets,
    *,
    length: int,
    pad: int,
) -> ChunkedDocuments:
    """Return documents, with padding on any side, as chunks of `length` tokens.

    Chunks of padding alone are left out: the number of chunks depends on the texts, not on how they were padded.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    order = text_first(mask)
    if order is not None:
        input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
    text = max(1, int(mask.bool().sum(1).max()))
    chunks = split(input_ids[:, :text], mask[:, :text], chunk_length=length, pad_token_id=pad)

    def split_labels(labels: Labels | None) -> Int[Tensor, "documents chunks length"] | None:
        if labels is None:
            return None
        labels = (labels if order is None else labels.gather(1, order))[:, :text]
        return F.pad(labels, (0, -text % length), value=IGNORE_INDEX).unflatten(1, (-1, length))

    labels, reconstruction = split_labels(targets.labels), split_labels(targets.reconstruction_labels)
    return ChunkedDocuments(chunks.input_ids, chunks.attention_mask, labels, reconstruction, order, input_ids.shape[1])
