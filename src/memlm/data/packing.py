"""Rows of tokens of one length, cut from documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data.corpus import Document
from memlm.data.tokenizer import encode_texts, eos_id, pad_id
from memlm.errors import DataError


@dataclass(frozen=True)
class PackedRows:
    """Rows of tokens; padding follows the text of each row.

    Attributes:
        input_ids: (rows, tokens).
        attention_mask: (rows, tokens), 1 for text.
        document_index: (rows,), the document of each row, or of its first token.
        document_ids: ids of the documents.
    """

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    document_index: Int[Tensor, " rows"]
    document_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    def select(self, rows: Int[Tensor, " chosen"]) -> PackedRows:
        """Return some rows; documents keep their index."""
        return PackedRows(self.input_ids[rows], self.attention_mask[rows], self.document_index[rows], self.document_ids)

    def sample(self, count: int, *, seed: int) -> PackedRows:
        """Return at most `count` random rows in their original order."""
        generator = torch.Generator().manual_seed(seed)
        return self.select(torch.randperm(len(self), generator=generator)[:count].sort().values)

    def batches(self, batch_size: int) -> Iterator[PackedRows]:
        """Yield consecutive rows, `batch_size` at a time."""
        for rows in torch.arange(len(self)).split(batch_size):
            yield self.select(rows)


def pack(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, row_length: int, across_documents: bool
) -> PackedRows:
    """Tokenize documents, end each with eos, and cut them into rows.

    With `across_documents` all documents are joined and only full rows are returned (for training); otherwise every row
    belongs to one document and the last row of each is padded (for evaluation).

    Raises:
        DataError: the text does not fill one row, or row_length is below 1.
    """
    if row_length < 1:
        raise DataError(f"row_length ({row_length}) must be at least 1.")
    ended = [[*ids, eos_id(tokenizer)] for ids in encode_texts(tokenizer, [d.text for d in documents])]
    names = tuple(d.id for d in documents)
    if not across_documents:
        ids, mask, counts = _padded_pieces(ended, pad_id(tokenizer), row_length)
        return PackedRows(ids, mask, torch.repeat_interleave(torch.arange(len(ended)), torch.tensor(counts)), names)
    total = sum(map(len, ended))
    if total < row_length:
        need = f"one chunk of {row_length}; give more text, or a smaller chunk_length"
        raise DataError(f"the text has {total} tokens, fewer than {need}.")
    stream = torch.cat([torch.tensor(ids, dtype=torch.long) for ids in ended])
    owners = torch.repeat_interleave(torch.arange(len(ended)), torch.tensor([len(ids) for ids in ended]))
    rows = total // row_length
    ids = stream[: rows * row_length].view(rows, row_length)
    return PackedRows(ids, torch.ones_like(ids), owners[: rows * row_length : row_length].clone(), names)


def chunk_texts(
    texts: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase, *, chunk_length: int
) -> tuple[Int[Tensor, "chunks length"], Int[Tensor, "chunks length"], list[int]]:
    """Cut lists of tokens into one batch of chunks; a chunk that is not full ends with eos.

    Returns:
        Token ids and mask, (chunks, length), and the number of chunks of each text.
    """
    end = eos_id(tokenizer)
    ended = [[*ids, end] if len(ids) % chunk_length else ids for ids in texts]
    return _padded_pieces(ended, pad_id(tokenizer), chunk_length)


def _padded_pieces(texts: Sequence[Sequence[int]], pad: int, length: int) -> tuple[Tensor, Tensor, list[int]]:
    """Cut each text into rows and pad its last one; return ids, mask, and the number of rows of each text."""
    counts = [-(-len(ids) // length) for ids in texts]
    ids = torch.full((sum(counts), length), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    first = 0
    for tokens, count in zip(texts, counts, strict=True):
        ids[first : first + count].view(-1)[: len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        mask[first : first + count].view(-1)[: len(tokens)] = 1
        first += count
    return ids, mask, counts


def shorten_rows(rows: PackedRows, *, share: float, seed: int, pad_token_id: int, eos_token_id: int) -> PackedRows:
    """Cut a share of the rows at a random length and end them with eos, to train memories of short texts too.

    Rows that are not full stay as they are.

    Raises:
        DataError: the share lies outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise DataError(f"short_rows ({share}) must lie between 0 and 1; it is the share of rows cut short.")
    generator = torch.Generator().manual_seed(seed)
    count, length = rows.input_ids.shape
    chosen = (torch.rand(count, generator=generator) < share) & rows.attention_mask.bool().all(1)
    lengths = torch.randint(1, length + 1, (count,), generator=generator)
    lengths = torch.where(chosen, lengths, torch.full_like(lengths, length + 1))
    positions = torch.arange(length)
    ids = rows.input_ids.masked_fill(positions == lengths[:, None] - 1, eos_token_id)
    beyond = positions >= lengths[:, None]
    return PackedRows(
        ids.masked_fill(beyond, pad_token_id),
        rows.attention_mask.masked_fill(beyond, 0),
        rows.document_index,
        rows.document_ids,
    )
