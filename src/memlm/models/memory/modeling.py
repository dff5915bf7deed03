"""The memory model as a causal language model that reads documents and generates from prompts with memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GenerationMixin
from transformers.utils import ModelOutput

from memlm.errors import MemoryShapeError, UserError
from memlm.models.base import with_cache_name
from memlm.models.documents import DocumentTargets, MemoryModelOutput
from memlm.models.memory.configuration import MemoryModelConfig
from memlm.models.memory.encoding import DocumentMemories
from memlm.models.memory.prompt import Piece, chunk_positions_of, lay_out, positions_of
from memlm.models.memory.reading import DocumentReadingModel, is_rotary
from memlm.models.memory.slots import SlotReadout
from memlm.shapes import TokenIds

CachedMask = Int[Tensor, "batch seen"] | Bool[Tensor, "batch seen"] | Bool[Tensor, "batch 1 tokens seen"]
"""Nonzero for text; with a static cache, the cached positions that each token may read."""


class MemoryModelForCausalLM(DocumentReadingModel, GenerationMixin):
    """A decoder that reads earlier chunks as memories.

    `read_documents` is the pass over documents, for training and evaluation; `read_prompt` the pass over a prompt, for
    generation. `forward` serves both, because Trainer and `generate()` call it.

    Example:
        >>> model = MemoryModelForCausalLM.from_pretrained("runs/memory")
        >>> memories = model.encode(input_ids, attention_mask)       # (documents, chunks, memories, numbers)
        >>> logits = model(input_ids, attention_mask).logits         # (documents, tokens, vocabulary)
        >>> tokens = model.generate(**model.prompt([[memories[0], [5, 6]]]))
    """

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__(config)
        # placeholders of slots are never generated
        self.generation_config.suppress_tokens = [config.memory_token_id]

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: CachedMask | None = None,
        memories: DocumentMemories | None = None,
        *,
        use_memory: bool | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        logits_to_keep: int = 0,
        **inputs: Any,
    ) -> MemoryModelOutput | ModelOutput:
        """Read documents, or a prompt if `position_ids` are given, as `prepare_inputs_for_generation` gives them.

        Args:
            input_ids: (documents, tokens).
            attention_mask: (documents, tokens), nonzero for text.
            memories: (documents, chunks, memories, numbers).
            use_memory: see `read_documents`.
            position_ids: (documents, tokens), the decoder's positions of a prompt.
            logits_to_keep: number of last positions of a prompt to compute logits for; 0 for all.
            inputs: fields of `DocumentTargets` with documents; other arguments of `read_prompt` with a prompt.

        Raises:
            UserError: as `read_documents` and `read_prompt`.
            MemoryShapeError: memories of another shape than the encoder writes.
        """
        if position_ids is None:
            targets = DocumentTargets(**inputs)
            return self.read_documents(input_ids, attention_mask, memories, targets, use_memory=use_memory)
        inputs |= {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": logits_to_keep}
        return self.read_prompt(input_ids, memories, **inputs)

    def read_prompt(
        self,
        input_ids: TokenIds,
        memories: DocumentMemories | None = None,
        chunk_positions: Int[Tensor, "rows tokens"] | None = None,
        **decoder_inputs: Any,
    ) -> ModelOutput:
        """Return the decoder's output for a prompt, or for the next tokens of a prompt in its cache.

        Args:
            input_ids: (rows, tokens); `memory_token_id` stands for each slot (see `prompt`).
            memories: (rows, chunks, memories, numbers), one block of slots for each chunk.
            chunk_positions: (rows, tokens), the position of each token in its chunk.
            decoder_inputs: arguments of the decoder: attention_mask, position_ids, use_cache, cache, logits_to_keep.

        Raises:
            UserError: the prompt has slots and there are no memories.
            MemoryShapeError: memories for another number of slots than the prompt has.
        """
        embedded = self._embed_prompt(input_ids, memories, chunk_positions)
        with self._adapted(memories is not None and bool(memories.numel())):
            return self.decoder(inputs_embeds=embedded, **with_cache_name(decoder_inputs))

    def _embed_prompt(
        self, input_ids: TokenIds, memories: DocumentMemories | None, chunk_positions: Tensor | None
    ) -> Float[Tensor, "rows tokens width"]:
        is_slot = input_ids == self.config.memory_token_id
        tokens = self._embed(input_ids.masked_fill(is_slot, self.blank_id))
        if self.chunk_positions is not None and chunk_positions is not None:
            tokens = tokens + self.chunk_positions(chunk_positions)
        if not bool(is_slot.any()):
            return tokens
        if memories is None:
            raise UserError("the prompt has slots for memories; give the memories too (see `prompt`).")
        slots = cast(SlotReadout, self.readout)(memories.flatten(0, 1).to(self.dtype)).flatten(0, 1)
        if len(slots) != int(is_slot.sum()):
            raise MemoryShapeError(
                f"{len(slots)} slots do not fit the {int(is_slot.sum())} in the prompt; build it with `prompt`."
            )
        return tokens.masked_scatter(is_slot[..., None], slots.to(tokens.dtype))

    def prompt(self, rows: Sequence[Sequence[Piece]]) -> dict[str, Tensor]:
        """Return the arguments of `generate()` for rows of memories and tokens, padded on the left.

        Args:
            rows: for each row, memories (chunks, memories, numbers) and lists of tokens in the order in which they
                were read; the newest tokens stand last.

        Raises:
            UserError: a layout or filler that has no prompts, or no rows.
            MemoryShapeError: memories of another shape than the encoder writes.
        """
        return lay_out(self.config, rows, self.device)

    def prompt_embeddings(self, rows: Sequence[Sequence[Piece]]) -> dict[str, Tensor]:
        """Return a prompt for the decoder by itself: `inputs_embeds` (rows, positions, width) and `attention_mask`.

        Args:
            rows: as in `prompt`.

        Raises:
            UserError: as `prompt`, or a model whose decoder by itself would read other positions.
            MemoryShapeError: memories of another shape than the encoder writes.
        """
        if self.chunk_positions is not None:
            raise UserError(
                "this model adds each token's position in the chunk (learned_positions), which its decoder by itself "
                "does not; train with model.learned_positions=false to export prompts."
            )
        if not is_rotary(self.config.decoder_config) and self.config.layout != "variable":
            raise UserError(
                f"this model's decoder has absolute positions and layout '{self.config.layout}' moves them; train "
                "with model.layout=variable to export prompts."
            )
        prompt = self.prompt(rows)
        embedded, mask = self._embed_prompt(prompt["input_ids"], prompt["memories"], None), prompt["attention_mask"]
        longest = int(mask.sum(1).max())
        return {"inputs_embeds": embedded[:, -longest:], "attention_mask": mask[:, -longest:]}

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Prepare inputs as transformers does, with the positions that slots and tokens had in training."""
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        kwargs["position_ids"] = positions_of(self.config, input_ids, mask)
        inputs = cast(Any, super()).prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if self.chunk_positions is not None:
            positions = chunk_positions_of(self.config, input_ids, mask)
            inputs["chunk_positions"] = positions[:, -inputs["input_ids"].shape[1] :]
        return inputs
