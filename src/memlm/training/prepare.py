"""Text becomes rows to train on and rows held out, split by whole document before anything else sees it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import (
    Document,
    PackedRows,
    Split,
    eos_id,
    fingerprint,
    load_documents,
    load_tokenizer,
    pack,
    pad_id,
    pieces_of,
    shorten_rows,
    split_documents,
    token_byte_lengths,
    train_tokenizer,
)
from memlm.errors import DataError
from memlm.training.config import DataConfig

_PIECES = 40
"""A single document is cut into about this many, so that some can be held out."""


@dataclass(frozen=True)
class PreparedData:
    """What a run reads.

    Attributes:
        tokenizer: trained on the training half, or given.
        train_rows: one stream across documents, a share of rows cut short.
        held_out_rows: document by document, the last row of each padded.
        held_out: the documents themselves.
        unigram_counts: (vocabulary,), how often each id occurs in the training rows.
        record: source, fingerprint and counts, as the run folder keeps them.
    """

    tokenizer: PreTrainedTokenizerBase
    train_rows: PackedRows
    held_out_rows: PackedRows
    held_out: tuple[Document, ...]
    unigram_counts: Int[Tensor, " vocabulary"]
    record: dict[str, str | int | float | list[str]]


def read_documents(config: DataConfig) -> list[Document]:
    """The documents of a run; pieces of it where there is a single one.

    Raises:
        DataError: the source cannot be read.
    """
    documents = load_documents(config.text, text_field=config.text_field, max_documents=config.max_documents)
    if len(documents) == 1:
        size = len(documents[0].text)
        documents = pieces_of(documents[0], piece_bytes=max(256, size // _PIECES))
    return documents


def read_split(config: DataConfig, seed: int) -> Split:
    """The documents of a run on their two sides; the same settings give the same sides.

    Raises:
        DataError: the source cannot be read or is too small.
    """
    return split_documents(read_documents(config), held_out=config.held_out, seed=seed)


def prepare_data(
    config: DataConfig, *, chunk_length: int, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreparedData:
    """Read, split, tokenize and pack.

    Args:
        config: where the text is.
        chunk_length: tokens per row.
        seed: of the split and of the rows cut short.
        tokenizer: the one a resumed run already has.

    Raises:
        DataError: too little text for one chunk on either side.
        TokenizerError: the tokenizer cannot be loaded.
    """
    split = read_split(config, seed)
    tokenizer = tokenizer or _tokenizer(config, split)
    # every document ends with an eos; a text shorter than one chunk cannot be packed
    train = pack(split.train, tokenizer, row_length=chunk_length, across_documents=True)
    held_out = pack(split.held_out, tokenizer, row_length=chunk_length, across_documents=False)
    counts = torch.bincount(train.input_ids.flatten(), minlength=len(tokenizer))
    short = shorten_rows(
        train,
        share=config.short_rows,
        seed=seed,
        pad_token_id=pad_id(tokenizer),
        eos_token_id=eos_id(tokenizer),
    )
    return PreparedData(
        tokenizer, short, held_out, split.held_out, counts, _record(config, split, train, held_out, tokenizer)
    )


def _tokenizer(config: DataConfig, split: Split) -> PreTrainedTokenizerBase:
    if config.tokenizer is not None:
        return load_tokenizer(config.tokenizer)
    return train_tokenizer((d.text for d in split.train), vocab_size=config.vocab_size)


def _record(
    config: DataConfig,
    split: Split,
    train: PackedRows,
    held_out: PackedRows,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, str | int | float | list[str]]:
    sizes = token_byte_lengths(tokenizer)
    size = int((sizes[held_out.input_ids] * held_out.attention_mask).sum())
    if not size:
        raise DataError(f"the held-out half of '{config.text}' has {size} bytes; give more text.")
    return {
        "source": config.text,
        "fingerprint_train": fingerprint(split.train),
        "fingerprint_held_out": fingerprint(split.held_out),
        "train_documents": len(split.train),
        "held_out_documents": len(split.held_out),
        "train_tokens": int(train.attention_mask.sum()),
        "held_out_tokens": int(held_out.attention_mask.sum()),
        "held_out_bytes": size,
        "vocabulary": len(tokenizer),
        "held_out_ids": [d.id for d in split.held_out],
    }
