"""Recurrent memory: the decoder's last hidden states of a chunk are the memory with which the next chunk begins.

    [memories read (K) | tokens (L) | write (K)] ─ causal decoder ─▶ logits of the tokens, memories of the next chunk

All tokens of a chunk are kept, what is written has attended to them, and padding is masked.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers import initialization as init

from memlm.errors import ConfigError
from memlm.models.base import DecoderInside, require_positive
from memlm.models.documents import (
    ChunkedDocuments,
    DocumentModelConfig,
    DocumentTargets,
    MemoryModelOutput,
    check_memories,
    chunked,
)
from memlm.shapes import TokenIds, TokenMask

RecurrentMemories = Float[Tensor, "documents chunks memories width"]


@strict
class RecurrentMemoryConfig(DocumentModelConfig):
    """A decoder that passes a few vectors from chunk to chunk (recurrent memory transformer, arXiv 2207.06881).

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys.
    """

    model_type = "memlm_recurrent_memory"
    sub_configs: ClassVar[dict[str, type[AutoConfig]]] = {"decoder": AutoConfig}  # pyright: ignore

    memory_tokens: int = 8
    """Vectors that pass from chunk to chunk."""
    backpropagation_depth: int | None = None
    """Number of chunks that gradients pass through before they are cut; all by default."""

    @property
    def inputs(self) -> int:
        """Positions of the decoder that one chunk takes: memories read, tokens, memories written."""
        return 2 * self.memory_tokens + self.chunk_length

    def check(self) -> None:
        """Raise ConfigError for sizes that do not exist or do not fit each other."""
        require_positive(self, "chunk_length", "num_chunks", "memory_tokens", "backpropagation_depth")
        longest = self.decoder_config.max_position_embeddings
        if self.inputs > longest:
            raise ConfigError(
                f"chunk_length ({self.chunk_length}) and twice memory_tokens ({self.memory_tokens}) take {self.inputs} "
                f"decoder positions and it has {longest}."
            )


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

    def init_own_weights(self) -> None:
        """Initialise the learned vectors."""
        for vectors in (self.start, self.write):
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
            check_memories(given, tuple(self.start.shape), documents=documents, chunks=chunks - 1)
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
