"""The pass over documents: each chunk is decoded behind the memories of the chunks before it.

    document (B, T) ─ chunks (B, N, L) ─ encoder ─▶ memories (B, N, M, W) ─ readout ─▶ slots (B, N, K, E)
                             │                                                            │
                             └─ decoder's token table ─▶ [slots of chunks < n | tokens of chunk n] ─ decoder ─▶ logits

Encoder and decoder read all chunks at once, folded into the batch (memlm.models.memory.naive reads them one by one).
Every chunk has a mask of its own and padding is never read. The first token of a chunk is predicted from the last
position of the chunk before. Losses are means over tokens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedConfig

from memlm.errors import MemoryShapeError, UserError
from memlm.models.documents import ChunkedDocuments, DocumentTargets, MemoryModelOutput, check_memories, chunked
from memlm.models.layers.mixer.configuration import MixerConfig
from memlm.models.memory.adapter import adapters_active
from memlm.models.memory.encoding import DocumentMemories, MemoryEncodingModel
from memlm.models.memory.slots import UNUSED, Injection, memory_blocks_needed, memory_shape, reads_own_chunk, slot_table
from memlm.objectives import ObjectiveSums, sums_by_objective
from memlm.shapes import IGNORE_INDEX, TokenIds, TokenMask

_WIDTHS = 4
"""Rows with memories are decoded in at most this many groups by the number of memories they have."""


class DecoderRows(NamedTuple):
    """The decoder's inputs for folded chunks: slots, then tokens.

    Attributes:
        inputs: (rows, inputs, width).
        mask: (rows, inputs), true where an input may be read.
        positions: (rows, inputs).
        blanks: (rows, tokens), true where a token is a blank.
    """

    inputs: Float[Tensor, "rows inputs width"]
    mask: Bool[Tensor, "rows inputs"]
    positions: Int[Tensor, "rows inputs"]
    blanks: Bool[Tensor, "rows tokens"]

    def select(self, rows: Tensor) -> DecoderRows:
        """Return some rows, given by a mask or by indices."""
        return DecoderRows(*(x[rows] for x in self))


class DocumentReadingModel(MemoryEncodingModel):
    """A memory model that reads whole documents."""

    def read_documents(
        self,
        input_ids: TokenIds,
        attention_mask: TokenMask | None = None,
        memories: DocumentMemories | None = None,
        targets: DocumentTargets | None = None,
        *,
        use_memory: bool | None = None,
    ) -> MemoryModelOutput:
        """Return the logits of every token, each chunk read behind the memories of earlier chunks.

        In training mode with labels, only chunks that have a target are decoded and no logits are returned.

        Args:
            input_ids: (documents, tokens).
            attention_mask: (documents, tokens), nonzero for text, with padding on any side.
            memories: (documents, chunks, memories, numbers), as `encode` returns them; encoded here if None.
            targets: labels and their objectives; without them there is no loss.
            use_memory: False leaves all slots empty (the `no_memory` baseline); as configured if None.

        Raises:
            UserError: more chunks than the decoder has positions for, or no label is a target.
            MemoryShapeError: memories of another shape than the encoder writes, or of too few chunks.
        """
        targets = DocumentTargets() if targets is None else targets
        document = chunked(input_ids, attention_mask, targets, length=self.config.chunk_length, pad=self.blank_id)
        reads = self.config.use_memory if use_memory is None else use_memory
        memories = self._memories(document, memories) if reads or document.reconstruction is not None else None
        read = memories if reads else None
        if targets.labels is None or not self.training:
            logits = document.joined(self._chunk_logits(document, read))
            sums = targets.sums(logits)
        else:
            logits, sums = None, self._training_sums(document, read, targets)
        if sums is not None and document.reconstruction is not None:
            more = self._reconstruction_sums(document.reconstruction, memories)
            sums = ObjectiveSums(*(torch.cat(pair) for pair in zip(sums, more, strict=True)))
        return MemoryModelOutput(logits=logits, memories=memories, **targets.results(sums))

    def decode(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks length vocabulary"]:
        """Return the logits of the tokens that each chunk's memories hold, as the blank-copy objective asks for them.

        The memories of a chunk fill all the blocks of slots that separate a text from its copy in training, which is
        half the chunks of a document.

        Args:
            memories: (chunks, memories, numbers).

        Raises:
            MemoryShapeError: memories of another shape than the encoder writes, or values that are not finite.
            UserError: the model's decoder reads no memories (a baseline).
        """
        if not self.config.use_memory:
            raise UserError("this model never reads its memories (use_memory=False); nothing can be given back.")
        blocks = max(1, self.config.num_chunks // 2)
        check_memories(memories[:, None], memory_shape(self.config), documents=len(memories), chunks=1)
        if not bool(torch.isfinite(memories).all()):
            raise MemoryShapeError("memories hold values that are NaN or infinite; encode the text again.")
        if not len(memories):
            return memories.new_zeros(0, self.config.chunk_length, self.config.decoder_config.vocab_size)
        shape = (len(memories), blocks + 1, self.config.chunk_length)
        blanks = torch.full(shape, self.blank_id, device=memories.device)
        document = ChunkedDocuments(blanks, torch.ones_like(blanks), None, None, None, shape[1] * shape[2])
        is_last = torch.arange(blocks + 1, device=memories.device).expand(shape[:2]) == blocks
        return self._chunk_logits(document, memories[:, None].expand(-1, blocks + 1, -1, -1), is_last)

    def _memories(self, document: ChunkedDocuments, memories: Tensor | None) -> Tensor:
        """Return given memories after a check, or encode all chunks that are read (the last one usually is not)."""
        reads_last = document.reconstruction is not None or reads_own_chunk(self.config.layout)
        needed = document.ids.shape[1] - (not reads_last)
        if memories is None:
            return self.encode_chunks(document.ids[:, :needed], document.mask[:, :needed])
        check_memories(memories, memory_shape(self.config), documents=len(document.ids), chunks=needed)
        return memories

    def _training_sums(
        self, document: ChunkedDocuments, memories: Tensor | None, targets: DocumentTargets
    ) -> ObjectiveSums:
        """Decode only the chunks that have targets."""
        labels = cast(Tensor, document.labels)
        is_target = labels != IGNORE_INDEX
        rows = is_target.any(-1)
        objective = targets.row_objectives()[:, None].expand(rows.shape)[rows]
        # tokens after the last target change nothing before it
        columns = is_target.flatten(0, 1).any(0).nonzero()
        length = int(columns[-1]) + 1 if len(columns) else None
        logits = self._chunk_logits(document, memories, rows, length=length)
        labels = labels[rows][:, : logits.shape[1]]
        return sums_by_objective(logits, labels, objective, count=targets.num_objectives)

    def _reconstruction_sums(self, labels: Tensor, memories: Tensor | None) -> ObjectiveSums:
        if self.reconstruction is None or memories is None:
            raise UserError("this model has no reconstruction head; make it with reconstruction_head=True.")
        logits = self.reconstruction(memories.flatten(0, 1))
        labels = labels.flatten(0, 1)
        return sums_by_objective(logits, labels, torch.zeros(len(labels), dtype=torch.long), count=1)

    def _chunk_logits(
        self,
        document: ChunkedDocuments,
        memories: Tensor | None,
        chosen: Bool[Tensor, "documents chunks"] | None = None,
        *,
        length: int | None = None,
    ) -> Float[Tensor, "rows tokens vocabulary"]:
        """Return the logits of chunks, folded; of all chunks if `chosen` is None.

        With `length`, only the first tokens of each chunk are read, if the decoder takes position ids.
        """
        length = length if _takes_position_ids(self.config.decoder_config) else None
        rows = self._decoder_rows(document.ids[..., :length], document.mask[..., :length], memories)
        rows = rows if chosen is None else rows.select(chosen.flatten())
        # a row that may read nothing is NaN in some attention kernels; its logits are never used
        return self._read_rows(rows._replace(mask=rows.mask | ~rows.mask.any(-1, keepdim=True)))

    def _decoder_rows(self, ids: Tensor, mask: Tensor, memories: Tensor | None) -> DecoderRows:
        """Return the decoder's inputs for chunks of ids, (documents, chunks, length), and their mask."""
        slots, readable, tokens = self._with_memories(self.embed_chunk(ids), memories)
        if self.config.first_token_id is not None:
            # the token before all slots is read if any slot is
            token_id = torch.tensor(self.config.first_token_id, device=self.device)
            first = self.get_input_embeddings()(token_id).expand(*slots.shape[:2], 1, -1).to(slots.dtype)
            slots = torch.cat([first, slots], dim=2)
            readable = torch.cat([readable.any(-1, keepdim=True), readable], dim=1)
        inputs = torch.cat([slots.to(tokens.dtype), tokens], dim=2).flatten(0, 1)
        return DecoderRows(
            inputs=inputs,
            mask=torch.cat([readable.expand(len(ids), -1, -1), mask.bool()], dim=2).flatten(0, 1),
            positions=self._positions(readable)[:, : inputs.shape[1]].repeat(len(ids), 1),
            blanks=(ids == self.blank_id).flatten(0, 1),
        )

    def _with_memories(
        self, tokens: Float[Tensor, "documents chunks length width"], memories: Tensor | None
    ) -> tuple[Tensor, Bool[Tensor, "chunks slots"], Tensor]:
        """Return the slots before each chunk's tokens, which of them may be read, and the tokens."""
        documents, chunks, length, width = tokens.shape
        config = self.config
        memories = None if memories is None or not memories.numel() else memories
        if isinstance(self.readout, Injection):
            self._check_length(length, chunks)
            tokens = tokens if memories is None else self.readout(tokens, memories[:, :chunks])
            return tokens.new_zeros(documents, chunks, 0, width), tokens.new_zeros(chunks, 0).bool(), tokens
        blocks = memory_blocks_needed(config.layout, chunks=chunks, trained=config.num_chunks)
        table = slot_table(config.layout, chunks=chunks, memory_blocks=blocks).to(tokens.device)
        self._check_length(int(config.first_token_id is not None) + blocks * config.slots_per_chunk + length, chunks)
        if memories is None:
            slots, table = tokens.new_zeros(documents, 1, config.slots_per_chunk, width), torch.full_like(table, UNUSED)
        else:
            slots = self.readout(memories.flatten(0, 1)).unflatten(0, memories.shape[:2])
        return *self.readout.place(slots, table), tokens

    def _positions(self, readable: Bool[Tensor, "chunks slots"]) -> Int[Tensor, "chunks inputs"]:
        """Return consecutive positions; the variable layout counts them from the first memory."""
        inputs = readable.shape[1] + self.config.chunk_length
        positions = torch.arange(inputs, device=readable.device).expand(len(readable), -1)
        if self.config.layout != "variable":
            return positions
        return (positions - (~readable).sum(1, keepdim=True)).clamp(min=0)

    def _read_rows(self, rows: DecoderRows) -> Float[Tensor, "rows tokens vocabulary"]:
        """Return the logits of each row's tokens, without computing the masked slots before its first memory."""
        lead = int(self.config.first_token_id is not None)
        slots = rows.inputs.shape[1] - rows.blanks.shape[1] - lead
        starts, groups = self._first_slots(rows.mask[:, lead:], slots).unique(return_inverse=True)
        members = [(groups == i).nonzero()[:, 0] for i in range(len(starts))]
        columns = torch.arange(rows.inputs.shape[1], device=rows.inputs.device)
        logits: list[Tensor] = []
        for start, chosen in zip(starts.tolist(), members, strict=True):
            # the first token precedes memories only
            read = columns[(columns >= lead + start) | ((columns < lead) & (start < slots))]
            inputs, mask, positions, blanks = rows.select(chosen)
            with self._adapted(start < slots):
                logits.append(self._logits(inputs[:, read], mask[:, read], positions[:, read], blanks))
        return torch.cat(logits)[torch.cat(members).argsort()]

    def _first_slots(self, mask: Bool[Tensor, "rows inputs"], slots: int) -> Int[Tensor, " rows"]:
        """Return the slot at which each row begins, one of few; 0 where the decoder needs all its inputs."""
        if not slots or not _takes_position_ids(self.config.decoder_config):
            return torch.zeros(len(mask), dtype=torch.long, device=mask.device)
        per_chunk = self.config.slots_per_chunk
        step = -(-slots // (per_chunk * _WIDTHS)) * per_chunk
        # a row without memories keeps its tokens only
        first = mask.long().argmax(1).clamp(max=slots)
        return torch.where(first == slots, slots, first // step * step)

    def _adapted(self, reads_memory: bool) -> AbstractContextManager[None]:
        """Return a context in which adapters work only if memories are read."""
        return nullcontext() if reads_memory or self.config.lora is None else adapters_active(self.decoder, False)

    def _logits(self, inputs: Tensor, mask: Tensor, positions: Tensor, blanks: Bool[Tensor, "rows tokens"]) -> Tensor:
        """Return logits (rows, tokens, vocabulary) of the last inputs; blanks have an output layer of their own."""
        length = blanks.shape[1]
        arguments = {"attention_mask": mask.long(), "position_ids": positions, "use_cache": False}
        if self.blank_head is None:
            return self.decoder(inputs_embeds=inputs, logits_to_keep=length, **arguments).logits
        hidden = self.decoder.base_model(inputs_embeds=inputs, **arguments).last_hidden_state[:, -length:]
        of_blanks, of_text = self.blank_head(hidden[blanks]), self.get_output_embeddings()(hidden[~blanks])
        # under autocast, linear layers return another precision than the last norm
        logits = of_blanks.new_empty(*blanks.shape, self.blank_head.out_features)
        logits[blanks], logits[~blanks] = of_blanks, of_text
        return logits

    def _check_length(self, inputs: int, chunks: int) -> None:
        config, longest = self.config, self.config.decoder_config.max_position_embeddings
        if inputs > longest:
            raise UserError(
                f"{chunks} chunks take {inputs} decoder positions and it has {longest}; "
                "cut the text, or train a decoder with more positions."
            )
        if chunks > config.num_chunks and (config.layout == "fixed" or not is_rotary(config.decoder_config)):
            raise UserError(
                f"{chunks} chunks do not fit the {config.num_chunks} this model was trained on: its positions are "
                "absolute; cut the text, or train with more chunks."
            )


def is_rotary(config: PreTrainedConfig) -> bool:
    """Return whether a decoder's positions are rotary, so that only distances matter."""
    return getattr(config, "rope_parameters", None) is not None


def _takes_position_ids(config: PreTrainedConfig) -> bool:
    """Return whether inputs may be left out; a mixer's weights belong to consecutive positions."""
    return config.model_type != MixerConfig.model_type
