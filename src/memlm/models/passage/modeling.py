"""A passage encoder with the autoencoder's layers, so that models differ in their training objective alone.

    input_ids ── embed_tokens ── encoder ──▶ hidden ──┬── lm_head ──▶ next-token logits
    (B, T)       (B, T, D)                   (B, T, D) └── one position ──▶ vector (B, D)

`embed_tokens` and `encoder` have the names and shapes they have in TextAutoencoder, so that a retrieval encoder can
start from a causal model or from an autoencoder.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memlm.models.base import MemlmModel
from memlm.models.documents import AutoencoderOutput
from memlm.models.layers.backbone import build_backbone
from memlm.models.layers.mixer.modeling import init_mixer_weights
from memlm.models.passage.configuration import POOLINGS, PassageEncoderConfig
from memlm.objectives import info_nce, mean_loss
from memlm.shapes import Labels, TokenIds, TokenMask


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

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token table."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output layer of the next-token objective."""
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_mixer_weights(module)

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
