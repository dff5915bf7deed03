"""A passage encoder with the autoencoder's layers, so that models differ in their training objective alone.

    input_ids ── embed_tokens ── encoder ──▶ hidden ──┬── lm_head ──▶ next-token logits
    (B, T)       (B, T, D)                   (B, T, D) └── one position ──▶ vector (B, D)

`embed_tokens` and `encoder` have the names and shapes they have in TextAutoencoder, so that a retrieval encoder can
start from a causal model or from an autoencoder.
"""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn

from memlm.errors import ConfigError
from memlm.models.base import MemlmModel, require_known, require_positive
from memlm.models.documents import AutoencoderOutput
from memlm.models.layers.backbone import LayersConfig, build_backbone
from memlm.models.layers.bottleneck import LastToken, Penultimate
from memlm.objectives import info_nce, mean_loss
from memlm.shapes import Labels, TokenIds, TokenMask

POOLINGS = {"last_token": LastToken, "penultimate": Penultimate}


@strict
class PassageEncoderConfig(LayersConfig):
    """An encoder of at most `chunk_length` tokens whose one hidden state stands for all of them.

    Raises:
        ConfigError: unknown kinds, sizes below one, heads that do not divide the width.
    """

    model_type = "memlm_passage_encoder"

    chunk_length: int = 64
    """Largest number of tokens in a passage."""
    num_layers: int = 2
    """Layers that read the tokens."""
    pooling: str = "penultimate"
    """Token whose hidden state is the vector: `last_token`, or `penultimate` (Badger's choice for causal models)."""
    objective: str = "next_token"
    """Objective in training: `next_token`, or `retrieval` (a stretch of the passage must find it)."""
    temperature: float = 0.02
    """Temperature of the retrieval loss."""
    memories_per_chunk: int = 1
    """One vector per passage; poolings read this field."""

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_positive(self, "chunk_length")
        require_known(self, pooling=POOLINGS, objective=("next_token", "retrieval"))
        if self.memories_per_chunk != 1:
            raise ConfigError(f"memories_per_chunk ({self.memories_per_chunk}) must be 1 for a passage encoder.")


class PassageEncoder(MemlmModel):
    """Encodes a passage as one hidden state; trained on next-token prediction or retrieval."""

    config: PassageEncoderConfig
    config_class = PassageEncoderConfig

    def __init__(self, config: PassageEncoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.encoder = build_backbone(config, num_layers=config.num_layers, length=config.chunk_length)
        self.pooling = POOLINGS[config.pooling](config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # labels are shifted by the objective, not by transformers
        self.loss_type = "ForMaskedLM"
        self.post_init()

    def encode(self, input_ids: TokenIds, attention_mask: TokenMask) -> Float[Tensor, "batch width"]:
        """Return one vector per passage, (batch, width).

        Args:
            input_ids: (batch, tokens), text first.
            attention_mask: (batch, tokens), nonzero for text.
        """
        mask = attention_mask.bool()
        return self.pooling(self.encoder(self.embed_tokens(input_ids), mask), mask)[:, 0]

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask,
        labels: Labels | None = None,
        query_ids: Int[Tensor, "batch query"] | None = None,
        query_mask: Int[Tensor, "batch query"] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AutoencoderOutput:
        """Return the loss of the objective; without queries, the next-token logits too.

        Args:
            input_ids: (batch, tokens), text first.
            attention_mask: (batch, tokens), nonzero for text.
            labels: (batch, tokens), next-token objective: the token after each position, or IGNORE_INDEX.
            query_ids: (batch, query), retrieval objective: a stretch of each passage.
            query_mask: (batch, query), nonzero for text.
            num_items_in_batch: number of targets over all accumulated batches, as Trainer counts them.
            kwargs: ignored; Trainer passes settings of other models.

        Raises:
            UserError: no label is a target.
        """
        if query_ids is not None and query_mask is not None:
            queries, passages = self.encode(query_ids, query_mask), self.encode(input_ids, attention_mask)
            return AutoencoderOutput(loss=info_nce(queries, passages, temperature=self.config.temperature).mean())
        logits = self.lm_head(self.encoder(self.embed_tokens(input_ids), attention_mask.bool()))
        loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        return AutoencoderOutput(loss=loss, logits=logits)
