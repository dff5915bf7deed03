"""The probe decoder: one vector becomes L tokens, all in one pass.

    vector ── whiten ── own directions ── own map ──▶ (B, L, D) ── layers ── lm_head ──▶ logits
    (B, W)    (B, W)    (L, W, r)         (L, r, D)                                      (B, L, V)

Differences from the information probe of arXiv 2602.13466, whose decoder reads the vector repeated or unrolled:
- the vector is whitened by the mean and covariance of the training vectors, so that its norm and the spread of its
  directions do not matter; both are buffers and part of the checkpoint
- each position reads r directions of its own from the whole vector. They start as the directions that best predict the
  token there (memlm.models.probe.start); without that start, a few thousand passages fit noise (LOG.md)
- one layer shared by all positions reads which tokens occur, independently of where

With `reads_tokens` each position also reads the tokens before it, so that the decoder writes from left to right. It
then adds to its logits those of a linear reading of which tokens occur, times a weight that depends on what it has
written so far:

    logits = lm_head(h) + weight(h) * (vector @ table + offsets)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import initialization as init

from memlm.errors import MemoryShapeError
from memlm.models.base import MemlmModel, require_positive
from memlm.models.documents import AutoencoderOutput
from memlm.models.layers.backbone import LayersConfig, build_backbone
from memlm.objectives import mean_loss
from memlm.shapes import IGNORE_INDEX, Labels, Logits

PRIOR_WEIGHT = 0.2
"""Weight of the prior's logits at the start; numbers of a vector repeat each other, so that their sum is too large."""


@strict
class ProbeConfig(LayersConfig):
    """A decoder from one vector of `vector_size` numbers to `length` tokens.

    Raises:
        ConfigError: sizes below one, or heads that do not divide the width.
    """

    model_type = "memlm_probe"

    vocab_size: int = 1024
    """Number of classes: tokens that occur in training passages, and one for all others."""
    length: int = 64
    """Number of tokens to predict."""
    vector_size: int = 256
    """Numbers in the vector."""
    readout_rank: int = 8
    """Numbers that each position reads from the vector."""
    num_layers: int = 2
    """Layers of the decoder."""
    reads_tokens: bool = False
    """Each position also reads the tokens before it."""
    vector_noise: float = 0.0
    """Standard deviation of the noise on whitened vectors in training."""
    candidates: int | None = None
    """Classes beside a batch's targets of which training computes logits, drawn for each batch; all by default."""

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_positive(self, "length", "vector_size", "readout_rank", "candidates")


class PositionReadout(nn.Module):
    """For each position, a low-rank linear layer of its own plus one that all positions share."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.empty(config.length, config.vector_size, config.readout_rank))
        self.maps = nn.Parameter(torch.empty(config.length, config.readout_rank, config.hidden_size))
        self.shared = nn.Linear(config.vector_size, config.hidden_size, bias=False)

    def init_own_weights(self) -> None:
        """Initialise directions and maps, which keep the variance."""
        for maps in (self.directions, self.maps):
            init.normal_(maps, std=maps.shape[1] ** -0.5)

    def forward(self, vectors: Float[Tensor, "batch numbers"]) -> Float[Tensor, "batch tokens width"]:
        """Return the decoder's inputs, (batch, tokens, width)."""
        return (vectors @ self.directions @ self.maps).transpose(0, 1) + self.shared(vectors)[:, None]


