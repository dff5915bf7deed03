"""Hidden states of a text become one vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Hidden = Float[Tensor, "texts tokens width"]
Mask = Int[Tensor, "texts tokens"]
Pooled = Float[Tensor, "texts width"]


def last(hidden: Hidden, mask: Mask) -> Pooled:
    """The state of each text's last token."""
    return _at(hidden, mask, 1)


def penultimate(hidden: Hidden, mask: Mask) -> Pooled:
    """The state of the last token but one, or of the only one (the paper's choice for causal models)."""
    return _at(hidden, mask, 2)


def mean(hidden: Hidden, mask: Mask) -> Pooled:
    """The mean over a text's tokens."""
    weights = mask.to(hidden.dtype)[..., None]
    return (hidden.masked_fill(~mask.bool()[..., None], 0) * weights).sum(1) / weights.sum(1).clamp(min=1)


def cls(hidden: Hidden, mask: Mask) -> Pooled:
    """The state of the first token."""
    first = mask.long().argmax(1)
    return hidden[torch.arange(len(hidden)), first]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": last,
    "penultimate": penultimate,
    "mean": mean,
    "cls": cls,
}


def _at(hidden: Tensor, mask: Tensor, from_end: int) -> Tensor:
    """The state of the token that stands so many from the end of the text, on whichever side the padding is."""
    places = mask.long().cumsum(1)
    total = places[:, -1:]
    wanted = (total - from_end + 1).clamp(min=1)
    column = ((places == wanted) & mask.bool()).long().argmax(1)
    return hidden[torch.arange(len(hidden)), column]
