"""Where the memories of earlier chunks stand in the decoder's input. C chunks of the decoder, G groups of slots.

aligned    the newest group stands next to the tokens, unused groups before it are masked: the distance between tokens
           and the memory they need is the same for every chunk
fixed      the paper's (2.7): groups from the left, oldest first, filler up to one group more than can be used
variable   the paper's other: as aligned, but positions count from the first memory that is there
oracle     as aligned, and each chunk's own memory stands next to its tokens: all a memory could tell (paper, 1.3)

An entry of a table is the chunk whose memory stands there, or UNUSED.
"""

from __future__ import annotations

from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

LAYOUTS: Final = ("aligned", "fixed", "variable", "oracle")
UNUSED: Final = -1


def slot_table(layout: str, *, chunks: int, groups: int) -> Int[Tensor, "chunks groups"]:
    """Whose memory each group of slots holds, for each of `chunks` chunks read one after the other.

    Args:
        layout: one of LAYOUTS.
        chunks: how many chunks a document has.
        groups: groups of slots in the decoder's input; where they are fewer than the earlier chunks, the newest stay.
    """
    chunk, group = torch.arange(chunks)[:, None], torch.arange(groups)
    if layout == "fixed":
        dropped = (chunk - groups).clamp(min=0)
        held = group + dropped
    else:
        held = group - groups + chunk + reads_own_chunk(layout)
    return torch.where((held >= 0) & (held < chunk + reads_own_chunk(layout)), held, UNUSED)


def reads_own_chunk(layout: str) -> bool:
    """Whether a chunk is read behind its own memory, which knows what comes."""
    return layout == "oracle"


def groups_needed(layout: str, *, chunks: int, trained: int) -> int:
    """Groups of slots for documents of so many chunks; as many as in training at least, so that positions stay.

    Args:
        layout: one of LAYOUTS.
        chunks: of the longest document.
        trained: chunks of a document in training.
    """
    most = max(chunks, trained)
    return most if layout == "fixed" or reads_own_chunk(layout) else most - 1
