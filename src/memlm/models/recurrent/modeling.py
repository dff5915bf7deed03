"""Recurrent memory: chunk after chunk, the decoder's own last states are the memory that the next chunk begins with.

    [memories read (K) | tokens (L) | write (K)] ─ causal decoder ─▶ logits of the tokens, memories of the next chunk

Unlike the reference code's baseline (paper's notes, 3.1.8) every token is kept and seen by what is written, and padding
is masked.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers import initialization as init

from memlm.errors import MemoryShapeError
from memlm.models.base import DecoderInside
from memlm.models.documents import ChunkedDocuments, MemoryModelOutput, chunked, loss_of
from memlm.models.recurrent.configuration import RecurrentMemoryConfig
from memlm.objectives import sums_by_objective
from memlm.shapes import Labels, TokenIds, TokenMask

RecurrentMemories = Float[Tensor, "documents chunks memories width"]


class RecurrentMemoryForCausalLM(DecoderInside):
    """A decoder with `memory_tokens` vectors of state, the baseline of memories that are encoded in parallel."""

    config: RecurrentMemoryConfig
    config_class = RecurrentMemoryConfig

    def __init__(self, config: RecurrentMemoryConfig) -> None:
        super().__init__(config)
        self.decoder = AutoModelForCausalLM.from_config(config.decoder_config)
        self.start = nn.Parameter(torch.empty(config.memory_tokens, config.decoder_config.hidden_size))
        self.write = nn.Parameter(torch.empty(config.memory_tokens, config.decoder_config.hidden_size))
        # labels are shifted by the objective, not by transformers
        self.loss_type = "ForMaskedLM"
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, RecurrentMemoryForCausalLM):
            for vectors in (module.start, module.write):
                init.normal_(vectors, std=vectors.shape[1] ** -0.5)

    def encode(self, input_ids: TokenIds, attention_mask: TokenMask | None = None) -> RecurrentMemories:
        """What is handed on after every chunk of every document; after chunks without text it means nothing."""
        return self._read(self._documents(input_ids, attention_mask, None), None, use_memory=True)[1]

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: Int[Tensor, "batch seen"] | Bool[Tensor, "batch seen"] | None = None,
        labels: Labels | None = None,
        memories: RecurrentMemories | None = None,
        objective: Int[Tensor, " documents"] | None = None,
        loss_weights: Float[Tensor, " objectives"] | None = None,
        use_memory: bool | None = None,
        num_items_in_batch: Float[Tensor, " objectives"] | Tensor | int | None = None,
        **kwargs: Any,
    ) -> MemoryModelOutput:
        """Read whole documents, chunk after chunk.

        Args:
            input_ids: (documents, tokens).
            attention_mask: (documents, tokens), nonzero for text, on any side.
            labels: (documents, tokens), what is asked of each position, else IGNORE_INDEX; not shifted here.
            memories: (documents, chunks, memories, width): read instead of what was handed on (another text's).
            objective: (documents,), which objective each row belongs to; all to one where None.
            loss_weights: (objectives,); all alike where None.
            use_memory: False: every chunk begins with the learnt start; by default as the configuration says.
            num_items_in_batch: (objectives,), tokens asked for over all accumulated batches and devices.
            kwargs: ignored; Trainer passes settings of other models.

        Raises:
            UserError: no label asks for anything.
            MemoryShapeError: memories of another shape than this model writes.
        """
        document = self._documents(input_ids, attention_mask, labels)
        wants = self.config.use_memory if use_memory is None else use_memory
        folded, written = self._read(document, memories, use_memory=wants)
        logits = document.joined(folded)
        if labels is None:
            return MemoryModelOutput(logits=logits, memories=written)
        owners = input_ids.new_zeros(len(input_ids)) if objective is None else objective
        sums = sums_by_objective(logits, labels, owners, count=document.objectives(objective, loss_weights))
        return MemoryModelOutput(
            loss=loss_of(sums, loss_weights, num_items_in_batch),
            logits=None if self.training else logits,
            memories=written,
            nats=sums.nats.detach(),
            num_correct=sums.num_correct,
            num_targets=sums.num_targets,
        )

    def _documents(self, input_ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> ChunkedDocuments:
        config = self.config
        return chunked(input_ids, mask, labels, length=config.chunk_length, pad=config.pad_token_id or 0)

    def _read(
        self, document: ChunkedDocuments, given: Tensor | None, *, use_memory: bool
    ) -> tuple[Float[Tensor, "rows length vocabulary"], RecurrentMemories]:
        """Logits of all chunks, folded, and what each handed on."""
        documents, chunks = document.ids.shape[:2]
        if given is not None:
            self._check(given, documents, chunks)
        start = self.start.expand(documents, -1, -1)
        memory, depth = start, self.config.backpropagation_depth
        logits: list[Tensor] = []
        written: list[Tensor] = []
        for i in range(chunks):
            hidden = self._chunk(memory if use_memory else start, document.ids[:, i], document.mask[:, i])
            logits.append(self.get_output_embeddings()(hidden[:, : self.config.chunk_length]))
            memory = hidden[:, self.config.chunk_length :]
            written.append(memory)
            if given is not None and i + 1 < chunks:
                memory = given[:, i]
            elif depth is not None and (i + 1) % depth == 0:
                memory = memory.detach()
        return torch.stack(logits, 1).flatten(0, 1), torch.stack(written, 1)

    def _chunk(self, memory: Tensor, ids: Tensor, mask: Tensor) -> Float[Tensor, "documents states width"]:
        """Hidden states of a chunk's tokens and of the places that write."""
        tokens = self.get_input_embeddings()(ids)
        inputs = torch.cat([memory.to(tokens.dtype), tokens, self.write.expand(len(ids), -1, -1)], dim=1)
        readable = mask.new_ones(len(ids), self.config.memory_tokens)
        places = torch.arange(self.config.inputs, device=ids.device).expand(len(ids), -1)
        hidden = self.decoder.base_model(
            inputs_embeds=inputs,
            attention_mask=torch.cat([readable, mask, readable], dim=1).long(),
            position_ids=places,
            use_cache=False,
        ).last_hidden_state
        return hidden[:, self.config.memory_tokens :]

    def _check(self, memories: Tensor, documents: int, chunks: int) -> None:
        expected = (self.config.memory_tokens, self.config.decoder_config.hidden_size)
        if memories.ndim != 4 or len(memories) != documents or tuple(memories.shape[2:]) != expected:
            raise MemoryShapeError(
                f"memories of shape {tuple(memories.shape)} do not fit {documents} documents of this model, "
                f"which hands on {expected} (memories, numbers) per chunk."
            )
        if memories.shape[1] < chunks - 1:
            raise MemoryShapeError(f"memories of {memories.shape[1]} chunks do not reach; {chunks - 1} are read.")
