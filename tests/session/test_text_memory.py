"""Strings of any length through memory, and run folders that are not what they should be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.checksums import ignoring_checksums
from memlm.data import encode_texts, train_tokenizer
from memlm.errors import CheckpointError, MemoryShapeError, TokenizerError, UserError
from memlm.models import (
    MemoryModelForCausalLM,
    RecurrentMemoryConfig,
    RecurrentMemoryForCausalLM,
    TextAutoencoder,
    TextAutoencoderConfig,
)
from memlm.models.loading import load_model
from memlm.session import DocumentModel, MemorySession, TextMemory, export_decoder, load
from tests.variants import TINY

DECODER = {"model_type": "memlm_mixer", "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 22}
TEXT = "the people of this great nation have met in council to speak of peace"


@pytest.fixture(scope="module")
def perfect(tokenizer: PreTrainedTokenizerFast) -> TextMemory:
    """An autoencoder set by hand that loses nothing: one-hot embeddings go through slices as wide as the vocabulary."""
    size = len(tokenizer)
    config = TextAutoencoderConfig(
        **{**TINY, "vocab_size": size, "hidden_size": size, "num_heads": 1, "bottleneck_size": 6 * size}
    )
    config.num_encoder_layers = config.num_decoder_layers = 0
    model = TextAutoencoder(config)
    identity = torch.eye(size)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(identity)
        model.bottleneck.pooling.maps.copy_(identity.expand_as(model.bottleneck.pooling.maps))
        model.readout.maps.copy_(identity.expand_as(model.readout.maps))
        model.lm_head.weight.copy_(identity)
    return TextMemory(model, tokenizer)


@pytest.mark.parametrize("text", [TEXT, "", "a", "<eos> is text", "你好 🙂\n\n", "exact!" * 40])
def test_texts_of_any_length_come_back(text: str, perfect: TextMemory) -> None:
    memories = perfect.encode(text)
    assert perfect.regenerate(memories) == [text]
    tokens = len(encode_texts(perfect.tokenizer, [text])[0])
    assert len(memories[0]) == -(-tokens // 6)
    assert perfect.fidelity(text) == [1.0]


def test_batches_give_what_single_texts_give(perfect: TextMemory) -> None:
    texts = [TEXT, "", "short", TEXT * 3]
    together = perfect.encode(texts, batch_size=3)
    assert [len(m) for m in together] == [len(perfect.encode(t)[0]) for t in texts]
    for text, memories in zip(texts, together, strict=True):
        torch.testing.assert_close(memories, perfect.encode(text)[0])
    assert perfect.regenerate(together, batch_size=2) == texts
    assert perfect.regenerate([]) == []
    assert perfect.encode([]) == [] or perfect.encode([])[0].numel() == 0


def test_fidelity_counts_by_place(perfect: TextMemory) -> None:
    tokens = encode_texts(perfect.tokenizer, [TEXT])[0]
    damaged = TextMemory(perfect.model, perfect.tokenizer)
    spoiled = tokens[1]
    with torch.no_grad():
        kept = perfect.model.embed_tokens.weight[spoiled].clone()
        perfect.model.embed_tokens.weight[spoiled] = perfect.model.embed_tokens.weight[1]  # comes back as eos
    share = damaged.fidelity(TEXT)[0]
    with torch.no_grad():
        perfect.model.embed_tokens.weight[spoiled] = kept
    assert share == pytest.approx(1 - tokens.count(spoiled) / len(tokens))


def test_memories_of_another_shape(perfect: TextMemory) -> None:
    good = perfect.encode("a")[0]
    with pytest.raises(MemoryShapeError, match="do not fit this model"):
        perfect.regenerate(good[..., :-1])
    with pytest.raises(MemoryShapeError, match="do not fit this model"):
        perfect.regenerate([good, torch.empty(0, 1, 3)])
    with pytest.raises(MemoryShapeError, match="NaN or infinite"):
        perfect.regenerate(good * torch.nan)
    with pytest.raises(UserError, match=r"batch_size \(0\)"):
        perfect.encode("a", batch_size=0)


def test_load_opens_every_kind_of_run_and_says_what_it_is(
    finished_run: Path, memory_run: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    memory = load(finished_run)
    assert isinstance(memory, TextMemory)
    assert isinstance(memory.regenerate(memory.encode(TEXT))[0], str)
    session = load(memory_run)
    assert isinstance(session, MemorySession)
    session.read(TEXT)
    recurrent = RecurrentMemoryForCausalLM(
        RecurrentMemoryConfig(decoder=DECODER | {"vocab_size": len(tokenizer)}, chunk_length=6)
    )
    for model, name in ((recurrent, "recurrent"), (session.model, "fixed")):
        if name == "fixed":
            model.config.layout = "fixed"  # this layout has no prompts
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    documents = load(tmp_path / "recurrent")
    assert isinstance(documents, DocumentModel)
    tokens = len(encode_texts(tokenizer, [TEXT])[0])
    assert documents.encode(TEXT).shape[:2] == (-(-tokens // 6), 8)
    losses = documents.token_losses(TEXT)
    assert losses.shape == (tokens - 1,)
    assert bool((losses > 0).all())
    with pytest.raises(UserError, match="give at least two tokens"):
        documents.token_losses("")
    assert isinstance(load(tmp_path / "fixed"), DocumentModel)
    for opened, kind in (
        (memory, "memlm_autoencoder"),
        (session, "memlm_memory"),
        (documents, "memlm_recurrent_memory"),
    ):
        shown = repr(opened)
        assert kind in shown
        assert f"of {len(opened.tokenizer):,} tokens" in shown
        assert "\n" not in shown


def test_other_folders_are_refused_with_a_way_out(memory_run: Path, tmp_path: Path) -> None:
    export_decoder(*load_model(memory_run, MemoryModelForCausalLM), tmp_path / "decoder")
    with pytest.raises(CheckpointError, match="open an exported decoder with transformers' AutoModelForCausalLM"):
        load(tmp_path / "decoder")
    with pytest.raises(CheckpointError, match="'memlm_memory', not 'memlm_autoencoder'; give another memlm run"):
        TextMemory.from_pretrained(memory_run)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors in"),
        (lambda f: (f / "config.json").unlink(), "no config.json in"),
        (lambda f: (f / "config.json").write_text("{"), "is not a model's settings"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 40), "cannot load a model"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]),
            "cannot load a model",
        ),
        (lambda f: edit(f, model_type="llama"), "holds a model of kind 'llama'"),
        (lambda f: edit(f, num_encoder_layers=2), "differ"),
        (lambda f: edit(f, hidden_size=32), "cannot load a model"),
        (lambda f: edit(f, hidden_sise=16), "Did you mean 'hidden_size'"),
        (lambda f: edit(f, hidden_size="wide"), "cannot load a model"),
    ],
)
def test_damaged_folders(damage: object, message: str, finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    damage(folder)  # type: ignore[operator]
    with ignoring_checksums(), pytest.raises(CheckpointError, match=message):
        load(folder)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tokenizers_that_do_not_fit(finished_run: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    train_tokenizer(["few"], vocab_size=258).save_pretrained(folder)
    with ignoring_checksums(), pytest.raises(TokenizerError, match=r"the tokenizer has 258 tokens and the model \d+"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with ignoring_checksums(), pytest.raises(TokenizerError, match="no tokenizer.json"):
        load(folder)
    with pytest.raises(CheckpointError, match="no config.json in"):
        load(tmp_path / "nowhere")
