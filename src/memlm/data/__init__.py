"""Text in: corpora, tokenizers, rows of tokens."""

from memlm.data.corpus import (
    Document,
    Split,
    bundled_notice,
    fingerprint,
    load_documents,
    pieces_of,
    split_documents,
    stream_documents,
)
from memlm.data.packing import PackedRows, pack, shorten_rows
from memlm.data.synthetic import random_rows
from memlm.data.tokenizer import (
    decode_ids,
    encode_texts,
    eos_id,
    load_tokenizer,
    pad_id,
    token_byte_lengths,
    train_tokenizer,
)

__all__ = [
    "Document",
    "PackedRows",
    "Split",
    "bundled_notice",
    "decode_ids",
    "encode_texts",
    "eos_id",
    "fingerprint",
    "load_documents",
    "load_tokenizer",
    "pack",
    "pad_id",
    "pieces_of",
    "random_rows",
    "shorten_rows",
    "split_documents",
    "stream_documents",
    "token_byte_lengths",
    "train_tokenizer",
]
