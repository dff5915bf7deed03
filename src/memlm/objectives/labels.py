"""Objectives as pure functions from tokens to inputs and labels, both (batch, tokens) and aligned by position.

Labels are shifted here and not later: where a model predicts token t+1 at position t, the label at position t is token
t+1. No argument is changed in place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.errors import UserError
from memlm.shapes import IGNORE_INDEX, Labels, TokenIds, TokenMask


class Task(NamedTuple):
    """The inputs and labels of a model, both (batch, tokens)."""

    input_ids: TokenIds
    labels: Labels


def reconstruction(input_ids: TokenIds, attention_mask: TokenMask) -> Task:
    """Return labels that equal the input; padding is no target."""
    return Task(input_ids, input_ids.masked_fill(~attention_mask.bool(), IGNORE_INDEX))


def next_token(input_ids: TokenIds, attention_mask: TokenMask) -> Task:
    """Return labels that are the next tokens; the last position of a text has no target."""
    return Task(input_ids, _following(input_ids.masked_fill(~attention_mask.bool(), IGNORE_INDEX)))


def copy(input_ids: TokenIds, attention_mask: TokenMask | None = None) -> Task:
    """Return inputs whose second half repeats the first, with its tokens as targets at the positions before them.

    Args:
        input_ids: (batch, tokens), an even number of tokens; the second half is not used.
        attention_mask: (batch, tokens); a row whose first half is not all text has no targets.

    Raises:
        UserError: an odd number of tokens, or fewer than four.
    """
    first = _first_half(input_ids)
    targets = first
    if attention_mask is not None:
        full = attention_mask[:, : first.shape[1]].bool().all(1, keepdim=True)
        targets = targets.masked_fill(~full, IGNORE_INDEX)
    labels = torch.cat([torch.full_like(first, IGNORE_INDEX), targets], dim=1)
    return Task(torch.cat([first, first], dim=1), _following(labels))


def blank_copy(
    input_ids: TokenIds,
    attention_mask: TokenMask | None = None,
    *,
    blank_id: int,
    start: int | Int[Tensor, " batch"] | None = None,
) -> Task:
    """Replace all tokens from `start` on by blanks, whose targets are the tokens of the text from its beginning.

    The target of a blank is the token `start` positions before it, and the last token of the text has no target: before
    the first blank nothing tells a model that a copy begins. (arXiv 2602.13466 has a target there too.)

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens); a row that is not all text before its start has no targets.
        blank_id: the token id of a blank.
        start: the first blank of each row, or of all rows; the middle by default.

    Raises:
        UserError: there is no text or no blank.
    """
    tokens = input_ids.shape[1]
    starts = torch.as_tensor(tokens // 2 if start is None else start, device=input_ids.device).reshape(-1, 1)
    if bool(((starts < 1) | (starts >= tokens)).any()):
        raise UserError(
            f"a copy cannot start at {starts.flatten().tolist()} of {tokens} tokens; leave text and blanks."
        )
    places = torch.arange(tokens, device=input_ids.device).expand(len(input_ids), -1)
    hidden, source = places >= starts, places - starts
    asked = hidden & (source < starts)
    if attention_mask is not None:
        asked = asked & (attention_mask.bool() | hidden).all(1, keepdim=True)
    answers = input_ids.gather(1, source.clamp(min=0))
    return Task(input_ids.masked_fill(hidden, blank_id), answers.masked_fill(~asked, IGNORE_INDEX))


def token_dropout(task: Task, *, blank_id: int, share: float, generator: torch.Generator) -> Task:
    """Replace a share of the second half's inputs by blanks: a copy at share 0, a blank copy at share 1.

    The target of a blank is the token that it replaces, the target of a token the next one, unless that is a blank.

    Args:
        task: the `copy` task.
        blank_id: the token id of a blank.
        share: the probability of each token to be replaced.
        generator: a random generator on the CPU.

    Raises:
        UserError: the share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"the share of hidden tokens ({share}) must lie between 0 and 1.")
    ids = task.input_ids
    drawn = torch.rand(ids.shape, generator=generator) < share
    drawn[:, : ids.shape[1] // 2] = False
    hidden = drawn.to(ids.device)
    itself, next_hidden = task.labels.roll(1, dims=1), hidden.roll(-1, dims=1)
    labels = torch.where(hidden, itself, task.labels.masked_fill(next_hidden, IGNORE_INDEX))
    return Task(ids.masked_fill(hidden, blank_id), labels)


def _first_half(input_ids: Tensor) -> Tensor:
    tokens = input_ids.shape[1]
    if tokens < 4 or tokens % 2:
        raise UserError(f"{tokens} tokens cannot be copied; give an even number of at least 4.")
    return input_ids[:, : tokens // 2]


def _following(labels: Tensor) -> Tensor:
    """Move the label of each position to the position before it."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)
