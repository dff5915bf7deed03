"""No text is changed by going through tokens, and bytes are counted from the raw pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from memlm.data import decode_ids, encode_texts, load_tokenizer, token_byte_lengths, train_tokenizer
from memlm.data.tokenizer import gguf_option
from memlm.errors import DataError, TokenizerError

TEXTS = ["plain words", "a <eos> b<pad>", "你好 🙂 e\u0301", "\x00\x01 tab\t\r\n  two  spaces ", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_hostile_texts_come_back(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert decode_ids(tokenizer, encode_texts(tokenizer, [text])[0]) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_every_text_comes_back_and_has_its_bytes(text: str) -> None:
    ids = encode_texts(SHARED, [text])[0]
    assert decode_ids(SHARED, ids) == text
    assert int(token_byte_lengths(SHARED)[torch.tensor(ids, dtype=torch.long)].sum()) == len(text.encode())


SHARED = train_tokenizer(["some words to merge " * 20], vocab_size=280)


def test_special_tokens_are_apart_and_never_made_of_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert not {0, 1} & set(encode_texts(tokenizer, ["<pad><eos>"])[0])
    assert token_byte_lengths(tokenizer)[:2].tolist() == [0, 0]


def test_it_is_an_ordinary_tokenizer_on_disk(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert encode_texts(loaded, TEXTS) == encode_texts(tokenizer, TEXTS)


def test_training_is_deterministic() -> None:
    texts = ["the same text again and again " * 9]
    one, other = (train_tokenizer(texts, vocab_size=300).get_vocab() for _ in range(2))
    assert one == other


def test_wordpiece_and_metaspace_bytes() -> None:
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "re": 1, "##ad": 2}, unk_token="[UNK]"))
    fast = PreTrainedTokenizerFast(tokenizer_object=wordpiece, unk_token="[UNK]")
    assert token_byte_lengths(fast).tolist() == [0, 3, 2]
    metaspace = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2, "<0x0A>": 3}, [("▁", "a")]))
    metaspace.decoder = decoders.Metaspace()
    assert token_byte_lengths(PreTrainedTokenizerFast(tokenizer_object=metaspace)).tolist() == [1, 1, 2, 1]


def test_bytes_of_a_vocabulary_with_holes() -> None:
    holed = Tokenizer(models.BPE({"a": 0, "b": 3}, []))
    holed.decoder = decoders.Metaspace()
    assert token_byte_lengths(PreTrainedTokenizerFast(tokenizer_object=holed)).tolist() == [1, 0, 0, 1]


def test_errors() -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size \(200\) must be at least 258"):
        train_tokenizer(["a"], vocab_size=200)
    with pytest.raises(TokenizerError, match="cannot load a tokenizer from '/nowhere'"):
        load_tokenizer("/nowhere")
    with pytest.raises(DataError, match=r"texts\[1\] holds half of a surrogate pair"):
        encode_texts(SHARED, ["a", "\ud800"])


def test_a_folder_with_one_gguf_file_names_it(tmp_path: Path) -> None:
    assert gguf_option(tmp_path) == {}
    assert gguf_option("some/hub-id") == {}
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert gguf_option(tmp_path) == {"gguf_file": "a.gguf"}
    (tmp_path / "config.json").write_text("{}")
    assert gguf_option(tmp_path) == {}


def test_several_gguf_files_need_a_choice(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(TokenizerError, match="holds 2 GGUF files"):
        load_tokenizer(tmp_path)
