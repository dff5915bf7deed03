"""Every autoencoder variant through the same tests: padding, save and load, gradients, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from memlm.errors import ConfigError, MemoryShapeError, UserError
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.shapes import IGNORE_INDEX
from tests.variants import AUTOENCODERS, TINY

LENGTH, VOCAB = TINY["chunk_length"], TINY["vocab_size"]


def build(**changes: Any) -> TextAutoencoder:
    torch.manual_seed(0)
    return TextAutoencoder(TextAutoencoderConfig(**{**TINY, **changes})).eval()


def stirred(model: TextAutoencoder) -> TextAutoencoder:
    """Every parameter away from its start, so that zero-initialised parts cannot hide a leak."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def variant(name: str) -> TextAutoencoder:
    return stirred(build(**AUTOENCODERS[name]))


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_padding_on_any_side_changes_nothing(name: str) -> None:
    model = variant(name)
    text = torch.randint(2, VOCAB, (3, 4))
    alone = model(text)
    for kept in ([0, 1, 2, 3], [2, 3, 4, 5], [0, 2, 3, 5]):
        ids = torch.full((3, LENGTH), 7)
        mask = torch.zeros(3, LENGTH, dtype=torch.long)
        ids[:, kept], mask[:, kept] = text, 1
        padded = model(ids, mask)
        torch.testing.assert_close(padded.memories, alone.memories, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(padded.logits[:, kept], alone.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_what_stands_at_masked_positions_is_never_read(name: str) -> None:
    model = variant(name)
    ids = torch.randint(2, VOCAB, (2, LENGTH))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]])
    clean = model.encode(ids, mask)
    with torch.no_grad():
        model.embed_tokens.weight[5] = 1e4
    poisoned = torch.where(mask.bool(), ids.masked_fill(ids == 5, 6), torch.full_like(ids, 5))
    torch.testing.assert_close(model.encode(poisoned, mask), model.encode(ids.masked_fill(ids == 5, 6), mask))
    assert torch.isfinite(clean).all()


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_row_of_padding_only_is_finite_and_harms_no_other_row(name: str) -> None:
    model = variant(name)
    ids = torch.randint(2, VOCAB, (2, LENGTH))
    mask = torch.tensor([[1] * LENGTH, [0] * LENGTH])
    both = model(ids, mask)
    assert torch.isfinite(both.logits).all()
    torch.testing.assert_close(both.logits[:1], model(ids[:1]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_forward_is_encode_then_decode(name: str) -> None:
    model = variant(name)
    ids = torch.randint(2, VOCAB, (2, LENGTH))
    memories = model.encode(ids)
    assert memories.shape == (2, model.config.memories_per_chunk, model.config.bottleneck_size)
    assert torch.equal(model.decode(memories), model(ids).logits)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_survives_save_and_load_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = variant(name)
    model.save_pretrained(tmp_path)
    ids = torch.randint(2, VOCAB, (2, LENGTH))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert torch.equal(TextAutoencoder.from_pretrained(tmp_path).encode(ids), model.encode(ids))
    assert AutoConfig.from_pretrained(tmp_path).memory_size == model.config.memory_size


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_parameter_learns(name: str) -> None:
    model = variant(name).train()
    ids = torch.randint(2, VOCAB, (4, LENGTH))
    model(ids, labels=ids).loss.backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # with one query the softmax's key bias cancels; and a prefix decoder's blank slots have no say at position 0
    assert [n for n in still if "attention.in_proj_bias" not in n] == []


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = build(**AUTOENCODERS[name]).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(2, VOCAB, (8, LENGTH), generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_is_a_mean_over_asked_tokens_and_accumulation_changes_nothing() -> None:
    model = variant("ours")
    ids = torch.randint(2, VOCAB, (4, LENGTH))
    labels = ids.clone()
    labels[0, 1:] = IGNORE_INDEX
    asked = int((labels != IGNORE_INDEX).sum())
    whole = model(ids, labels=labels).loss
    parts = [model(ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=asked).loss for i in (0, 2)]
    torch.testing.assert_close(sum(parts), whole)


def test_noise_is_centred_and_only_in_training() -> None:
    model = variant("noise")
    ids = torch.randint(2, VOCAB, (1, LENGTH))
    clean = model.encode(ids)
    assert torch.equal(clean, model.encode(ids))
    noisy = torch.stack([model.train().encode(ids) for _ in range(2000)]) - clean
    step = clean.abs().max() / 7
    assert noisy.abs().max() <= step / 2 + 1e-6
    assert noisy.abs().max() > 0.45 * step
    assert noisy.mean().abs() < 0.05 * step


def test_errors_name_both_values() -> None:
    model = build()
    with pytest.raises(UserError, match="7 tokens do not fit a chunk of 6"):
        model.encode(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(
        MemoryShapeError, match=r"shape \(1, 9\) per chunk do not fit this model, which writes \(1, 10\)"
    ):
        model.decode(torch.zeros(2, 1, 9))
    with pytest.raises(MemoryShapeError, match="1 of 10 numbers in the memories are NaN or infinite"):
        model.decode(torch.cat([torch.zeros(1, 1, 9), torch.full((1, 1, 1), torch.nan)], -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, r"hidden_size \(12\) must be divisible by num_heads \(5\)"),
        ({"memories_per_chunk": 4}, r"chunk_length \(6\) must be divisible by memories_per_chunk \(4\)"),
        ({"bottleneck": "meen"}, r"bottleneck \('meen'\) must be .*Did you mean 'mean'"),
        ({"readout": "prefixx"}, r"readout \('prefixx'\) must be .*Did you mean 'prefix'"),
        ({"backbone": "gru"}, r"backbone \('gru'\) must be 'mixer' or 'llama'"),
        ({"noise_bits": 1}, r"noise_bits \(1\) must lie between 2 and 16"),
        ({"bottleneck_size": 0}, r"bottleneck_size \(0\) must be at least 1"),
        (
            {"bottlneck_size": 8},
            "unknown setting 'bottlneck_size' for memlm_autoencoder. Did you mean 'bottleneck_size'",
        ),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextAutoencoderConfig(**{**TINY, **changes})
