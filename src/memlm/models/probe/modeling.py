"""The probe decoder: one vector -> L tokens, all in one pass.

    vector ── whiten ── own directions ── own map ──▶ (B, L, D) ── layers ── lm_head ──▶ logits
    (B, W)    (B, W)    (L, W, r)         (L, r, D)                                      (B, L, V)

Departures from the paper's information probe (1.2), whose decoder reads the vector repeated or unrolled:
- the vector is whitened by the training vectors' mean and covariance, which tames norms of any size and directions of
  any spread; both are kept in buffers, part of the checkpoint
- each position reads r directions of its own out of the whole vector. They start as the ones that tell most about the
  token there (memlm.models.probe.start): with few thousand passages a map without that start fits noise (LOG.md)
- what says which tokens occur, but not where, is read by one map for all positions, learnt from all of them
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import initialization as init

from memlm.errors import MemoryShapeError
from memlm.models.base import MemlmModel
from memlm.models.documents import AutoencoderOutput
from memlm.models.layers.backbone import build_backbone
from memlm.models.layers.mixer.modeling import init_mixer_weights
from memlm.models.probe.configuration import ProbeConfig
from memlm.objectives import mean_loss
from memlm.shapes import Labels, Logits


class PositionReadout(nn.Module):
    """What every position reads: a linear map of its own of the whole vector, of low rank, and one that all share."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.empty(config.length, config.vector_size, config.readout_rank))
        self.maps = nn.Parameter(torch.empty(config.length, config.readout_rank, config.hidden_size))
        self.shared = nn.Linear(config.vector_size, config.hidden_size, bias=False)

    def forward(self, vectors: Float[Tensor, "batch numbers"]) -> Float[Tensor, "batch tokens width"]:
        """(batch, numbers) -> (batch, tokens, width)."""
        return (vectors @ self.directions @ self.maps).transpose(0, 1) + self.shared(vectors)[:, None]


class Whitening(nn.Module):
    """`(vector - mean) @ matrix`: mean zero and covariance one over the vectors it was fitted to."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("matrix", torch.eye(size))
        self.mean: Tensor
        self.matrix: Tensor

    def forward(self, vectors: Float[Tensor, "batch numbers"]) -> Float[Tensor, "batch numbers"]:
        """Same shape, in fp32: norms of the vectors may be far from one."""
        with torch.autocast(vectors.device.type, enabled=False):
            return (vectors.float() - self.mean) @ self.matrix


class ProbeDecoder(MemlmModel):
    """Trained to give a text's tokens back from one vector of a frozen encoder."""

    config: ProbeConfig
    config_class = ProbeConfig
    main_input_name = "vectors"

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.whitening = Whitening(config.vector_size)
        self.readout = PositionReadout(config)
        self.decoder = build_backbone(config, num_layers=config.num_layers, length=config.length)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        # transformers would pick a loss from the class name
        self.loss_type = "ForMaskedLM"
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """The head that writes tokens."""
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, PositionReadout):
            for maps in (module.directions, module.maps):
                init.normal_(maps, std=maps.shape[1] ** -0.5)
        elif isinstance(module, Whitening):
            init.zeros_(module.mean)
            init.copy_(module.matrix, torch.eye(len(module.mean)))
        else:
            init_mixer_weights(module)

    def decode(self, vectors: Float[Tensor, "batch numbers"]) -> Logits:
        """Logits (batch, length, vocabulary).

        Raises:
            MemoryShapeError: vectors of another width than the probe reads.
        """
        if vectors.shape[1] != self.config.vector_size:
            raise MemoryShapeError(
                f"vectors of {vectors.shape[1]} numbers do not fit a probe of {self.config.vector_size}; "
                "probe vectors of one encoder at a time."
            )
        return self.lm_head(self.decoder(self.readout(self.whitening(vectors))))

    def forward(
        self,
        vectors: Float[Tensor, "batch numbers"],
        labels: Labels | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AutoencoderOutput:
        """Decode; labels stand at the positions they are asked at.

        Args:
            vectors: (batch, numbers).
            labels: (batch, length); IGNORE_INDEX where nothing is asked.
            num_items_in_batch: tokens asked for over all accumulated batches, as Trainer counts them.
            kwargs: ignored; Trainer passes settings of other models.
        """
        logits = self.decode(vectors)
        loss = None if labels is None else mean_loss(logits, labels, num_items_in_batch)
        return AutoencoderOutput(loss=loss, logits=logits)
