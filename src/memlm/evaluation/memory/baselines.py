"""Baselines of a memory model: the same chunks without memories, and with the memories of another document."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.models import ChunkReader

CONTEXTS = ("memory", "no_memory", "other_memory")
"""Substitutes for the earlier chunks of a document: its memories, nothing, or the memories of another document."""


def logits_with(
    model: ChunkReader,
    input_ids: Int[Tensor, "rows tokens"],
    attention_mask: Int[Tensor, "rows tokens"],
    *,
    context: str,
    others: PackedRows,
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Return the logits of rows of documents on the CPU.

    Args:
        model: the memory model.
        input_ids: (rows, tokens).
        attention_mask: (rows, tokens).
        context: one of CONTEXTS.
        others: for each row, the row whose memories stand for its own with "other_memory".
    """
    device = model.device
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}
    if context == "no_memory":
        return model(**inputs, use_memory=False).logits.cpu()
    if context == "other_memory":
        memories = model.encode(others.input_ids.to(device), others.attention_mask.to(device))
        return model(**inputs, memories=memories).logits.cpu()
    return model(**inputs).logits.cpu()


def rows_of_others(rows: PackedRows) -> Int[Tensor, " rows"]:
    """Return the number of a full row of another document for each row.

    Rows are paired at a distance, since neighbours may come from similar documents. Where all rows belong to one
    document, its other rows are used.
    """
    full = rows.attention_mask.bool().all(1).nonzero()[:, 0]
    full = full if len(full) else torch.arange(len(rows))
    owners = rows.document_index[full]
    found = torch.empty(len(rows), dtype=torch.long)
    for row in range(len(rows)):
        turned = torch.arange(len(full)).roll(-(row + len(full) // 2))
        others = turned[owners[turned] != rows.document_index[row]]
        found[row] = full[others[0] if len(others) else turned[0]]
    return found
