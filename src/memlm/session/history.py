"""What a session has read of one text: memories of full chunks, tokens where they are not good enough, the newest."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.models.memory import MemoryModelConfig
from memlm.models.memory.prompt import Piece

ChunkMemory = Float[Tensor, "memories numbers"]


@dataclass
class History:
    """One text, oldest first.

    Attributes:
        chunks: a memory, or the tokens of a chunk that is read as it is.
        newest: 0 to `chunk_length` tokens. A full chunk stays until a token follows it: what follows is predicted from
            its tokens, as in training.
        forgotten: chunks that were dropped, as they did not fit any more.
    """

    chunks: list[ChunkMemory | list[int]] = field(default_factory=list)
    newest: list[int] = field(default_factory=list)
    forgotten: int = 0

    @property
    def as_tokens(self) -> int:
        """Chunks that are read as tokens."""
        return sum(not isinstance(chunk, Tensor) for chunk in self.chunks)

    def copy(self) -> History:
        """One that goes its own way; memories are never changed, so that they are shared."""
        return History(list(self.chunks), list(self.newest), self.forgotten)

    def pieces(self) -> list[Piece]:
        """For a prompt; memories that follow each other as one."""
        found: list[Piece] = []
        run: list[Tensor] = []
        for chunk in self.chunks:
            if isinstance(chunk, Tensor):
                run.append(chunk)
                continue
            if run:
                found.append(torch.stack(run))
                run = []
            found.append(chunk)
        if run:
            found.append(torch.stack(run))
        return [*found, self.newest] if self.newest else found

    def keep_within(self, config: MemoryModelConfig, positions: int) -> None:
        """Drop the oldest chunks until the rest takes at most so many decoder positions."""
        slots = config.slots_per_chunk  # looked up once: configurations are slow to ask
        sizes = [slots if isinstance(c, Tensor) else len(c) for c in self.chunks]
        over, dropped = sum(sizes) - positions, 0
        while over > 0 and dropped < len(sizes):
            over -= sizes[dropped]
            dropped += 1
        del self.chunks[:dropped]
        self.forgotten += dropped
