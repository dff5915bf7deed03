"""Retrieval: each query must find its own passage among the batch's (paper 1.9; InfoNCE, van den Oord et al. 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import UserError


def info_nce(
    queries: Float[Tensor, "batch width"], passages: Float[Tensor, "batch width"], *, temperature: float = 0.02
) -> Float[Tensor, " batch"]:
    """Cross-entropy in nats of picking each query's passage by cosine.

    Args:
        queries: (batch, width); row i belongs to passage i.
        passages: (batch, width); the other rows are the negatives.
        temperature: cosines are divided by it.

    Raises:
        UserError: a temperature that is not above zero.
    """
    if not temperature > 0:
        raise UserError(f"temperature ({temperature}) must be above 0; the paper uses 0.02.")
    # fp32: cosines divided by 0.02 leave bf16 one digit
    cosines = F.normalize(queries.float(), dim=-1) @ F.normalize(passages.float(), dim=-1).T
    own = torch.arange(len(queries), device=queries.device)
    return F.cross_entropy(cosines / temperature, own, reduction="none")
