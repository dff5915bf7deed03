"""Objectives as pure functions: tokens -> (input_ids, labels), both (batch, tokens), aligned position by position.

Nothing is shifted later and nothing is changed in place: where a model predicts token t+1 at position t, the label at
position t is token t+1 already.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.errors import UserError
from memlm.shapes import IGNORE_INDEX, Labels, TokenIds, TokenMask


class Task(NamedTuple):
    """What a model reads and what it is asked for, both (batch, tokens)."""

    input_ids: TokenIds
    labels: Labels


def reconstruction(input_ids: TokenIds, attention_mask: TokenMask) -> Task:
    """Give the input back, the same token at the same position; padding is not asked for."""
    return Task(input_ids, input_ids.masked_fill(~attention_mask.bool(), IGNORE_INDEX))


def next_token(input_ids: TokenIds, attention_mask: TokenMask) -> Task:
    """Predict the token that follows; the last position of a text is asked for nothing."""
    return Task(input_ids, _following(input_ids.masked_fill(~attention_mask.bool(), IGNORE_INDEX)))


def copy(input_ids: TokenIds, attention_mask: TokenMask | None = None) -> Task:
    """The second half repeats the first; each of its tokens, the first one included, is asked of the position before.

    Args:
        input_ids: (batch, tokens), an even number of tokens; the second half is not used.
        attention_mask: (batch, tokens); a row whose first half is not all text is asked for nothing.

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
    """From `start` on every token is a blank, and the blanks are asked for the text from its beginning.

    A blank is asked for what stood `start` tokens before it, not for what follows: nothing but the first blank says
    that a copy begins, so that the position before it cannot know (the paper asks that one too, 2.4).

    Args:
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens); a row that is not all text before its start is asked for nothing.
        blank_id: the blank.
        start: of each row, or of all; the middle by default.

    Raises:
        UserError: a start that leaves no text or no blank.
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
    """A share of the second half's inputs hidden: between copy (0) and blank copy (1).

    A blank is asked for the token it hides, a token for the one that follows, where that is not hidden.

    Args:
        task: of `copy`.
        blank_id: what stands in place of a hidden token.
        share: of the tokens, each drawn by itself.
        generator: what draws, on the CPU.

    Raises:
        UserError: a share outside [0, 1].
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
    """The label of each position moved to the position before it."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)
