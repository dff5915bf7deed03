"""Contexts that a sceptic would let a decoder read instead of memories, with as many entries in its cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.models.slots import EncodedTexts, MemoryDecoder, SlotMemories
from memlm.models.slots.states import LayerStates

SINKS = 3
"""Tokens that streaming keeps from the beginning of the text, beside the token before it (arXiv 2309.17453)."""


def nothing(encoded: EncodedTexts) -> SlotMemories:
    """Return memories of no token; the decoder sees the token before the text only."""
    return encoded.keep(
        [
            states.keys.new_full((*states.keys.shape[:1], states.keys.shape[2], 1), -1).long()
            for states in encoded.layers
        ]
    )


Read = Callable[[int], SlotMemories]
"""Function from a number of entries in the cache to what the decoder reads."""


def truncation(model: MemoryDecoder, encoded: EncodedTexts, old: list[list[int]]) -> Read:
    """Read the last old tokens, without those before them."""
    return lambda count: model.encode([row[-count:] for row in old], mode="joint").keep_all()


def streaming(model: MemoryDecoder, encoded: EncodedTexts, old: list[list[int]]) -> Read:
    """Read the first tokens, as attention sinks, and the last ones (StreamingLLM, arXiv 2309.17453)."""
    every = torch.arange(len(old[0]), device=encoded.layers[0].keys.device)

    def read(count: int) -> SlotMemories:
        kept = torch.cat([every[:SINKS], every[len(every) - (count - SINKS) :]])
        return encoded.keep([kept.expand(len(old), states.keys.shape[2], -1) for states in encoded.layers])

    return read


def observed_attention(model: MemoryDecoder, encoded: EncodedTexts, old: list[list[int]]) -> Read:
    """Read the tokens that got the most attention per later token while the text was read (H2O, arXiv 2306.14048)."""
    attended = [_attention(states, len(old[0])) for states in encoded.layers]
    return lambda count: encoded.keep([x.topk(count, dim=-1).indices.sort(-1).values for x in attended])


def _attention(states: LayerStates, tokens: int) -> Float[Tensor, "batch heads tokens"]:
    """Return the mean attention that each token got from those that see it, its own included."""
    # (batch, key heads, group, tokens, numbers) and (batch, key heads, 1 + tokens, numbers)
    queries = states.queries.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)[..., :tokens, :].float()
    keys = states.keys.transpose(1, 2).flatten(2, 3)[:, :, :tokens]
    keys = torch.cat([states.first_key, keys], dim=2).float()
    score = states.rule.scores(queries, keys[:, :, None])
    seen = torch.ones(tokens, tokens + 1, dtype=torch.bool, device=score.device).tril(1)
    attention = score.masked_fill(~seen, float("-inf")).softmax(-1)[..., 1:].sum(3)
    return (attention / torch.arange(tokens, 0, -1, device=score.device)).mean(2)


BASELINES: dict[str, Callable[[MemoryDecoder, EncodedTexts, list[list[int]]], Read]] = {
    "truncation": truncation,
    "sink and window": streaming,
    "observed attention": observed_attention,
}
"""The contexts that a sceptic would read instead of memories, with as many entries in the cache."""
