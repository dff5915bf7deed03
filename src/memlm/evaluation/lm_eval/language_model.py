"""A memory model as a model of lm-evaluation-harness: whole chunks beyond a window of tokens are read as memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.evaluation.lm_eval.context_reader import ContextReader, Parts, Reading
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.adapter import plain_decoder
from memlm.models.memory.prompt import Piece, span_of

_MAX_CACHED = 4096
"""Maximum number of cached chunks' memories, for requests that share a context."""


class MemoryLM(ContextReader):
    """The model class of the harness around a memory model."""

    def __init__(
        self,
        model: MemoryModelForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        *,
        memory_after: int = 256,
        reading: Reading = "memory",
        batch_size: int = 8,
    ) -> None:
        """Wrap a loaded model.

        Args:
            model: the memory model.
            tokenizer: the tokenizer of its decoder.
            memory_after: the minimum number of newest tokens that stay tokens.
            reading: how older tokens are read.
            batch_size: requests in a batch.

        Raises:
            UserError: the model's layout has no prompts, or the decoder has fewer positions than `memory_after`.
        """
        super().__init__(
            plain_decoder(model.decoder), tokenizer, memory_after=memory_after, reading=reading, batch_size=batch_size
        )
        self.memory_model = model.eval()
        self.chunk_length = self.scored_at_once = model.config.chunk_length
        self.begin = memory_after + self.chunk_length
        self.task_length = memory_after + max(memory_after, 2 * self.chunk_length)
        self.cache: dict[tuple[int, ...], Tensor] = {}
        model.prompt([[[0]]])  # raises now where this model has no prompts

    def _split(self, context: list[int]) -> Parts:
        old = max(0, len(context) - self.memory_after) // self.chunk_length * self.chunk_length
        return Parts(context[:old], context[old:])

    def _positions_of(self, parts: Parts) -> int:
        return span_of(self.memory_model.config, self._pieces(parts))

    def _memories_of(self, old: list[int]) -> int:
        return len(old) // self.chunk_length

    def _logits(self, rows: Sequence[Parts], count: int) -> Tensor:
        prompt = self.memory_model.prompt([self._pieces(parts) for parts in rows])
        inputs = self.memory_model.prepare_inputs_for_generation(**prompt, use_cache=False)
        return self.memory_model(**inputs, logits_to_keep=count).logits

    def _generated(self, rows: Sequence[Parts], **options: Any) -> list[str]:
        prompt = self.memory_model.prompt([self._pieces(parts) for parts in rows])
        found = cast(Any, self.memory_model).generate(**prompt, **options)
        return [self.tok_decode(row) for row in found[:, prompt["input_ids"].shape[1] :].tolist()]

    def _pieces(self, parts: Parts) -> list[Piece]:
        return [self._encode(parts.old), parts.newest] if parts.old else [parts.newest]

    @torch.inference_mode()
    def _encode(self, old: list[int]) -> Tensor:
        length = self.chunk_length
        keys = [tuple(old[first : first + length]) for first in range(0, len(old), length)]
        missing = [key for key in dict.fromkeys(keys) if key not in self.cache]
        if missing:
            ids = torch.tensor(missing, device=self.memory_model.device)[None]
            self.cache.update(zip(missing, self.memory_model.encode_chunks(ids, torch.ones_like(ids))[0], strict=True))
        found = torch.stack([self.cache[key] for key in keys])
        while len(self.cache) > _MAX_CACHED:
            del self.cache[next(iter(self.cache))]
        return found
