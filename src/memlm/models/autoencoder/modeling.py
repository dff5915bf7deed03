"""The text autoencoder: a chunk of tokens becomes memories, and memories become the chunk again.

    input_ids ── embed ── encoder ── bottleneck ──▶ memories ── readout ── decoder ── lm_head ──▶ logits
    (B, T)       (B, T, D)           (pooling,      (B, M, W)    (B, L, D)                         (B, T, V)
                                      projection,
                                      noise)

Padding is never read, on either side. All positions are predicted in one pass: the decoder sees memories only, never
tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memlm.chunking import in_input_order, text_first
from memlm.errors import MemoryShapeError, UserError
from memlm.models.autoencoder.configuration import TextAutoencoderConfig
from memlm.models.base import MemlmModel
from memlm.models.documents import AutoencoderOutput
from memlm.models.layers.backbone import build_backbone
from memlm.models.layers.bottleneck import MemoryWriter
from memlm.models.layers.readout import READOUTS
from memlm.objectives import mean_loss
from memlm.shapes import Labels, Logits, Memories, TokenIds, TokenMask


class TextAutoencoder(MemlmModel):
    """An encoder, a bottleneck and a decoder that are trained to reproduce a chunk of text.

    Example:
        >>> model = TextAutoencoder.from_pretrained("runs/demo")
        >>> memories = model.encode(input_ids, attention_mask)   # (batch, memories, numbers)
        >>> logits = model.decode(memories)                      # (batch, chunk_length, vocabulary)
    """

    config: TextAutoencoderConfig
    config_class = TextAutoencoderConfig

    def __init__(self, config: TextAutoencoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.encoder = build_backbone(config, num_layers=config.num_encoder_layers, length=config.chunk_length)
        self.bottleneck = MemoryWriter(config)
        sizes = {"length": config.chunk_length, "width": config.hidden_size, "rank": config.readout_rank}
        memories = {"memories": config.memories_per_chunk, "numbers": config.bottleneck_size}
        self.readout = READOUTS[config.readout](**sizes, **memories)
        written = config.chunk_length + self.readout.prefix_slots
        self.decoder = build_backbone(config, num_layers=config.num_decoder_layers, length=written)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # transformers would pick the shifted causal loss from the class name
        self.loss_type = "ForMaskedLM"
        self.post_init()

    def set_trainable(self, part: str = "all", *, freeze_encoder: bool = False) -> None:
        """Enable gradients for everything but a token table that `freeze_embeddings` keeps as it is.

        Args:
            part: `all`; an autoencoder has no other part.
            freeze_encoder: not used.
        """
        super().set_trainable(part, freeze_encoder=freeze_encoder)
        self.embed_tokens.requires_grad_(not self.config.freeze_embeddings)

    def encode(self, input_ids: TokenIds, attention_mask: TokenMask | None = None) -> Memories:
        """Return the memories of one chunk per row.

        Args:
            input_ids: (batch, tokens), at most `chunk_length` tokens.
            attention_mask: (batch, tokens), nonzero for text, with padding on any side.

        Returns:
            (batch, memories, numbers).

        Raises:
            UserError: more tokens than a chunk holds.
        """
        return self._encode(input_ids, attention_mask)[0]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return memories, and the order that put text first (see `text_first`)."""
        longest = self.config.chunk_length
        if input_ids.shape[1] > longest:
            raise UserError(
                f"{input_ids.shape[1]} tokens do not fit a chunk of {longest}; "
                "split the text first (memlm.chunking.split)."
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        order = text_first(mask)
        if order is not None:
            input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        mask = mask.bool()
        return self.bottleneck(self.encoder(self.embed_tokens(input_ids), mask), mask), order

    def decode(self, memories: Float[Tensor, ...]) -> Logits:
        """Return the logits (batch, chunk_length, vocabulary) of each chunk's tokens.

        Args:
            memories: (batch, memories, numbers).

        Raises:
            MemoryShapeError: memories of another shape than the model writes, or values that are not finite.
        """
        self.check_memories(memories)
        return self._decode(memories)

    def _decode(self, memories: Tensor) -> Tensor:
        hidden = self.decoder(self.readout(memories))
        return self.lm_head(hidden[:, self.readout.prefix_slots :])

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        labels: Labels | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AutoencoderOutput:
        """Encode and decode one chunk per row.

        Args:
            input_ids: (batch, tokens), at most `chunk_length` tokens.
            attention_mask: (batch, tokens), nonzero for text, with padding on any side.
            labels: (batch, tokens), the target of each position or IGNORE_INDEX; not shifted.
            num_items_in_batch: number of targets over all accumulated batches, as Trainer counts them.
            kwargs: ignored; Trainer passes settings of other models.

        Raises:
            UserError: more tokens than a chunk holds, or no label is a target.
        """
        memories, order = self._encode(input_ids, attention_mask)
        logits = in_input_order(self._decode(memories)[:, : input_ids.shape[1]], order)
        loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        return AutoencoderOutput(loss=loss, logits=logits, memories=memories)

    def check_memories(self, memories: Tensor) -> None:
        """Raise MemoryShapeError if the model cannot decode these memories."""
        expected = (self.config.memories_per_chunk, self.config.bottleneck_size)
        if memories.ndim != 3 or tuple(memories.shape[1:]) != expected:
            raise MemoryShapeError(
                f"memories of shape {tuple(memories.shape[1:])} per chunk do not fit this model, "
                f"which writes {expected} (memories, numbers); read them with the model that wrote them."
            )
        if not bool(torch.isfinite(memories).all()):
            bad = int((~torch.isfinite(memories)).sum())
            raise MemoryShapeError(
                f"{bad} of {memories.numel()} numbers in the memories are NaN or infinite; encode the text again."
            )
