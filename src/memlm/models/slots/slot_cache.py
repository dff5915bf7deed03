"""The cache from which a decoder reads slots, and to which it adds the tokens that follow."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from memlm.errors import UserError
from memlm.models.base import CACHE_NAME
from memlm.models.slots.attention import HeadSlots, marked
from memlm.models.slots.memories import LayerSlots, SlotMemories


class SlotLayer(DynamicLayer):
    """One layer's slots, and the keys and values of the tokens that were read behind them.

    Slots stand for more tokens than they are. The layer therefore reports the number of positions that went before, so
    that the next token gets the position it would have behind the text itself.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, slots: LayerSlots, length: int) -> None:
        super().__init__()
        nothing = slots.keys[:, :, :0]
        self.lazy_initialization(nothing, nothing)
        self.keys, self.values = nothing, nothing
        self.slots = _by_heads(slots)
        self.length = length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the keys and values of new tokens and return all tokens', marked with the slots before them."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return marked(keys, self.slots), values

    def get_seq_length(self) -> int:
        """Return the position of the next token."""
        return self.length + self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of tokens' keys and the position of the first, as masks are built from them."""
        return self.keys.shape[2] + query_length, self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, as beam search needs it."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows of `indices` only."""
        self.keys, self.values = self.keys[indices], self.values[indices]
        self.slots = [part.map(lambda x: x[indices]) for part in self.slots]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        self.keys, self.values = (x.repeat_interleave(repeats, dim=0) for x in (self.keys, self.values))
        self.slots = [part.map(lambda x: x.repeat_interleave(repeats, dim=0)) for part in self.slots]


def _by_heads(slots: LayerSlots) -> list[HeadSlots]:
    """Return the slots of heads with equally many; a head's empty slots stand at the beginning and are left out."""
    most = slots.held.sum(-1).amax(0)
    found: list[HeadSlots] = []
    for count in most.unique().tolist():
        heads = slice(None) if bool((most == count).all()) else torch.nonzero(most == count)[:, 0]
        found.append(HeadSlots(heads, *(x[:, heads, x.shape[2] - count :] for x in vars(slots).values())))
    return found


class SlotCache(DynamicCache):
    """The cache of a decoder that has read memories; `generate(past_key_values=...)` goes on from it.

    A decoder writes the tokens that it reads into its cache, so each generation needs a cache of its own.

    Args:
        memories: slots of all layers.
    """

    def __init__(self, memories: SlotMemories) -> None:
        super().__init__()
        length = int(memories.lengths.max())
        self.layers = [SlotLayer(layer, length) for layer in memories.layers]

    @property
    def slot_bytes(self) -> int:
        """The bytes of all slots' keys, values and biases."""
        return sum(part.bytes for layer in self.layers for part in layer.slots)


def behind_memories(
    ids: Int[Tensor, "batch tokens"], mask: Bool[Tensor, "batch tokens"], memories: SlotMemories
) -> dict[str, Any]:
    """Return the arguments of a decoder's `forward` and `generate` for text behind memories.

    Args:
        ids: (batch, tokens), padded on the left or the right.
        mask: (batch, tokens), True for text.
        memories: of one text for each row, of the decoder's type and on its device.

    Returns:
        input_ids (batch, tokens); attention_mask, over the positions of memories and text; position_ids
        (batch, tokens); the cache, by the name that this version of transformers gives it.

    Raises:
        UserError: another number of rows than of texts.
    """
    if len(memories.lengths) != len(ids):
        raise UserError(f"{len(ids)} prompts do not fit memories of {len(memories.lengths)} texts; give one each.")
    lengths = memories.lengths.to(ids.device)
    before = torch.arange(int(lengths.max()), device=ids.device) >= lengths.max() - lengths[:, None]
    seen = torch.cat([before, mask], dim=1).long()
    positions = (seen.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    return {"input_ids": ids, "attention_mask": seen, "position_ids": positions, CACHE_NAME: SlotCache(memories)}
