"""Wrong inputs of a memory decoder end in one clear line that names the values and the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.checksums import ignoring_checksums
from memlm.cli import main
from memlm.data import Document
from memlm.errors import MemlmError
from memlm.evaluation.memory.context_gain import ContextGainSettings, context_gain
from memlm.models.slots import EncodingSettings, MemoryDecoder
from tests.conftest import speech
from tests.models.test_slots import decoder_of, ids

[TEXT] = ids(24)
Attempt = Callable[[MemoryDecoder], Any]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return MemoryDecoder(decoder_of("llama"), tokenizer, EncodingSettings(chunk_length=8, block_length=16))


def other(tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return MemoryDecoder(decoder_of("phi"), tokenizer)


ATTEMPTS: dict[str, tuple[Attempt, str]] = {
    "no text": (lambda m: m.encode([]), "there is no text"),
    "an empty text": (lambda m: m.encode(["a", ""]), "one of the texts is empty"),
    "a text beyond the positions": (lambda m: m.encode([TEXT * 11]), r"264 tokens .* \(256 positions\)"),
    "a token that the decoder does not have": (
        lambda m: m.encode([[5, 300]]),
        "300, of type int. is none of the model.s",
    ),
    "a negative token": (lambda m: m.encode([[-1]]), "-1, of type int. is none of the model's"),
    "a budget of no slots": (lambda m: m.memories([TEXT], slots=0), r"slots \(0\)"),
    "a ratio of 0": (lambda m: m.memories([TEXT], tokens_per_memory=0), r"tokens_per_memory \(0\)"),
    "a ratio below 1": (lambda m: m.encode([TEXT]).at(tokens_per_memory=0.5), r"\(0.5\)"),
    "an infinite ratio": (lambda m: m.encode([TEXT]).at(tokens_per_memory=float("inf")), r"\(inf\)"),
    "a ratio that is no number": (lambda m: m.encode([TEXT]).at(tokens_per_memory=float("nan")), r"\(nan\)"),
    "two budgets": (lambda m: m.memories([TEXT], slots=3, tokens_per_memory=2), "give either"),
    "no budget": (lambda m: m.memories([TEXT]), "give either"),
    "an unknown mode": (lambda m: m.encode([TEXT], mode="both"), r"mode \('both'\) must be 'joint' or 'chunks'"),
    "an unknown setting": (lambda m: m.encode([TEXT], chunk=8), "chunk_length"),
    "a chunk of no tokens": (lambda m: m.encode([TEXT], chunk_length=0), r"chunk_length \(0\)"),
    "blocks that cut chunks": (
        lambda m: m.encode([TEXT], mode="chunks", chunk_length=8, block_length=12),
        r"block_length \(12\) must be a multiple of chunk_length \(8\)",
    ),
    "more prompts than texts": (
        lambda m: m.inputs([TEXT, TEXT], m.memories([TEXT], slots=3)),
        "2 prompts do not fit memories of 1 texts",
    ),
    "memories of another decoder": (
        lambda m: m.read(other(m.tokenizer).memories([TEXT], slots=3)),
        "2 layers of 4 heads and the decoder has 2 of 2",
    ),
    "a context that no document has": (
        lambda m: context_gain(m, [Document("a", speech(1, 60))], ContextGainSettings(context=5000)),
        "none of 1 documents has the 5064 tokens",
    ),
    "a ratio that leaves no entry": (lambda _: ContextGainSettings(context=24, ratios=(12,)), "between 1 and 6"),
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_error_is_one_line(name: str, model: MemoryDecoder) -> None:
    attempt, words = ATTEMPTS[name]
    with pytest.raises(MemlmError, match=words) as caught:
        attempt(model)
    assert "\n" not in str(caught.value)


def saved(model: MemoryDecoder, folder: Path) -> Path:
    base = folder / "decoder"
    model.decoder.save_pretrained(base)
    model.tokenizer.save_pretrained(base)
    loaded = MemoryDecoder.from_pretrained(str(base))
    loaded.save_pretrained(folder / "memory")
    return folder / "memory"


def removed(folder: Path) -> None:
    for file in (folder.parent / "decoder").iterdir():
        file.unlink()


def changed(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "the decoder is gone": (removed, "cannot load a decoder"),
    "another decoder": (lambda f: changed(f, decoder_identity="0" * 64), "is not the one"),
    "adapters are missing": (lambda f: changed(f, lora={"rank": 2}), "model.safetensors"),
    "an unknown setting": (lambda f: changed(f, colour="red"), "unknown setting 'colour'"),
    "a wrong setting of the encoding": (lambda f: changed(f, encoding={"mode": "both"}), r"mode \('both'\)"),
    "an unknown setting of the encoding": (lambda f: changed(f, encoding={"colour": 1}), "settings of the encoding"),
    "no decoder named": (lambda f: changed(f, decoder_path=None), "names no decoder"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_told(name: str, model: MemoryDecoder, tmp_path: Path) -> None:
    damage, words = DAMAGES[name]
    folder = saved(model, tmp_path)
    damage(folder)
    with ignoring_checksums(), pytest.raises(MemlmError, match=words) as caught:
        MemoryDecoder.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


def test_a_decoder_without_special_tokens_works(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert bare.bos_token_id is None
    assert bare.pad_token_id is None
    model = MemoryDecoder(decoder_of("llama"), bare)
    assert torch.isfinite(model.decoder(**model.inputs([TEXT], model.memories([TEXT], slots=3))).logits).all()


def test_a_training_without_enough_text_or_with_another_kind_of_model_is_refused(
    model: MemoryDecoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(model, tmp_path)
    (tmp_path / "short.txt").write_text("A text of a few words.")
    base = ["train", "memory-pretrained", "--out", str(tmp_path / "run"), "--decoder"]
    for words, told in (
        ([str(tmp_path / "decoder"), "--text", str(tmp_path / "short.txt")], "cannot be split"),
        ([str(tmp_path / "memory"), "--text", "sotu"], "cannot load a decoder"),
        ([str(tmp_path / "nothing"), "--text", "sotu"], "cannot load a decoder"),
        ([str(tmp_path / "decoder"), "--decoder.dtype", "4bit"], "dtype"),
        ([str(tmp_path / "decoder"), "--model.ratios", "[0]"], "ratios"),
    ):
        assert main([*base, *words]) == 2, words
        error = capsys.readouterr().err
        assert told in error
        assert error.count("memlm: error:") == 1
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(MemlmError, match="is not finished; memlm train --resume"):
        MemoryDecoder.from_pretrained(str(tmp_path))
