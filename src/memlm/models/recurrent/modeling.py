"""Recurrent memory: the decoder's last hidden states of a chunk are the memory with which the next chunk begins.

    [memories read (K) | tokens (L) | write (K)] ─ causal decoder ─▶ logits of the tokens, memories of the next chunk

All tokens of a chunk are kept, what is written has attended to them, and padding is masked.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers import initialization as init

from memlm.errors import MemoryShapeError
from memlm.models.base import DecoderInside
from memlm.models.documents import ChunkedDocuments, DocumentTargets, MemoryModelOutput, chunked
from memlm.models.recurrent.configuration import RecurrentMemoryConfig
from memlm.shapes import TokenIds, TokenMask

RecurrentMemories = Float[Tensor, "documents chunks memories width"]


class RecurrentMemoryForCausalLM(DecoderInside):
    """A decoder with `memory_tokens` vectors of state (arXiv 2207.06881), a baseline without parallel encoding."""

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
        """Return what every chunk of every document hands on.

        Args:
            input_ids: (documents, tokens).
            attention_mask: (documents, tokens), nonzero for text, with padding on any side.

        Returns:
            (documents, chunks, memories, width); memories after chunks without text carry no meaning.
        """
        document = self._chunked(input_ids, attention_mask, DocumentTargets())
        return self._read(document, None, use_memory=True)[1]

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        memories: RecurrentMemories | None = None,
        *,
        use_memory: bool | None = None,
        **targets: Any,
    ) -> MemoryModelOutput:
        """Read whole documents, chunk after chunk.

        Args:
            input_ids: (documents, tokens).
            attention_mask: (documents, tokens), nonzero for text, with padding on any side.
            memories: (documents, chunks, memories, width), read in place of what the chunks hand on.
            use_memory: False starts every chunk from the learned start; as configured if None.
            targets: fields of `DocumentTargets`; there is no reconstruction head.

        Raises:
            UserError: no label is a target.
            MemoryShapeError: memories of another shape than this model hands on, or of too few chunks.
        """
        goals = DocumentTargets(**targets)
        document = self._chunked(input_ids, attention_mask, goals)
        reads = self.config.use_memory if use_memory is None else use_memory
        folded, written = self._read(document, memories, use_memory=reads)
        logits = document.joined(folded)
        results = goals.results(goals.sums(logits))
        return MemoryModelOutput(logits=None if results and self.training else logits, memories=written, **results)

    def _chunked(self, input_ids: Tensor, mask: Tensor | None, targets: DocumentTargets) -> ChunkedDocuments:
        config = self.config
        return chunked(input_ids, mask, targets, length=config.chunk_length, pad=config.pad_token_id or 0)

    def _read(
        self, document: ChunkedDocuments, given: Tensor | None, *, use_memory: bool
    ) -> tuple[Float[Tensor, "rows length vocabulary"], RecurrentMemories]:
        """Return the logits of all chunks, folded, and what each chunk handed on."""
        documents, chunks = document.ids.shape[:2]
        if given is not None:
            self._check_memories(given, documents, chunks)
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
        """Return the hidden states of a chunk's tokens, then of the positions that write."""
        tokens = self.get_input_embeddings()(ids)
        inputs = torch.cat([memory.to(tokens.dtype), tokens, self.write.expand(len(ids), -1, -1)], dim=1)
        readable = mask.new_ones(len(ids), self.config.memory_tokens)
        positions = torch.arange(self.config.inputs, device=ids.device).expand(len(ids), -1)
        hidden = self.decoder.base_model(
            inputs_embeds=inputs,
            attention_mask=torch.cat([readable, mask, readable], dim=1).long(),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return hidden[:, self.config.memory_tokens :]

    def _check_memories(self, memories: Tensor, documents: int, chunks: int) -> None:
        expected = (self.config.memory_tokens, self.config.decoder_config.hidden_size)
        if memories.ndim != 4 or len(memories) != documents or tuple(memories.shape[2:]) != expected:
            raise MemoryShapeError(
                f"memories of shape {tuple(memories.shape)} do not fit {documents} documents of this model, "
                f"which hands on {expected} (memories, numbers) per chunk."
            )
        if memories.shape[1] < chunks - 1:
            raise MemoryShapeError(
                f"memories of {memories.shape[1]} chunks are too few: {chunks - 1} are read; encode the whole document."
            )
