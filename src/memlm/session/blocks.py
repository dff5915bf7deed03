"""Blocks of text as memories, and where they stand when a decoder reads several of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from memlm.models.slots import SlotMemories
from memlm.models.slots.memories import joined
from memlm.models.slots.rotary import Rotary


class Block(NamedTuple):
    """Memories of consecutive tokens of a text.

    Attributes:
        memories: of one text.
        start: number of tokens before the block when it was encoded.
    """

    memories: SlotMemories
    start: int

    @property
    def tokens(self) -> int:
        """The number of tokens that the block stands for."""
        return int(self.memories.lengths) - 1 - self.start


def side_by_side(blocks: Sequence[Block], rotary: Rotary, *, positions: int | None = None) -> SlotMemories:
    """Return the memories of blocks, one behind the other.

    Args:
        blocks: at least one.
        rotary: moves their keys.
        positions: what they may take, the token before the text included; where they need more, the oldest blocks all
            stand at the first positions.
    """
    *starts, held = accumulate((block.tokens for block in blocks), initial=0)
    back = 0 if positions is None else max(0, 1 + held - positions)
    distances = [max(0, start - back) - block.start for start, block in zip(starts, blocks, strict=True)]
    return joined([block.memories for block in blocks], distances, rotary)
