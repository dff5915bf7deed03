"""A causal or retrieval encoder over the autoencoder's own layers, so that objectives can be compared and nothing else.

    input_ids ── embed_tokens ── encoder ──▶ hidden ──┬── lm_head ──▶ next-token logits
    (B, T)       (B, T, D)                   (B, T, D) └── one position ──▶ vector (B, D)

`embed_tokens` and `encoder` have the names and shapes they have in TextAutoencoder, so that a retrieval encoder can
start from either (paper 1.2: what retrieval training does to what a causal model or an autoencoder holds).
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
    """One hidden state for a passage; trained on next tokens or on retrieval."""

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
        """The token table."""
        return self.embed_tokens

    def get_output_embeddings(self) -> nn.Linear:
        """The head of the next-token objective."""
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        init_mixer_weights(module)

    def encode(self, input_ids: TokenIds, attention_mask: TokenMask) -> Float[Tensor, "batch width"]:
        """One vector per passage.

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
        """The objective's loss.

        Args:
            input_ids: (batch, tokens), text first.
            attention_mask: (batch, tokens).
            labels: (batch, tokens), of next_token: the token after each position, IGNORE_INDEX where none is asked.
            query_ids: (batch, query tokens), of retrieval: a stretch of each passage.
            query_mask: (batch, query tokens).
            num_items_in_batch: tokens asked for over all accumulated batches, as Trainer counts them.
            kwargs: ignored; Trainer passes settings of other models.
        """
        if query_ids is not None and query_mask is not None:
            queries, passages = self.encode(query_ids, query_mask), self.encode(input_ids, attention_mask)
            return AutoencoderOutput(loss=info_nce(queries, passages, temperature=self.config.temperature).mean())
        logits = self.lm_head(self.encoder(self.embed_tokens(input_ids), attention_mask.bool()))
        loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        return AutoencoderOutput(loss=loss, logits=logits)
