"""How likely a decoder finds answers behind prompts; each prompt is read once for all of its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memlm.chunking import padded
from memlm.models.base import CACHE_NAME
from memlm.models.slots.decoder import MemoryDecoder
from memlm.models.slots.memories import SlotMemories


class AnswerScores(NamedTuple):
    """Scores of answers, each padded to the longest.

    Attributes:
        nats: (prompts, answers, tokens), the cross-entropy of each token; 0 for padding.
        likeliest: (prompts, answers, tokens), True where the decoder finds no token more probable; True for padding.
    """

    nats: Float[Tensor, "prompts answers tokens"]
    likeliest: Bool[Tensor, "prompts answers tokens"]


@torch.no_grad()
def score_answers(
    model: MemoryDecoder,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    memories: SlotMemories | None = None,
) -> AnswerScores:
    """Score answers behind prompts.

    Args:
        model: the decoder.
        prompts: token ids.
        answers: token ids of equally many answers to each prompt.
        memories: of one text for each prompt.

    Raises:
        UserError: another number of prompts than of texts, an empty prompt, or memories of another decoder.
    """
    decoder, each = cast(Any, model.decoder), len(answers[0])
    inputs = model.inputs(prompts, memories)
    seen, width = inputs["attention_mask"], inputs["input_ids"].shape[1]
    inputs.setdefault("position_ids", (seen.cumsum(1) - 1).clamp(min=0)[:, -width:])
    read = decoder(**inputs, use_cache=True, logits_to_keep=1)
    cache = read.past_key_values
    cache.batch_repeat_interleave(each)
    flat = [list(answer) for row in answers for answer in row]
    rows, mask = (x.to(seen.device) for x in padded(flat, length=max(map(len, flat)), pad_token_id=0))
    seen = torch.cat([seen.repeat_interleave(each, 0), mask], 1)
    positions = (seen.cumsum(1) - 1)[:, -rows.shape[1] :]
    found = decoder(input_ids=rows, attention_mask=seen, position_ids=positions, **{CACHE_NAME: cache}).logits
    logits = torch.cat([read.logits.repeat_interleave(each, 0), found[:, :-1]], 1).float()
    nats = torch.nn.functional.cross_entropy(logits.mT, rows, reduction="none").masked_fill(mask == 0, 0.0)
    likeliest = (logits.argmax(-1) == rows) | (mask == 0)
    return AnswerScores(nats.unflatten(0, (-1, each)), likeliest.unflatten(0, (-1, each)))
