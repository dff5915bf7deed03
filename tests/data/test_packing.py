"""Rows hold every token once, in order, and belong to the right document."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.data import Document, chunk_texts, encode_texts, pack, random_rows, shorten_rows
from memlm.errors import DataError

DOCUMENTS = [Document("a", "the people of this nation"), Document("b", "peace"), Document("c", "war and harvest")]


def test_rows_across_documents_are_one_stream(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(DOCUMENTS, tokenizer, row_length=5, across_documents=True)
    stream = [i for ids in encode_texts(tokenizer, [d.text for d in DOCUMENTS]) for i in [*ids, 1]]
    assert rows.input_ids.flatten().tolist() == stream[: 5 * len(rows)]
    assert rows.attention_mask.all()


def test_rows_per_document_rejoin_to_it(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(DOCUMENTS, tokenizer, row_length=5, across_documents=False)
    for index, ids in enumerate(encode_texts(tokenizer, [d.text for d in DOCUMENTS])):
        own = rows.select((rows.document_index == index).nonzero().flatten())
        assert own.input_ids[own.attention_mask.bool()].tolist() == [*ids, 1]
    assert rows.document_ids == ("a", "b", "c")


def test_texts_are_cut_into_chunks_and_ended(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, mask, counts = chunk_texts([[5, 6, 7, 4], [], [8, 9, 7], [3]], tokenizer, chunk_length=3)
    assert counts == [2, 0, 1, 1]
    assert ids.tolist() == [[5, 6, 7], [4, 1, 0], [8, 9, 7], [3, 1, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]]


def test_shortened_rows_end_with_eos_and_the_rest_is_untouched(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(DOCUMENTS * 40, tokenizer, row_length=6, across_documents=True)
    before = rows.input_ids.clone()
    cut = shorten_rows(rows, share=0.5, seed=0, pad_token_id=0, eos_token_id=1)
    lengths = cut.attention_mask.sum(1)
    last = cut.input_ids.gather(1, lengths[:, None] - 1).flatten()
    assert torch.equal(rows.input_ids, before)
    assert (last[lengths < 6] == 1).all()
    assert 0.3 < (lengths < 6).float().mean() < 0.55
    assert (cut.input_ids[cut.attention_mask == 0] == 0).all()
    untouched = (cut.input_ids == before).all(1)
    assert untouched.float().mean() > 0.4


def test_random_rows_are_uniform_and_leave_out_what_they_should() -> None:
    rows = random_rows(200, 50, 10, seed=0, exclude=[0, 1])
    counts = torch.bincount(rows.input_ids.flatten(), minlength=10)
    assert counts[:2].sum() == 0
    assert (counts[2:] > 1000).all()
    with pytest.raises(DataError, match="all 2 token ids are excluded"):
        random_rows(1, 1, 2, seed=0, exclude=[0, 1])


def test_too_little_text(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match=r"tokens, fewer than one chunk of 900"):
        pack(DOCUMENTS, tokenizer, row_length=900, across_documents=True)
    with pytest.raises(DataError, match=r"short_rows \(2.0\)"):
        shorten_rows(random_rows(1, 1, 2, seed=0), share=2.0, seed=0, pad_token_id=0, eos_token_id=1)
