"""Models that read documents chunk by chunk: their settings, the chunks and targets they read, and their outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import ModelOutput

from memlm.chunking import in_input_order, split, text_first
from memlm.errors import ConfigError, MemoryShapeError
from memlm.models.base import MemlmConfig
from memlm.objectives import ObjectiveSums, sums_by_objective, weighted_loss
from memlm.shapes import IGNORE_INDEX, Labels, Logits


@strict
class DocumentModelConfig(MemlmConfig):
    """Settings of a decoder that reads documents chunk by chunk, with earlier chunks as memories."""

    has_no_defaults_at_init = True

    decoder: dict[str, Any] | PreTrainedConfig | None = None
    """Configuration of the decoder, any causal language model; `generate()` looks for this name."""
    chunk_length: int = 16
    """Tokens per chunk."""
    num_chunks: int = 4
    """Chunks of a document in training; more can be read later if the decoder has positions for them."""
    use_memory: bool = True
    """Read memories; false gives the `no_memory` baseline."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights, for transformers."""
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        self.decoder = sub_config(self.decoder, "decoder")
        super().__post_init__(**kwargs)

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """Configuration of the decoder."""
        return cast(PreTrainedConfig, self.decoder)

    @property
    def document_length(self) -> int:
        """Tokens of a document in training."""
        return self.chunk_length * self.num_chunks


def sub_config(value: dict[str, Any] | PreTrainedConfig | None, name: str) -> PreTrainedConfig:
    """Return the configuration of a model within a model, made from its mapping if it is not made yet.

    Raises:
        ConfigError: no configuration, or a mapping without `model_type`.
    """
    if isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, dict) or "model_type" not in value:
        raise ConfigError(f"{name} must be a configuration, or a mapping with a model_type; got {value!r}.")
    settings = dict(value)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


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


def check_memories(memories: Tensor, shape: tuple[int, ...], *, documents: int, chunks: int) -> None:
    """Check memories that are read in place of a model's own.

    Args:
        memories: (documents, chunks, memories, numbers).
        shape: (memories, numbers) of the model.
        documents: number of documents that are read.
        chunks: number of chunks whose memories are read.

    Raises:
        MemoryShapeError: memories of another shape, or of too few chunks.
    """
    if memories.ndim != 4 or tuple(memories.shape[2:]) != shape or len(memories) != documents:
        raise MemoryShapeError(
            f"memories of shape {tuple(memories.shape)} do not fit {documents} documents of this model, "
            f"which writes {shape} (memories, numbers) per chunk."
        )
    if memories.shape[1] < chunks:
        raise MemoryShapeError(
            f"memories of {memories.shape[1]} chunks are too few: {chunks} are read; encode the whole document."
        )