class Whitening(nn.Module):
    """`(vector - mean) @ matrix`, with mean zero and unit covariance over the vectors that it was fitted to."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("matrix", torch.eye(size))
        self.mean: Tensor
        self.matrix: Tensor

    def init_own_weights(self) -> None:
        """Initialise to the identity."""
        init.zeros_(self.mean)
        init.copy_(self.matrix, torch.eye(len(self.mean)))

    def forward(self, vectors: Float[Tensor, "batch numbers"]) -> Float[Tensor, "batch numbers"]:
        """Return whitened vectors in fp32; the norms of the input may be far from one."""
        with torch.autocast(vectors.device.type, enabled=False):
            return (vectors.float() - self.mean) @ self.matrix


class TokenPrior(nn.Module):
    """Logits of the tokens that occur in a text, linear in its vector, with a weight for each position."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vector_size)
        self.offsets = nn.Parameter(torch.empty(config.vocab_size))
        self.weight = nn.Linear(config.hidden_size, 1)

    def init_own_weights(self) -> None:
        """Initialise to no logits, weighted by PRIOR_WEIGHT everywhere."""
        for parameter in (self.table.weight, self.offsets, self.weight.weight):
            init.zeros_(parameter)
        init.constant_(self.weight.bias, PRIOR_WEIGHT)

    def forward(
        self,
        hidden: Float[Tensor, "batch tokens width"],
        vectors: Float[Tensor, "batch numbers"],
        classes: Int[Tensor, " classes"] | slice = slice(None),
    ) -> Float[Tensor, "batch tokens classes"]:
        """Return logits (batch, tokens, classes) of whitened vectors, by default of all classes."""
        logits = nn.functional.linear(vectors, self.table.weight[classes], self.offsets[classes])
        return self.weight(hidden) * logits[:, None]


def drawn_classes(
    labels: Labels, num_classes: int, count: int
) -> tuple[Int[Tensor, " classes"], Float[Tensor, " classes"], Labels]:
    """Draw classes that stand for all classes in the cross-entropy of a batch: its targets, and `count` others.

    Args:
        labels: (batch, tokens).
        num_classes: number of classes.
        count: others that are drawn.

    Returns:
        The classes; the logarithm of how many classes each stands for; the labels as places among those classes.
    """
    target_mask = labels != IGNORE_INDEX
    targets, places = labels[target_mask].unique(return_inverse=True)
    unseen = torch.ones(num_classes, dtype=torch.bool, device=labels.device).index_fill_(0, targets, False).nonzero()
    others = unseen[:, 0][torch.randperm(len(unseen), device=labels.device)[:count]]
    weights = torch.zeros(len(targets) + len(others), device=labels.device)
    weights[len(targets) :] = math.log(max(1, len(unseen)) / max(1, len(others)))
    return torch.cat([targets, others]), weights, labels.masked_scatter(target_mask, places)


