"""Corpora, tokenizers and rows of tokens."""

from memlm.data.corpus import (
    Document,
    TrainValTestSplit,
    bundled_notice,
    fingerprint,
    pieces_of,
    split_documents,
    texts_fingerprint,
)
from memlm.data.packing import PackedRows, chunk_texts, pack, shorten_rows
from memlm.data.passages import Passages, SeenVocabulary, cut_passages, near_duplicates, passage_rows
from memlm.data.sources import load_documents, stream_documents
from memlm.data.synthetic import Planted, digit_ids, made_up_notes, ordinary_ids, plant_number, plant_pairs, random_rows
from memlm.data.tokenizer import (
    check_vocabulary,
    decode_ids,
    decode_piece,
    encode_texts,
    encode_with_ends,
    eos_id,
    first_token_id,
    load_tokenizer,
    pad_id,
    token_byte_lengths,
    train_tokenizer,
)

__all__ = [
    "Document",
    "PackedRows",
    "Passages",
    "Planted",
    "SeenVocabulary",
    "TrainValTestSplit",
    "bundled_notice",
    "check_vocabulary",
    "chunk_texts",
    "cut_passages",
    "decode_ids",
    "decode_piece",
    "digit_ids",
    "encode_texts",
    "encode_with_ends",
    "eos_id",
    "fingerprint",
    "first_token_id",
    "load_documents",
    "load_tokenizer",
    "made_up_notes",
    "near_duplicates",
    "ordinary_ids",
    "pack",
    "pad_id",
    "passage_rows",
    "pieces_of",
    "plant_number",
    "plant_pairs",
    "random_rows",
    "shorten_rows",
    "split_documents",
    "stream_documents",
    "texts_fingerprint",
    "token_byte_lengths",
    "train_tokenizer",
]
