"""Rows of tokens for training, validation and held-out figures, split by whole document before anything else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import (
    Document,
    PackedRows,
    TrainValTestSplit,
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


@dataclass(frozen=True)
class PreparedData:
    """The text of a run as rows of tokens.

    Attributes:
        tokenizer: trained on the training half, or given.
        train_rows: one stream across documents, a share of rows cut short.
        validation_rows: as held_out_rows, of the documents that choices are made on.
        held_out_rows: document by document, the last row of each padded.
        held_out: the documents themselves.
        unigram_counts: (vocabulary,), how often each id occurs in the training rows.
        record: source, fingerprint and counts, as the run folder keeps them.
    """

    tokenizer: PreTrainedTokenizerBase
    train_rows: PackedRows
    validation_rows: PackedRows
    held_out_rows: PackedRows
    held_out: tuple[Document, ...]
    unigram_counts: Int[Tensor, " vocabulary"]
    record: dict[str, str | int | float | list[str]]


def read_documents(config: DataConfig) -> list[Document]:
    """Return the documents of a run; where there are fewer than three, they are cut into about 40 pieces.

    Raises:
        DataError: the source cannot be read.
    """
    documents = load_documents(
        config.text, text_field=config.text_field, max_documents=config.max_documents, strict=config.strict
    )
    if len(documents) < 3:  # training, validation and held-out figures need one each
        size = max(256, sum(len(document.text) for document in documents) // 40)
        documents = [piece for document in documents for piece in pieces_of(document, piece_bytes=size)]
    return documents


def read_split(config: DataConfig, seed: int) -> TrainValTestSplit:
    """Return the documents of a run in three parts; the same settings give the same parts.

    Raises:
        DataError: the source cannot be read or is too small.
    """
    seed = seed if config.split_seed is None else config.split_seed
    return split_documents(read_documents(config), held_out=config.held_out, validation=config.validation, seed=seed)


def prepare_data(
    config: DataConfig, *, chunk_length: int, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreparedData:
    """Read, split, tokenize and pack the text of a run.

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
    if tokenizer is None and config.tokenizer is not None:
        tokenizer = load_tokenizer(config.tokenizer)
    tokenizer = tokenizer or train_tokenizer((d.text for d in split.train), vocab_size=config.vocab_size)
    # every document ends with an eos; a text shorter than one chunk cannot be packed
    train = pack(split.train, tokenizer, row_length=chunk_length, across_documents=True)
    validation, held_out = (
        pack(documents, tokenizer, row_length=chunk_length, across_documents=False)
        for documents in (split.validation, split.held_out)
    )
    counts = torch.bincount(train.input_ids.flatten(), minlength=len(tokenizer))
    short = shorten_rows(
        train, share=config.short_rows, seed=seed, pad_token_id=pad_id(tokenizer), eos_token_id=eos_id(tokenizer)
    )
    record = _record(config, split, train, held_out, tokenizer)
    return PreparedData(tokenizer, short, validation, held_out, split.held_out, counts, record)


def _record(
    config: DataConfig,
    split: TrainValTestSplit,
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
        "fingerprint_validation": fingerprint(split.validation),
        "fingerprint_held_out": fingerprint(split.held_out),
        "train_documents": len(split.train),
        "validation_documents": len(split.validation),
        "held_out_documents": len(split.held_out),
        "train_tokens": int(train.attention_mask.sum()),
        "held_out_tokens": int(held_out.attention_mask.sum()),
        "held_out_bytes": size,
        "vocabulary": len(tokenizer),
        "held_out_ids": [d.id for d in split.held_out],
    }