class ProbeDecoder(MemlmModel):
    """Predicts the tokens of a text from one vector of a frozen encoder, all at once or from left to right."""

    config: ProbeConfig
    config_class = ProbeConfig
    main_input_name = "vectors"

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__(config)
        self.whitening = Whitening(config.vector_size)
        self.readout = PositionReadout(config)
        self.decoder = build_backbone(config, num_layers=config.num_layers, length=config.length)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        # the last row stands before the first token
        self.embed_tokens = nn.Embedding(config.vocab_size + 1, config.hidden_size) if config.reads_tokens else None
        self.prior = TokenPrior(config) if config.reads_tokens else None
        # transformers would pick a loss from the class name
        self.loss_type = "ForMaskedLM"
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output layer."""
        return self.lm_head

    def decode(
        self, vectors: Float[Tensor, "batch numbers"], tokens: Int[Tensor, "batch given"] | None = None
    ) -> Float[Tensor, "batch tokens vocabulary"]:
        """Return the logits (batch, length, vocabulary), or with `reads_tokens` (batch, given + 1, vocabulary).

        Args:
            vectors: (batch, numbers).
            tokens: (batch, given), the first tokens of each text, at most length - 1; of a decoder that reads them.

        Raises:
            MemoryShapeError: vectors of another width than the probe reads.
        """
        return self._logits(*self._hidden(vectors, tokens))

    def _hidden(
        self, vectors: Float[Tensor, "batch numbers"], tokens: Int[Tensor, "batch given"] | None
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch numbers"]]:
        """Return the decoder's output, and the whitened vectors that it read."""
        if vectors.shape[1] != self.config.vector_size:
            raise MemoryShapeError(
                f"vectors of {vectors.shape[1]} numbers do not fit a probe of {self.config.vector_size}; "
                "probe vectors of one encoder at a time."
            )
        white = self.whitening(vectors)
        if self.training and self.config.vector_noise:
            white = white + self.config.vector_noise * torch.randn_like(white)
        inputs = self.readout(white)
        if self.embed_tokens is None:
            return self.decoder(inputs), white
        given = white.new_empty(len(white), 0, dtype=torch.long) if tokens is None else tokens
        read = self.embed_tokens(nn.functional.pad(given, (1, 0), value=self.config.vocab_size))
        return self.decoder(inputs[:, : read.shape[1]] + read), white

    def _logits(
        self,
        hidden: Float[Tensor, "batch tokens width"],
        white: Float[Tensor, "batch numbers"],
        classes: Int[Tensor, " classes"] | slice = slice(None),
    ) -> Float[Tensor, "batch tokens classes"]:
        """Return the logits of all classes, or of some."""
        logits = nn.functional.linear(hidden, self.lm_head.weight[classes], self.lm_head.bias[classes])
        return logits if self.prior is None else logits + self.prior(hidden, white, classes)

    def teacher_forced(self, vectors: Float[Tensor, "batch numbers"], labels: Labels) -> Logits:
        """Return the logits (batch, length, vocabulary), of a decoder that reads tokens behind the true ones."""
        return self.decode(vectors, self._read(labels))

    def _read(self, labels: Labels) -> Int[Tensor, "batch given"] | None:
        return labels[:, :-1].clamp(min=0) if self.config.reads_tokens else None

    def forward(
        self,
        vectors: Float[Tensor, "batch numbers"],
        labels: Labels | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AutoencoderOutput:
        """Decode vectors, and compute the loss if there are labels, which are also the tokens that are read.

        Args:
            vectors: (batch, numbers).
            labels: (batch, length), the target of each position or IGNORE_INDEX.
            num_items_in_batch: number of targets over all accumulated batches, as Trainer counts them.
            kwargs: ignored; Trainer passes settings of other models.

        Raises:
            MemoryShapeError: vectors of another width than the probe reads.
            UserError: no label is a target.
        """
        if labels is None:
            return AutoencoderOutput(logits=self.decode(vectors))
        hidden, white = self._hidden(vectors, self._read(labels))
        drawn = self.config.candidates
        if self.training and drawn is not None and 2 * drawn < self.config.vocab_size:
            classes, weights, labels = drawn_classes(labels, self.config.vocab_size, drawn)
            logits = self._logits(hidden, white, classes) + weights
        else:
            logits = self._logits(hidden, white)
        return AutoencoderOutput(loss=mean_loss(logits, labels, num_items_in_batch), logits=logits)

    @torch.inference_mode()
    def write(self, vectors: Float[Tensor, "batch numbers"], *, beams: int = 1) -> Int[Tensor, "batch tokens"]:
        """Return the likeliest text of each vector, (batch, length), from left to right; never class 0.

        Args:
            vectors: (batch, numbers).
            beams: beginnings that are followed at once; 1 takes the likeliest token at each position.
        """
        batch = torch.arange(len(vectors))[:, None]
        repeated = vectors.repeat_interleave(beams, 0)
        texts = torch.empty(len(vectors), beams, 0, dtype=torch.long)
        # all beams are the same before the first token
        scores = torch.full((len(vectors), beams), -torch.inf).index_fill_(1, torch.tensor([0]), 0.0)
        for _ in range(self.config.length):
            hidden, white = self._hidden(repeated, texts.flatten(0, 1))
            logits = self._logits(hidden[:, -1:], white)[:, 0]
            logits[:, 0] = -torch.inf
            every = scores[..., None] + logits.log_softmax(-1).unflatten(0, (-1, beams))
            scores, chosen = every.flatten(1).topk(beams)
            texts = torch.cat(
                [texts[batch, chosen // self.config.vocab_size], chosen[..., None] % self.config.vocab_size], 2
            )
        return texts[:, 0]
