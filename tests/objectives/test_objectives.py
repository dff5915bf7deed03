"""Exact inputs and labels, hand-computed losses, and no batch changed."""

from __future__ import annotations

import math

import pytest
import torch

from memlm.errors import ConfigError, UserError
from memlm.objectives import Mixture, blank_copy, copy, mean_loss, next_token, reconstruction, token_nats
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
    marked = copy(IDS, delimiter_id=99)
    assert marked.input_ids.tolist() == [[5, 6, 99, 5, 6, 99]]
    assert marked.labels.tolist() == [[X, X, 5, 6, X, X]]
    hidden = blank_copy(IDS, blank_id=0)
    assert hidden.input_ids.tolist() == [[5, 6, 7, 0, 0, 0]]
    assert hidden.labels.tolist() == repeated.labels.tolist()
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


def test_mixtures_are_weighted_means() -> None:
    losses = {"next_token": torch.tensor(2.0), "copy": torch.tensor(1.0)}
    assert float(Mixture({"next_token": 3.0, "copy": 1.0}).combine(losses)) == pytest.approx(1.75)
    with pytest.raises(ConfigError, match="sum to 0"):
        Mixture({"copy": 0.0})
    with pytest.raises(ConfigError, match=r"weight of 'copy' \(-1.0\)"):
        Mixture({"copy": -1.0})
    with pytest.raises(ConfigError, match="no loss named 'copi'. Did you mean 'copy'"):
        Mixture({"copi": 1.0}).combine(losses)
