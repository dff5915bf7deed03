"""A pretrained decoder as a model of lm-evaluation-harness: tokens beyond a window of tokens are read as slots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memlm.errors import UserError
from memlm.evaluation.lm_eval.context_reader import ContextReader, Parts, Reading
from memlm.models.slots import MemoryDecoder, SlotMemories

_OLD_TOKENS = 256
"""Tokens of the shortest old context of memlm's own tasks."""


class SlotLM(ContextReader):
    """The model class of the harness around a decoder that reads memories of texts from its cache."""

    scored_at_once = 32

    def __init__(
        self,
        model: MemoryDecoder,
        *,
        tokens_per_memory: int | float = 8,
        memory_after: int = 256,
        reading: Reading = "memory",
        batch_size: int = 8,
    ) -> None:
        """Wrap a decoder.

        Args:
            model: the decoder and its tokenizer.
            tokens_per_memory: old tokens for each slot.
            memory_after: the number of newest tokens that stay tokens.
            reading: how older tokens are read.
            batch_size: requests in a batch.

        Raises:
            UserError: the decoder has fewer positions than `memory_after`, or `tokens_per_memory` is less than 1.
        """
        super().__init__(
            model.decoder, model.tokenizer, memory_after=memory_after, reading=reading, batch_size=batch_size
        )
        if not tokens_per_memory >= 1:
            raise UserError(f"tokens_per_memory ({tokens_per_memory}) must be at least 1.")
        self.memory_decoder, self.tokens_per_memory = model, tokens_per_memory
        self.first_tokens = (model.config.first_token_id,)
        self.begin = memory_after + 1
        self.task_length = memory_after + max(memory_after, _OLD_TOKENS)

    def _split(self, context: list[int]) -> Parts:
        # memories bring the first token themselves
        first = int(context[:1] == list(self.first_tokens))
        old = len(context) - self.memory_after
        return Parts(context[first:old], context[old:]) if old > first else Parts([], context)

    def _positions_of(self, parts: Parts) -> int:
        return len(parts.old) + len(parts.newest) + bool(parts.old)

    def _memories_of(self, old: list[int]) -> int:
        block = self.memory_decoder.settings.block_length
        blocks, rest = divmod(len(old), block)
        return blocks * math.ceil(block / self.tokens_per_memory) + math.ceil(rest / self.tokens_per_memory)

    def _logits(self, rows: Sequence[Parts], count: int) -> Tensor:
        inputs = self.memory_decoder.inputs([parts.newest for parts in rows], self._memories(rows))
        return self.memory_decoder.decoder(**inputs, logits_to_keep=count).logits

    def _generated(self, rows: Sequence[Parts], **options: Any) -> list[str]:
        return self.memory_decoder.generate([parts.newest for parts in rows], self._memories(rows), **options)

    def _memories(self, rows: Sequence[Parts]) -> SlotMemories | None:
        """Return the memories of each row; rows with the same old tokens share their encoding."""
        places: dict[tuple[int, ...], int] = {}
        chosen = torch.tensor([places.setdefault(tuple(parts.old), len(places)) for parts in rows])
        if () in places:
            return None
        return self.memory_decoder.memories(list(places), tokens_per_memory=self.tokens_per_memory).rows(chosen)
