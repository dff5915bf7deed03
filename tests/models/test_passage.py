"""The passage encoder and its two objectives."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from memlm.errors import ConfigError, UserError
from memlm.models import PassageEncoder, PassageEncoderConfig, TextAutoencoder, TextAutoencoderConfig
from memlm.objectives import info_nce, next_token

SIZES = {"vocab_size": 30, "chunk_length": 8, "hidden_size": 16, "num_heads": 2}


def encoder(**changes: object) -> PassageEncoder:
    torch.manual_seed(0)
    return PassageEncoder(PassageEncoderConfig(**{**SIZES, "num_layers": 1, **changes}))  # type: ignore[arg-type]


def test_info_nce_equals_the_slow_way() -> None:
    queries, passages = torch.randn(4, 6), torch.randn(4, 6)
    losses = []
    for i in range(4):
        scores = [float(torch.cosine_similarity(queries[i], p, dim=0)) / 0.05 for p in passages]
        losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[i])
    assert info_nce(queries, passages, temperature=0.05).tolist() == pytest.approx(losses, abs=1e-4)
    with pytest.raises(UserError, match=r"temperature \(0.0\) must be above 0"):
        info_nce(queries, passages, temperature=0.0)


@pytest.mark.parametrize("backbone", ["mixer", "llama"])
@pytest.mark.parametrize("pooling", ["last_token", "penultimate"])
def test_vectors_never_read_padding_and_survive_saving(backbone: str, pooling: str, tmp_path: Path) -> None:
    model = encoder(backbone=backbone, pooling=pooling).eval()
    ids, mask = torch.randint(1, 30, (3, 8)), torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] + [0] * 7])
    vectors = model.encode(ids, mask)
    assert vectors.shape == (3, 16)
    spoiled = ids.masked_fill(mask == 0, 29)
    assert torch.allclose(model.encode(spoiled, mask), vectors, atol=1e-6)
    assert torch.allclose(model.encode(ids[1:2, :5], mask[1:2, :5]), vectors[1:2], atol=1e-5)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path).eval().encode(ids, mask), vectors)


def test_the_causal_objective_cannot_see_what_it_predicts() -> None:
    model = encoder().eval()
    ids = torch.randint(1, 30, (2, 8))
    mask = torch.ones_like(ids)
    before = model(ids, mask).logits
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 29 + 1
    assert torch.equal(model(changed, mask).logits[:, :5], before[:, :5])
    loss = model(ids, mask, labels=next_token(ids, mask).labels).loss
    expected = torch.nn.functional.cross_entropy(before[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_retrieval_learns_to_find_a_stretch_of_the_passage() -> None:
    model = encoder(objective="retrieval")
    ids = torch.randint(1, 30, (16, 8))
    batch = (ids, torch.ones_like(ids), None, ids[:, 1:5], torch.ones_like(ids[:, 1:5]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    first = model(*batch).loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(*batch).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


def test_an_autoencoders_encoder_fits_name_by_name() -> None:
    donor = TextAutoencoder(
        TextAutoencoderConfig(
            **SIZES, bottleneck="last_token", bottleneck_size=16, num_encoder_layers=1, num_decoder_layers=1
        )  # type: ignore[arg-type]
    ).eval()
    model = encoder(pooling="last_token").eval()
    kept = {k: v for k, v in donor.state_dict().items() if k.startswith(("embed_tokens.", "encoder."))}
    missing = model.load_state_dict(kept, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    ids = torch.randint(1, 30, (3, 8))
    assert torch.allclose(model.encode(ids, torch.ones_like(ids)), donor.encode(ids)[:, 0], atol=1e-6)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"objective \('retreival'\) must be .*Did you mean 'retrieval'"):
        encoder(objective="retreival")
    with pytest.raises(ConfigError, match=r"hidden_size \(16\).*num_heads \(3\)"):
        encoder(num_heads=3)
