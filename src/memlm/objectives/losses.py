"""Cross-entropy per token, and its mean over the tokens that were asked for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import UserError
from memlm.shapes import IGNORE_INDEX, Labels, Logits


def token_nats(logits: Logits, labels: Labels) -> Float[Tensor, "batch tokens"]:
    """Cross-entropy in nats at every position, zero where the label is IGNORE_INDEX.

    Args:
        logits: (batch, tokens, vocabulary), aligned with the labels; nothing is shifted here.
        labels: (batch, tokens).
    """
    # fp32: a bf16 log-sum-exp is off in the third digit
    flat = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return flat.view_as(labels)


def mean_loss(logits: Logits, labels: Labels, num_items: Tensor | int | None = None) -> Float[Tensor, ""]:
    """Sum of nats over the number of tokens asked for.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens).
        num_items: tokens asked for over all accumulated batches and devices; counted here where None.

    Raises:
        UserError: no label asks for anything.
    """
    asked = (labels != IGNORE_INDEX).sum() if num_items is None else torch.as_tensor(num_items, device=labels.device)
    if not bool(asked):
        raise UserError(f"all {labels.numel()} labels are {IGNORE_INDEX} (ignored); there is nothing to learn from.")
    return token_nats(logits, labels).sum() / asked
