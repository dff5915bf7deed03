"""Encoders of every kind: the same vectors whatever they are padded to and batched with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from memlm.encoders import POOLINGS, FunctionEncoder, HuggingFaceEncoder, MemoryEncoder, open_encoder
from memlm.errors import EncoderError
from memlm.session import load
from tests.conftest import speech

SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": lambda: LlamaModel(
        LlamaConfig(**SMALL, intermediate_size=32, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    ),
    "bert": lambda: BertModel(BertConfig(**SMALL, intermediate_size=32)),
    "gpt2": lambda: GPT2Model(
        GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    ),
}
TEXTS = ["peace", "the people of this great nation", "war and trade and harvest " * 3, "council"]


def saved(family: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    torch.manual_seed(7)
    FAMILIES[family]().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_do_not_depend_on_the_batch(
    family: str, pooling: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = saved(family, tmp_path, tokenizer)
    if pooling == "cls" and family != "bert":
        with pytest.raises(EncoderError, match="is a causal model"):
            open_encoder(path, pooling=pooling)
        return
    encoder = open_encoder(path, pooling=pooling)
    together = encoder.encode(TEXTS)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    assert together.shape == (4, encoder.width) == (4, 16)
    assert torch.allclose(together, alone, atol=1e-5)


def slow(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Row by row: the oracle."""
    rows = []
    for states, readable in zip(hidden, mask.bool(), strict=True):
        text = states[readable]
        places = torch.arange(1, len(text) + 1)[:, None]
        picked = {
            "last": text[-1],
            "penultimate": text[max(-2, -len(text))],
            "mean": text.mean(0),
            "cls": text[0],
            "max": text.max(0).values,
            "mean_sqrt_len_tokens": text.sum(0) / len(text) ** 0.5,
            "weightedmean": (text * places).sum(0) / places.sum(),
        }
        rows.append(picked[pooling])
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_pooling_equals_the_slow_way_and_never_reads_padding(pooling: str, side: str) -> None:
    hidden = torch.randn(5, 7, 3)
    lengths = torch.tensor([7, 1, 2, 5, 3])
    mask = (torch.arange(7) < lengths[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    hidden = hidden.masked_fill(~mask.bool()[..., None], 1e4)
    assert torch.allclose(POOLINGS[pooling](hidden, mask), slow(hidden, mask, pooling), atol=1e-6)


def test_defaults_follow_the_kind_of_model(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    defaults = {family: open_encoder(saved(family, tmp_path / family, tokenizer)) for family in FAMILIES}
    found = {family: e.settings.pooling for family, e in defaults.items() if isinstance(e, HuggingFaceEncoder)}
    assert found == {"llama": "penultimate", "gpt2": "penultimate", "bert": "mean"}


def test_layers_differ_and_a_missing_one_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = saved("llama", tmp_path, tokenizer)
    vectors = [open_encoder(path, layer=layer).encode(TEXTS) for layer in (0, 1, 2)]
    assert not torch.allclose(vectors[0], vectors[1])
    assert torch.equal(vectors[2], open_encoder(path, layer=-1).encode(TEXTS))
    with pytest.raises(EncoderError, match=r"has no layer 3; give one from 0 \(embeddings\) to 2"):
        open_encoder(path, layer=3)


def test_whatever_changes_a_vector_changes_the_fingerprint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = saved("bert", tmp_path, tokenizer)
    encoders = [open_encoder(path), open_encoder(path, pooling="cls"), open_encoder(path, layer=1)]
    first = encoders[0]
    assert isinstance(first, HuggingFaceEncoder)
    fresh = [first.untrained(seed) for seed in (0, 1)]
    prints = [e.fingerprint for e in (*encoders, *fresh)]
    assert len(set(prints)) == 5
    assert open_encoder(path).fingerprint == prints[0]
    assert fresh[0].fingerprint == first.untrained(0).fingerprint
    assert "untrained" in fresh[0].name


def test_ours_gives_its_memories_and_an_untrained_twin(finished_run: Path) -> None:
    encoder = open_encoder(str(finished_run))
    assert isinstance(encoder, MemoryEncoder)
    memory = load(finished_run)
    text = speech(3)[:20]
    first = memory.encode(text)[0][0].flatten()
    assert torch.equal(encoder.encode([text])[0], first)
    assert encoder.encode([""]).shape == (1, encoder.width)
    assert not torch.equal(encoder.untrained(0).encode([text])[0], first)
    with pytest.raises(EncoderError, match="has a bottleneck of its own"):
        open_encoder(str(finished_run), layer=1)


def test_a_function_must_give_one_vector_per_text() -> None:
    assert FunctionEncoder(lambda t: [[1.0, 2.0]] * len(t), name="f", fingerprint="1").width == 2
    with pytest.raises(EncoderError, match=r"shape \(3,\) for 1 texts"):
        FunctionEncoder(lambda t: [1.0, 2.0, 3.0], name="f", fingerprint="1")


@pytest.mark.parametrize("family", FAMILIES)
def test_fingerprints_do_not_change_with_use(family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Or the twin's vectors of a first probe, made after padding was set, are not found by the second."""
    encoder = open_encoder(saved(family, tmp_path, tokenizer))
    assert isinstance(encoder, HuggingFaceEncoder)
    before = encoder.untrained(0).fingerprint
    encoder.encode(TEXTS)
    assert encoder.untrained(0).fingerprint == before
    assert encoder.untrained(1).fingerprint != before


def test_a_padding_token_that_the_model_does_not_know_is_never_read(tmp_path: Path) -> None:
    """SmolLM2 as GGUF: the tokenizer has no padding of its own, and the model's table no room for ours."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    plain = Tokenizer(models.BPE({**{c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, "<e>": 256}, []))
    plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<e>", pad_token="<e>")
    sizes = {**SMALL, "vocab_size": 257}
    torch.manual_seed(7)
    model = LlamaModel(LlamaConfig(**sizes, intermediate_size=32, bos_token_id=None, eos_token_id=256))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = open_encoder(str(tmp_path))
    assert encoder.tokenizer.pad_token_id == 257
    together = encoder.encode(TEXTS)
    assert torch.allclose(together, torch.cat([encoder.encode([text]) for text in TEXTS]), atol=1e-5)
