"""The loss of a decoder one of whose heads has fewer slots than tokens.

A decoder reads on behind a text in two ways: it predicts what follows, and it reads a passage of the text again, as it
does where it copies or answers. For each head and each number of slots, the attention over slots is compared with that
over all tokens, as it enters the residual stream:

    error = |W (output behind slots - output behind all tokens)|^2 / |hidden state|^2

in the mean over tokens, where W is the part of the layer's output projection that belongs to the head.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from memlm.errors import ConfigError, UserError
from memlm.models.slots.attention import AttentionRecord, recorded
from memlm.models.slots.decoder import MemoryDecoder
from memlm.models.slots.encoded import EncodedTexts
from memlm.models.slots.head_budgets import RATIOS, HeadErrors
from memlm.models.slots.memories import LayerSlots, SlotMemories

CONTEXT, FOLLOWING = 512, 64
"""Tokens of a text, and tokens that are read behind it."""
_CUE = 16
"""Tokens with which a passage is begun again; those behind them are measured."""
_JUDGED = RATIOS.index(8)
"""The two ways of reading count equally at this number of tokens for each slot."""
_PROJECTIONS = ("o_proj", "dense", "c_proj", "out_proj")

OnRow = Callable[[int, int], None]
"""Function of the number of texts that are measured, and of all."""


def measured_heads(
    model: MemoryDecoder, texts: Sequence[Sequence[int]], *, on_row: OnRow = lambda done, of: None
) -> HeadErrors:
    """Measure a decoder's heads on texts, of which it makes memories as its settings say.

    Args:
        model: the decoder.
        texts: token ids of texts, each of more than 128 tokens, of which 576 are used, or as many as the decoder's
            positions allow; the last 64 are read behind the others.
        on_row: is told how many texts are done.

    Raises:
        UserError: no text, one that is too short, or an injection of vectors, which are read by all heads.
        ConfigError: a decoder whose layers' output projections are not known.
    """
    if not texts or min(map(len, texts)) <= 2 * FOLLOWING:
        raise UserError(f"heads are measured on texts of more than {2 * FOLLOWING} tokens; give at least one.")
    if not model.injection.takes_start:
        raise UserError(f"memories of the injection '{model.config.injection}' are vectors, which all heads read.")
    # behind a text of which 64 tokens are left out, up to 96 are read
    most = min(CONTEXT, int(model.decoder.config.max_position_embeddings) - 2 * FOLLOWING) + FOLLOWING
    draw, weights = random.Random(0), _projections(model)  # noqa: S311 (places, not secrets)
    layers, heads, _ = model.slot_sizes
    following, again = (torch.zeros(layers, heads, len(RATIOS)) for _ in range(2))
    for done, text in enumerate(texts, 1):
        ids = list(text[:most])
        old, new = ids[:-FOLLOWING], ids[-FOLLOWING:]
        encoded = cast(EncodedTexts, model.encode([old], heads=None))
        every = [encoded.at(tokens_per_memory=ratio) for ratio in RATIOS]
        start = draw.randrange(len(old) - FOLLOWING + 1)
        recent, passage = new[: FOLLOWING // 2], old[start : start + FOLLOWING]
        following += _errors(model, new, every, weights, skipped=0)
        again += _errors(model, [*recent, *passage], every, weights, skipped=len(recent) + _CUE)
        on_row(done, len(texts))
    return _table(following, again)


def _table(following: Float[Tensor, "layers heads ratios"], again: Float[Tensor, "layers heads ratios"]) -> HeadErrors:
    both = sum(x / x[..., _JUDGED].sum().clamp(min=1e-30) for x in (following, again))
    return HeadErrors(tuple(tuple(tuple(row) for row in layer) for layer in cast(Tensor, both).tolist()))


@torch.no_grad()
def _errors(
    model: MemoryDecoder,
    tokens: list[int],
    every: Sequence[SlotMemories],
    weights: Sequence[Float[Tensor, "width heads group numbers"]],
    *,
    skipped: int,
) -> Float[Tensor, "layers heads ratios"]:
    """Return the errors of one text, where the decoder reads tokens behind it, without the first `skipped` of them."""
    records: dict[int, AttentionRecord] = {}
    with recorded(lambda record: records.__setitem__(record.layer, record)):
        hidden = model.decoder(**model.inputs([tokens], every[0]), output_hidden_states=True).hidden_states
    found: list[Tensor] = []
    for layer, weight in enumerate(weights):
        outputs = [_attended(records[layer], x.layers[layer], int(x.lengths)) for x in every]
        size = hidden[layer][0].float().square().sum(-1)
        lost = [torch.einsum("hgtn,whgn->htw", x - outputs[0], weight).square().sum(-1) / size for x in outputs]
        # one token whose hidden state is small must not outweigh all others
        found.append(torch.stack(lost, -1).clamp(max=1)[:, skipped:].mean(1).cpu())
    return torch.stack(found)


def _attended(record: AttentionRecord, slots: LayerSlots, length: int) -> Float[Tensor, "heads group tokens numbers"]:
    """Return the attention of tokens, the first of which stands at position `length`, over slots and themselves."""
    keys = torch.cat([slots.keys[0], record.key[0]], 1).float()
    values = torch.cat([slots.values[0], record.value[0]], 1).float()
    queries = record.query[0].float().unflatten(0, (len(keys), -1))
    places = length + torch.arange(queries.shape[2], device=keys.device)
    positions = torch.cat([slots.positions[0], places.expand(len(keys), -1)], 1)
    distance = places[:, None] - positions[:, None]
    seen = (distance >= 0) & (distance < (record.rule.window or math.inf))
    bias = F.pad(slots.bias[0], (0, len(places)))[:, None].where(seen, -math.inf)
    score = record.rule.scores(queries, keys[:, None]) + bias[:, None]
    return score.softmax(-1) @ values[:, None]


def _projections(model: MemoryDecoder) -> list[Float[Tensor, "width heads group numbers"]]:
    """Return the output projection of each layer's attention."""
    layers, heads, numbers = model.slot_sizes
    found: dict[int, Tensor] = {}
    for module in cast(PreTrainedModel, model.decoder.base_model).modules():
        layer = getattr(module, "layer_idx", None)
        named = [getattr(module, name) for name in _PROJECTIONS if isinstance(getattr(module, name, None), nn.Module)]
        if layer is not None and named:
            found[int(layer)] = _weight(named[0]).float().unflatten(1, (heads, -1, numbers))
    if sorted(found) != list(range(layers)):
        raise ConfigError(
            f"the output projections of decoders of kind '{model.decoder.config.model_type}' are not known; use one of "
            "the families Llama, Qwen, Gemma, Mistral, Phi or GPT-2."
        )
    return [found[layer] for layer in range(layers)]


def _weight(projection: nn.Module) -> Float[Tensor, "width inputs"]:
    projection = getattr(projection, "base_layer", projection)  # beneath adapters
    weight = cast(Any, projection).weight
    return weight.T if isinstance(projection, Conv1D) else weight
