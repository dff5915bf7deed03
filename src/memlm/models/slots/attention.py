"""Attention over slots: a decoder's own attention, with a bias for each slot and a view of its queries and keys.

Transformers lets a model look its attention function up by name. The functions here call the decoder's own one, so a
decoder without slots computes what it computed before, bit for bit. Two things are added:

- keys that come from a `SlotCache` carry the slots before them, whose biases are added to the scores;
- within `recorded`, each layer shows its rotated queries, keys and values.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

_PREFIX = "memlm_"
_ATTRIBUTE = "memlm_slots"


@dataclass(frozen=True, eq=False)
class HeadSlots:
    """Slots of those heads of a layer that have equally many.

    Attributes:
        heads: (heads,), heads of keys and values, or all of them as a slice.
        keys: (batch, heads, slots, numbers), rotated.
        values: (batch, heads, slots, numbers).
        bias: (batch, heads, slots), added to the scores; minus infinity for a slot that holds nothing.
        positions: (batch, heads, slots), positions of the tokens that the slots come from.
    """

    heads: Int[Tensor, " heads"] | slice
    keys: Float[Tensor, "batch heads slots numbers"]
    values: Float[Tensor, "batch heads slots numbers"]
    bias: Float[Tensor, "batch heads slots"]
    positions: Int[Tensor, "batch heads slots"]

    @property
    def bytes(self) -> int:
        """The bytes of keys, values and biases."""
        return sum(x.numel() * x.element_size() for x in (self.keys, self.values, self.bias))

    def map(self, change: Callable[[Tensor], Tensor]) -> HeadSlots:
        """Return slots whose tensors are each passed through `change`."""
        return HeadSlots(self.heads, *map(change, (self.keys, self.values, self.bias, self.positions)))


def marked(keys: Tensor, slots: list[HeadSlots]) -> Tensor:
    """Attach the slots that stand before them to the keys of a layer's tokens, and return the keys."""
    setattr(keys, _ATTRIBUTE, slots)
    return keys


class ScoreRule(NamedTuple):
    """How a layer scores keys, and which of them a query sees.

    Attributes:
        scaling: factor of the scores.
        softcap: bound of the scores, or None.
        window: number of positions that a query sees, its own included, or None.
    """

    scaling: float
    softcap: float | None
    window: int | None

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the scores (..., queries, keys) of keys (..., keys, numbers), before any mask or bias."""
        found = (queries * self.scaling) @ keys.mT
        return found if self.softcap is None else self.softcap * torch.tanh(found / self.softcap)


@dataclass(frozen=True, eq=False)
class AttentionRecord:
    """The inputs of one layer's attention.

    Attributes:
        layer: index of the layer.
        query: (batch, heads, tokens, numbers), rotated to the positions of its tokens.
        key: (batch, key heads, positions, numbers), rotated.
        value: (batch, key heads, positions, numbers).
        rule: how the layer scores keys.
    """

    layer: int
    query: Float[Tensor, "batch heads tokens numbers"]
    key: Float[Tensor, "batch key_heads positions numbers"]
    value: Float[Tensor, "batch key_heads positions numbers"]
    rule: ScoreRule


_RECORDER: ContextVar[Callable[[AttentionRecord], None] | None] = ContextVar("recorder", default=None)


@contextmanager
def recorded(on_layer: Callable[[AttentionRecord], None]) -> Generator[None]:
    """Call `on_layer` with the inputs of each layer's attention within the context."""
    token = _RECORDER.set(on_layer)
    try:
        yield
    finally:
        _RECORDER.reset(token)


def use_slot_attention(decoder: PreTrainedModel) -> None:
    """Let a decoder read slots; its attention stays `sdpa` or `eager`, whichever it was loaded with."""
    name = str(getattr(decoder.config, "_attn_implementation", "eager"))
    if name.startswith(_PREFIX):
        return
    decoder.set_attn_implementation(_PREFIX + ("sdpa" if name == "sdpa" else "eager"))


def _attend(
    base: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> Any:
    recorder = _RECORDER.get()
    if recorder is not None:
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        # the fused function does not bound scores, whatever the layer says
        softcap = None if base is ALL_ATTENTION_FUNCTIONS["sdpa"] else kwargs.get("softcap")
        rule = ScoreRule(scaling, softcap, kwargs.get("sliding_window"))
        recorder(AttentionRecord(int(cast(Any, module).layer_idx), query, key, value, rule))
    slots: list[HeadSlots] | None = getattr(key, _ATTRIBUTE, None)
    if slots is None:
        return base(module, query, key, value, mask, **kwargs)
    if len(slots) == 1:
        return _behind_slots(base, slots[0], module, query, key, value, mask, kwargs)
    grouped = query.unflatten(1, (key.shape[1], -1))
    found = query.new_empty(query.shape[0], query.shape[2], *grouped.shape[1:3], value.shape[-1])
    for part in slots:
        own = (grouped[:, part.heads].flatten(1, 2), key[:, part.heads], value[:, part.heads])
        out = _behind_slots(base, part, module, *own, mask, kwargs)[0]
        found[:, :, part.heads] = out.unflatten(2, (-1, grouped.shape[2]))
    return found.flatten(2, 3), None


def _behind_slots(
    base: Callable[..., Any],
    slots: HeadSlots,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    options: dict[str, Any],
) -> Any:
    """Return the attention of some heads over slots and the tokens behind them."""
    biased = _mask_with_bias(slots, query, key, mask, options)
    return base(module, query, torch.cat([slots.keys, key], 2), torch.cat([slots.values, value], 2), biased, **options)


def _mask_with_bias(
    slots: HeadSlots, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> Float[Tensor, "batch heads tokens keys"]:
    count, lowest = slots.bias.shape[2], torch.finfo(query.dtype).min
    group = query.shape[1] // slots.bias.shape[1]
    bias = slots.bias.clamp(min=lowest).to(query.dtype)[:, :, None]
    if (window := options.get("sliding_window")) is not None:
        distance = options["position_ids"][:, None, :, None] - slots.positions[:, :, None]
        bias = torch.where(distance >= window, lowest, bias)
    # one pass over the largest tensor of this layer
    found = query.new_empty(*query.shape[:3], count + key.shape[2])
    found[..., :count] = bias.repeat_interleave(group, dim=1)
    found[..., count:] = _text_mask(query, key.shape[2], mask, lowest)
    return found


def _text_mask(query: Tensor, keys: int, mask: Tensor | None, lowest: float) -> Tensor:
    tokens = query.shape[2]
    if mask is None:
        mask = query.new_ones(tokens, keys, dtype=torch.bool).tril(keys - tokens)[None, None]
    if mask.dtype != torch.bool:
        return mask.to(query.dtype)
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)


def _sdpa(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return _attend(ALL_ATTENTION_FUNCTIONS["sdpa"], module, *args, **kwargs)


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    # each family has its own slow function beside its attention layer
    family = cast(Any, sys.modules[type(module).__module__])
    return _attend(family.eager_attention_forward, module, *args, **kwargs)


for _name, _function in {"sdpa": _sdpa, "eager": _eager}.items():
    AttentionInterface.register(_PREFIX + _name, _function)
    AttentionMaskInterface.register(_PREFIX + _name, ALL_MASK_ATTENTION_FUNCTIONS[_name])
