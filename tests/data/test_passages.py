"""Passages cut from documents, the tokens they ask for, and what counts as nearly the same."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.data import Document, PackedRows, SeenVocabulary, cut_passages, encode_texts, near_duplicates, passage_rows
from memlm.errors import DataError
from tests.conftest import speech

DOCUMENTS = [Document(f"d{i}", speech(i)) for i in range(4)]


def test_passages_are_whole_stretches_of_their_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    passages = cut_passages(DOCUMENTS, tokenizer, length=8, limit=20, seed=0)
    assert len(passages) == 20
    for text, index in zip(passages.texts, passages.document_index.tolist(), strict=True):
        assert text in DOCUMENTS[index].text
    rows = passage_rows(passages, tokenizer, length=8)
    assert rows.input_ids.shape == (20, 8)
    assert rows.attention_mask.sum() >= 20 * 7  # a stretch read alone may split its first word otherwise
    again = cut_passages(DOCUMENTS, tokenizer, length=8, limit=20, seed=0)
    other = cut_passages(DOCUMENTS, tokenizer, length=8, limit=20, seed=1)
    assert again.texts == passages.texts != other.texts


def test_passages_do_not_overlap(tokenizer: PreTrainedTokenizerFast) -> None:
    document = DOCUMENTS[0]
    everything = cut_passages([document], tokenizer, length=16, limit=10**6, seed=0)
    tokens = len(encode_texts(tokenizer, [document.text])[0])
    assert len(everything) == tokens // 16
    assert document.text.startswith("".join(everything.texts))


def test_short_documents_are_refused_with_both_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"no document of 1 has 64 tokens"):
        cut_passages([Document("a", "short")], tokenizer, length=64, limit=1, seed=0)


def packed(rows: list[list[int]]) -> PackedRows:
    ids = torch.tensor(rows)
    return PackedRows(ids, torch.ones_like(ids), torch.zeros(len(ids), dtype=torch.long), ("d",))


def test_classes_are_those_of_training_and_one_for_the_rest() -> None:
    vocabulary = SeenVocabulary.of(packed([[7, 3, 7, 900]]))
    assert len(vocabulary) == 4
    assert vocabulary.classes(torch.tensor([3, 7, 900, 8, 0, 5000])).tolist() == [1, 2, 3, 0, 0, 0]
    assert vocabulary.token_ids(torch.tensor([1, 2, 3])).tolist() == [3, 7, 900]


def test_near_duplicates_share_half_their_runs() -> None:
    train = packed([list(range(16)), list(range(100, 116))])
    same, half, other = list(range(16)), [*range(100, 113), 1, 2, 3], list(range(50, 66))
    assert near_duplicates(train, packed([same, half, other])) == 2
