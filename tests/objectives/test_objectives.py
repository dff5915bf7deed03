"""Exact inputs and labels, hand-computed losses, and no batch changed."""

from __future__ import annotations

import math

import pytest
import torch

from memlm.errors import ConfigError, UserError
from memlm.objectives import (
    LinearSchedule,
    Mixture,
    blank_copy,
    copy,
    mean_loss,
    next_token,
    reconstruction,
    sums_by_objective,
    targets_by_objective,
    token_dropout,
    token_nats,
    weighted_loss,
)
from memlm.shapes import IGNORE_INDEX as X

IDS = torch.tensor([[5, 6, 7, 8, 9, 4]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0]])


def test_labels_are_exact_and_inputs_untouched() -> None:
    before = IDS.clone()
    assert reconstruction(IDS, MASK).labels.tolist() == [[5, 6, 7, 8, 9, X]]
    assert next_token(IDS, MASK).labels.tolist() == [[6, 7, 8, 9, X, X]]
    repeated = copy(IDS)
    assert repeated.input_ids.tolist() == [[5, 6, 7, 5, 6, 7]]
    assert repeated.labels.tolist() == [[X, X, 5, 6, 7, X]]
    hidden = blank_copy(IDS, blank_id=0)
    assert hidden.input_ids.tolist() == [[5, 6, 7, 0, 0, 0]]
    assert hidden.labels.tolist() == [[X, X, X, 5, 6, 7]]
    assert torch.equal(IDS, before)


def test_copy_needs_two_halves() -> None:
    with pytest.raises(UserError, match="5 tokens cannot be copied"):
        copy(IDS[:, :5])


def test_losses_are_nats_per_asked_token() -> None:
    logits = torch.zeros(2, 2, 4)
    logits[0, 0, 1] = math.log(3)  # probability 1/2
    labels = torch.tensor([[1, X], [2, 3]])
    torch.testing.assert_close(
        token_nats(logits, labels), torch.tensor([[math.log(2), 0.0], [math.log(4), math.log(4)]])
    )
    assert float(mean_loss(logits, labels)) == pytest.approx((math.log(2) + 2 * math.log(4)) / 3)
    assert float(mean_loss(logits, labels, 6)) == pytest.approx((math.log(2) + 2 * math.log(4)) / 6)
    with pytest.raises(UserError, match="all 4 labels are -100"):
        mean_loss(logits, torch.full((2, 2), X))


def test_rows_that_are_not_full_are_not_asked_for() -> None:
    ids, mask = IDS.repeat(2, 1), torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    assert copy(ids, mask).labels.tolist() == [[X, X, 5, 6, 7, X], [X] * 6]
    assert blank_copy(ids, mask, blank_id=0).labels.tolist() == [[X, X, X, 5, 6, 7], [X] * 6]


def test_blanks_ask_for_the_text_from_its_beginning_wherever_they_begin() -> None:
    ids = IDS.repeat(3, 1)
    task = blank_copy(ids, blank_id=0, start=torch.tensor([2, 3, 5]))
    assert task.input_ids.tolist() == [[5, 6, 0, 0, 0, 0], [5, 6, 7, 0, 0, 0], [5, 6, 7, 8, 9, 0]]
    assert task.labels.tolist() == [[X, X, 5, 6, X, X], [X, X, X, 5, 6, 7], [X, X, X, X, X, 5]]
    whole = blank_copy(IDS, MASK * 0 + torch.tensor([1, 1, 0, 0, 0, 0]), blank_id=0, start=2)
    assert whole.labels.tolist() == [[X, X, 5, 6, X, X]]  # blanks need no text below them
    for start in (0, 6):
        with pytest.raises(UserError, match="leave text and blanks"):
            blank_copy(IDS, blank_id=0, start=start)


def test_token_dropout_lies_between_copy_and_blank_copy() -> None:
    task, draw = copy(IDS), torch.Generator().manual_seed(0)
    none = token_dropout(task, blank_id=0, share=0.0, generator=draw)
    assert torch.equal(none.input_ids, task.input_ids)
    assert torch.equal(none.labels, task.labels)
    every, blanks = token_dropout(task, blank_id=0, share=1.0, generator=draw), blank_copy(IDS, blank_id=0)
    assert torch.equal(every.input_ids, blanks.input_ids)
    assert torch.equal(every.labels, blanks.labels)
    many = copy(torch.ones(50, 40, dtype=torch.long))
    half, labels = token_dropout(many, blank_id=0, share=0.5, generator=draw)
    hidden = half == 0
    assert bool((labels[hidden] == 1).all())  # each blank is asked for itself
    before_hidden = hidden.roll(-1, 1) & ~hidden
    assert bool((labels[before_hidden] == X).all())
    assert half[:, :20].all()
    assert float(half[:, 20:].float().mean()) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(UserError, match=r"hidden tokens \(1.5\)"):
        token_dropout(task, blank_id=0, share=1.5, generator=draw)


def test_mixtures_are_weighted_means_over_what_each_objective_asked() -> None:
    logits = torch.zeros(3, 2, 4)
    logits[2, :, 1] = 100.0
    labels, owners = torch.tensor([[1, 2], [3, X], [1, 2]]), torch.tensor([0, 0, 2])
    sums = sums_by_objective(logits, labels, owners, count=3)
    assert sums.num_targets.tolist() == targets_by_objective(labels, owners, count=3).tolist() == [3.0, 0.0, 2.0]
    assert sums.num_correct.tolist() == [0.0, 0.0, 1.0]
    torch.testing.assert_close(sums.nats, torch.tensor([3 * math.log(4), 0.0, 100.0]))
    mixture = Mixture({"blank_copy": 1.0, "next_token": 3.0})
    assert mixture.names == ("next_token", "blank_copy")
    weights = torch.tensor([3.0, 5.0, 1.0])  # the objective that asked for nothing counts for nothing
    expected = (3 * math.log(4) + 50.0) / 4
    assert float(weighted_loss(sums.nats, sums.num_targets, weights)) == pytest.approx(expected)
    twice = weighted_loss(sums.nats, 2 * sums.num_targets, weights)  # asked over two accumulated batches
    assert float(twice) == pytest.approx(expected / 2)
    with pytest.raises(UserError, match="nothing to learn from"):
        weighted_loss(sums.nats, sums.num_targets, torch.tensor([0.0, 1.0, 0.0]))


def test_weights_move_and_mistakes_are_one_line() -> None:
    mixture = Mixture({"next_token": LinearSchedule(0.0, 1.0, 4), "blank_copy": 1.0})
    assert [mixture.at(step).tolist() for step in (0, 2, 4, 9)] == [[0.0, 1.0], [0.5, 1.0], [1.0, 1.0], [1.0, 1.0]]
    with pytest.raises(ConfigError, match="sum to 0 at step 0"):
        Mixture({"copy": 0.0})
    with pytest.raises(ConfigError, match="sum to 0 at step 5"):
        Mixture({"copy": LinearSchedule(1.0, 0.0, 5)})
    with pytest.raises(ConfigError, match=r"weight of 'copy' \(-1.0\)"):
        Mixture({"copy": -1.0})
    with pytest.raises(ConfigError, match="unknown objective 'copi'"):
        Mixture({"copi": 1.0})
