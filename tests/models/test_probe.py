"""The probe decoder and where it starts."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from memlm.errors import ConfigError, MemoryShapeError
from memlm.models import ProbeConfig, ProbeDecoder
from memlm.models.probe.modeling import drawn_classes
from memlm.models.probe.start import start_from_language, start_from_vectors, start_tokens, whitening_of
from memlm.objectives import token_nats
from memlm.shapes import IGNORE_INDEX


def probe(**changes: Any) -> ProbeDecoder:
    sizes: dict[str, Any] = {
        "vocab_size": 12,
        "length": 4,
        "vector_size": 24,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
    }
    return ProbeDecoder(ProbeConfig(**{**sizes, **changes}))


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


def writer(**changes: Any) -> ProbeDecoder:
    return probe(reads_tokens=True, backbone="llama", learned_positions=True, **changes).eval()


def test_a_decoder_that_reads_tokens_reads_only_earlier_ones() -> None:
    model, (vectors, labels) = writer(), linear_code(6)
    changed = labels.clone()
    changed[:, 2] = changed[:, 2] % 11 + 1
    first, second = (model.teacher_forced(vectors, given) for given in (labels, changed))
    assert first.shape == (6, 4, 12)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])
    torch.testing.assert_close(model.decode(vectors, labels[:, :2]), first[:, :3])


def test_every_parameter_of_a_writer_gets_a_gradient_and_noise_is_for_training_alone() -> None:
    vectors, labels = linear_code(64)
    model = writer(vector_noise=0.5)
    start_from_vectors(model, vectors, labels, seed=0)
    assert torch.equal(model.teacher_forced(vectors, labels), model.teacher_forced(vectors, labels))
    model.train()
    assert not torch.equal(model.teacher_forced(vectors, labels), model.teacher_forced(vectors, labels))
    model(vectors, labels=labels).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_the_prior_says_which_tokens_occur_before_the_first_step() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.randperm(40, generator=draw)[:4] + 1 for _ in range(3000)])
    vectors = torch.randn(41, 24, generator=draw)[labels].sum(1)
    model = writer(vocab_size=41)
    start_from_vectors(model, vectors[:2500], labels[:2500], seed=0)
    torch.nn.init.zeros_(model.lm_head.weight)  # the prior alone
    own, another = (
        token_nats(model.teacher_forced(given, labels[2500:]), labels[2500:]).mean()
        for given in (vectors[2500:], vectors[2500:].roll(1, 0))
    )
    assert own < another - 0.3
    assert own < torch.tensor(40.0).log() - 0.2


def test_what_is_written_is_what_a_slow_search_finds() -> None:
    model, (vectors, labels) = writer(vocab_size=5, length=3), linear_code(7)
    start_from_vectors(model, vectors, labels[:, :3] % 4 + 1, seed=0)
    greedy = torch.empty(7, 0, dtype=torch.long)
    for _ in range(3):
        best = model.decode(vectors, greedy)[:, -1, 1:].argmax(-1) + 1
        greedy = torch.cat([greedy, best[:, None]], 1)
    assert torch.equal(model.write(vectors), greedy)
    every = torch.tensor(list(product(range(1, 5), repeat=3)))
    for row, vector in enumerate(vectors):
        logits = model.teacher_forced(vector.expand(64, -1), every)
        logits[..., 0] = -torch.inf
        likeliest = every[token_nats(logits, every).sum(1).argmin()]
        assert torch.equal(model.write(vectors[row : row + 1], beams=64)[0], likeliest)


def test_drawn_classes_stand_for_all() -> None:
    labels = torch.randint(0, 300, (40, 7), generator=torch.Generator().manual_seed(0))
    labels[0, 3:] = IGNORE_INDEX
    logits = torch.randn(300, generator=torch.Generator().manual_seed(1))
    slow = torch.nn.functional.cross_entropy(logits.expand(280, -1), labels.flatten())
    torch.manual_seed(0)
    found = []
    for _ in range(50):
        classes, weights, places = drawn_classes(labels, 300, 60)
        assert len(classes.unique()) == len(classes) == len(labels[labels >= 0].unique()) + 60
        kept = places >= 0
        assert torch.equal(classes[places[kept]], labels[kept])
        assert torch.equal(kept, labels >= 0)
        found.append(
            torch.nn.functional.cross_entropy((logits[classes] + weights).expand(280, -1), places.flatten()).item()
        )
    assert sum(found) / 50 == pytest.approx(float(slow), abs=0.02)
    # with all others drawn it is exact
    classes, weights, places = drawn_classes(labels, 300, 300)
    exact = torch.nn.functional.cross_entropy((logits[classes] + weights).expand(280, -1), places.flatten())
    assert float(exact) == pytest.approx(float(slow), rel=1e-5)


def test_few_classes_are_enough_to_learn_from() -> None:
    vectors, labels = linear_code(64)
    model = writer(vocab_size=400, candidates=100)
    start_from_vectors(model, vectors, labels, seed=0)
    assert model.train()(vectors, labels=labels).logits.shape[-1] < 120
    assert model.eval()(vectors, labels=labels).logits.shape[-1] == 400
    model.config.candidates = 390
    whole = model.train()(vectors, labels=labels)
    assert whole.logits.shape[-1] == 400


def test_a_start_from_language_writes_as_it_does_but_for_the_prior() -> None:
    vectors, labels = linear_code(500)
    language = writer()
    start_from_vectors(language, torch.zeros_like(vectors), labels, seed=0)
    with torch.no_grad():
        language.lm_head.weight.normal_()
    blank, model = writer(), writer()
    start_from_language(blank, language, torch.zeros_like(vectors), labels)
    torch.testing.assert_close(blank.teacher_forced(vectors, labels), language.teacher_forced(vectors, labels))
    start_from_language(model, language, vectors, labels)
    with torch.no_grad():
        before, after = (token_nats(m.eval().teacher_forced(vectors, labels), labels).mean() for m in (language, model))
    assert after < before - 0.05
    model.train()(vectors, labels=labels).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("width", [30, 5])
def test_tokens_start_as_another_models_and_stay_as_far_apart(width: int) -> None:
    table = torch.randn(12, width, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.ones(width))
    table[:, 10:] *= 1e-3  # what the decoder's sixteen numbers hold
    table[0] = 0
    tokens = writer().embed_tokens
    assert tokens is not None
    before = tokens.weight.detach().clone()
    start_tokens(tokens, table)
    after = tokens.weight.detach()
    assert torch.equal(after[[0, -1]], before[[0, -1]])
    assert float(after[1:12].square().mean().sqrt()) == pytest.approx(0.5, rel=1e-3)
    far = [torch.cdist(rows[1:12], rows[1:12]) for rows in (table, after)]
    torch.testing.assert_close(far[1] / far[1].max(), far[0] / far[0].max(), rtol=1e-2, atol=1e-2)
