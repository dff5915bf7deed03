"""Conversions of documents to chunks of one length; no function changes a tensor in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import UserError
from memlm.shapes import TokenIds, TokenMask


@dataclass(frozen=True)
class Chunks:
    """Rows cut into chunks; padding follows the text of each row.

    Attributes:
        input_ids: (batch, chunks, chunk_length).
        attention_mask: (batch, chunks, chunk_length), 1 for text.
    """

    input_ids: Int[Tensor, "batch chunks length"]
    attention_mask: Int[Tensor, "batch chunks length"]


def text_first(attention_mask: TokenMask) -> Int[Tensor, "batch tokens"] | None:
    """Return the order of columns that moves text before padding, or None if no column moves.

    Args:
        attention_mask: (batch, tokens), nonzero for text.

    Returns:
        Indices (batch, tokens) for `gather`; the text keeps its order.
    """
    readable = attention_mask.bool()
    if not bool((readable[:, 1:] & ~readable[:, :-1]).any()):
        return None
    return (~readable).long().argsort(dim=1, stable=True)


def in_input_order(
    x: Float[Tensor, "batch tokens vocabulary"], order: Int[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Move the columns that `text_first` has ordered back to where they were."""
    return x if order is None else x.gather(1, order.argsort(dim=1)[..., None].expand_as(x))


def left_align(input_ids: TokenIds, attention_mask: TokenMask) -> tuple[TokenIds, TokenMask]:
    """Move the text of every row before its padding.

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens), nonzero for text at any positions.
    """
    order = text_first(attention_mask)
    if order is None:
        return input_ids, attention_mask
    return input_ids.gather(1, order), attention_mask.gather(1, order)


def split(input_ids: TokenIds, attention_mask: TokenMask, *, chunk_length: int, pad_token_id: int) -> Chunks:
    """Cut rows into chunks and pad the last one.

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens), nonzero for text, with padding on either side.
        chunk_length: tokens per chunk.
        pad_token_id: the id at positions without text.

    Raises:
        UserError: chunk_length is below 1.
    """
    if chunk_length < 1:
        raise UserError(f"chunk_length ({chunk_length}) must be at least 1.")
    ids, mask = left_align(input_ids, attention_mask)
    ids = ids.masked_fill(~mask.bool(), pad_token_id)
    missing = -ids.shape[1] % chunk_length
    ids = F.pad(ids, (0, missing), value=pad_token_id)
    mask = F.pad(mask.long(), (0, missing))
    shape = (len(ids), -1, chunk_length) if ids.numel() else (len(ids), 0, chunk_length)
    return Chunks(ids.reshape(shape), mask.reshape(shape))


def padded(
    rows: list[list[int]], *, length: int, pad_token_id: int
) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
    """Return lists of at most `length` tokens as one tensor, padded on the right, and its mask (1 for text)."""
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows], dtype=torch.long)[:, None]
    ids = torch.full(mask.shape, pad_token_id)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids, mask.long()
