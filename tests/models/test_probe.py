"""The probe decoder and where it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from memlm.errors import ConfigError, MemoryShapeError
from memlm.models import ProbeConfig, ProbeDecoder
from memlm.models.probe.start import start_from_vectors, whitening_of
from memlm.objectives import token_nats
from memlm.shapes import IGNORE_INDEX


def probe(**changes: int) -> ProbeDecoder:
    sizes = {"vocab_size": 12, "length": 4, "vector_size": 24, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    return ProbeDecoder(ProbeConfig(**{**sizes, **changes}))  # type: ignore[arg-type]


def linear_code(rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors in which each position owns six numbers, mixed by one rotation and scaled to large norms."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 12, (rows, 4), generator=generator)
    fixed = torch.Generator().manual_seed(99)
    table, rotation = torch.randn(12, 6, generator=fixed), torch.randn(24, 24, generator=fixed)
    return table[labels].flatten(1) @ rotation * 300 + 50, labels


def test_whitening_brings_any_spread_to_one_and_drops_what_has_none() -> None:
    vectors = torch.randn(500, 5) @ torch.randn(5, 5) * torch.tensor([1e3, 1.0, 1e-1, 1.0, 5.0]) + 7
    vectors = torch.cat([vectors, torch.full((500, 1), 3.0)], dim=1)
    mean, matrix = whitening_of(vectors)
    white = (vectors - mean) @ matrix
    covariance = white.T @ white / len(white)
    assert torch.linalg.matrix_rank(covariance, atol=1e-2) == 5
    assert torch.linalg.eigvalsh(covariance)[1:].numpy() == pytest.approx(1.0, abs=2e-2)


def test_the_start_reads_a_linear_code_before_the_first_step() -> None:
    vectors, labels = linear_code(2000)
    model = probe(num_layers=0, readout_rank=6)
    start_from_vectors(model, vectors, labels, seed=0)
    unseen, asked = linear_code(500, seed=1)
    right = model.decode(unseen).argmax(-1) == asked
    assert right.float().mean() > 0.5  # 1 in 11 by chance
    fresh = probe(num_layers=0, readout_rank=6)
    assert (fresh.decode(unseen).argmax(-1) == asked).float().mean() < 0.3


def test_the_start_on_noise_is_the_unigram_floor() -> None:
    labels = torch.randint(1, 12, (2000, 4))
    model = probe(num_layers=0)
    start_from_vectors(model, torch.randn(2000, 24), labels, seed=0)
    unseen = torch.randint(1, 12, (500, 4))
    nats = token_nats(model.decode(torch.randn(500, 24)), unseen).mean()
    counts = torch.bincount(labels.flatten(), minlength=12) + 0.5
    floor = -(counts / counts.sum()).log()[unseen].mean()
    assert nats.item() == pytest.approx(floor.item(), abs=0.02)


def test_constant_vectors_and_unasked_positions_start_finite() -> None:
    model, (_, labels) = probe(), linear_code(50)
    labels[:, 3] = IGNORE_INDEX
    start_from_vectors(model, torch.zeros(50, 24), labels, seed=0)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    loss = model(torch.zeros(50, 24), labels=labels).loss
    loss.backward()
    assert bool(torch.isfinite(loss))


def test_saved_and_loaded_through_the_auto_class_bit_for_bit(tmp_path: Path) -> None:
    vectors, labels = linear_code(100)
    model = probe().eval()
    start_from_vectors(model, vectors, labels, seed=0)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is ProbeDecoder
    assert torch.equal(loaded.decode(vectors), model.decode(vectors))
    assert torch.equal(loaded.whitening.matrix, model.whitening.matrix)


def test_every_parameter_gets_a_gradient() -> None:
    vectors, labels = linear_code(64)
    model = probe()
    start_from_vectors(model, vectors, labels, seed=0)
    model(vectors, labels=labels).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_another_width_is_refused_with_both_numbers() -> None:
    with pytest.raises(MemoryShapeError, match=r"vectors of 23 numbers do not fit a probe of 24"):
        probe().decode(torch.randn(2, 23))
    with pytest.raises(ConfigError, match=r"hidden_size \(16\).*num_heads \(3\)"):
        probe(num_heads=3)
