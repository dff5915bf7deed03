"""Memories that enter beside the tokens, not before them: the paper's other two ways (its notes, 1.3 and 2.10)."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memlm.models.memory.configuration import MemoryModelConfig
from memlm.models.memory.encoder_configuration import ChunkEncoderConfig

HIDDEN_SHARE = 4
"""`hidden` gives one part in so many of the decoder's width to the memory."""


class Introduction(nn.Module):
    """A chunk's own memories beside each of its tokens: added (`projection`), or part of their width (`hidden`).

    `hidden` is the paper's concatenation, its token table as much narrower: a token's last numbers give way.
    """

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        writer, width = cast(ChunkEncoderConfig, config.writer), config.reader.hidden_size
        self.concatenates = config.introduction == "hidden"
        self.width = width // HIDDEN_SHARE if self.concatenates else width
        self.map = nn.Linear(writer.memories_per_chunk * writer.bottleneck_size, self.width, bias=False)

    def forward(
        self,
        tokens: Float[Tensor, "documents chunks length width"],
        memories: Float[Tensor, "documents chunks memories numbers"],
    ) -> Float[Tensor, "documents chunks length width"]:
        """Tokens that know their chunk's memories."""
        read = self.map(memories.flatten(2))[:, :, None].to(tokens.dtype)
        if not self.concatenates:
            return tokens + read
        return torch.cat([tokens[..., : -self.width], read.expand(-1, -1, tokens.shape[2], -1)], dim=-1)
