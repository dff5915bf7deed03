"""The memory model: a decoder reads each chunk behind the memories of the chunks before it.

    document (B, T) ─ chunks (B, N, L) ─ encoder ─▶ memories (B, N, M, W) ─ readout ─▶ slots (B, N, K, E)
                             │                                                            │
                             └─ decoder's token table ─▶ [slots of chunks < n | tokens of chunk n] ─ decoder ─▶ logits

All chunks are folded into the batch, in encoder and decoder (memlm.models.memory.naive reads them one by one).
Departures from the reference code (paper's notes, 3.1): every chunk has its own mask, and padding is never read on
either side; the first token of every chunk is asked for, of the position before it; losses are means over tokens;
a frozen encoder keeps its own token table.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from memlm.chunking import left_align, split
from memlm.errors import MemoryShapeError, UserError
from memlm.models.base import CACHE_NAME, DecoderInside
from memlm.models.documents import ChunkedDocuments, MemoryModelOutput, chunked, loss_of
from memlm.models.layers.mixer import MixerConfig
from memlm.models.layers.readout import READOUTS
from memlm.models.memory.adapter import LoraSettings, adapter_off, add_adapter, set_adapter_trainable
from memlm.models.memory.configuration import ChunkEncoderConfig, MemoryModelConfig
from memlm.models.memory.encoder import FOLDER, ChunkEncoder, Translation, init_memory_weights, translation_in
from memlm.models.memory.prompt import Piece, chunk_positions_of, lay_out, positions_of
from memlm.models.memory.slots import (
    Injection,
    SlotReadout,
    SlotSettings,
    memory_blocks_needed,
    reads_own_chunk,
    slot_table,
)
from memlm.objectives import ObjectiveSums, sums_by_objective
from memlm.shapes import IGNORE_INDEX, Labels, TokenIds, TokenMask

_WIDTHS = 4
"""Of a pass, at most, beside that of tokens alone: rows go by the memories they have."""
DocumentMemories = Float[Tensor, "documents chunks memories numbers"]


class MemoryModelForCausalLM(DecoderInside, GenerationMixin):
    """A decoder that reads earlier chunks as memories.

    Example:
        >>> model = MemoryModelForCausalLM.from_pretrained("runs/memory")
        >>> memories = model.remember(input_ids, attention_mask)     # (documents, chunks, memories, numbers)
        >>> logits = model(input_ids, attention_mask).logits         # (documents, tokens, vocabulary)
    """

    config: MemoryModelConfig
    config_class = MemoryModelConfig

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__(config)
        self.encoder = ChunkEncoder(cast(ChunkEncoderConfig, config.encoder_config))
        self.readout = SlotReadout(config) if config.injection == "token" else Injection(config)
        self.decoder = AutoModelForCausalLM.from_config(config.decoder_config)
        if config.lora is not None:
            add_adapter(self.decoder, LoraSettings.of(config.lora))
        self.translation: Translation | None = None
        width = config.decoder_config.hidden_size
        self.chunk_positions = ChunkPositionEmbedding(config.chunk_length, width) if config.learned_positions else None
        self.blank = nn.Parameter(torch.zeros(config.chunk_length, width)) if config.own_blank else None
        self.blank_head = nn.Linear(width, config.decoder_config.vocab_size, bias=False) if config.blank_head else None
        self.reconstruction = ReconstructionHead(config) if config.reconstruction_head else None
        # labels are shifted by the objective, not by transformers
        self.loss_type = "ForMaskedLM"
        self.post_init()
        self.set_trainable(freeze_encoder=config.freeze_encoder)
        # what stands for a slot in a prompt is never written
        self.generation_config.suppress_tokens = [config.memory_token_id]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SlotReadout):
            if module.filler is not None:
                init.ones_(module.filler)
        elif isinstance(module, ChunkPositionEmbedding):
            # as wide as the tokens they are added to: memlm's mixers begin with 1, transformers with their own
            init.normal_(module.weight, std=getattr(self.config.decoder_config, "initializer_range", 1.0))
        else:
            init_memory_weights(module)

    def set_trainable(self, part: str = "all", *, freeze_encoder: bool = False) -> None:
        """Enable gradients for a part of the model and disable them for the rest.

        The decoder's own weights stay fixed where the configuration says `freeze_decoder` or has adapters.

        Args:
            part: `all`, `decoder` (decoder and readout), or `readout` (readout, positions and blanks).
            freeze_encoder: keep the encoder as it is, in evaluation mode; every part but `all` implies it.

        Raises:
            ConfigError: an unknown part.
        """
        super().set_trainable(part)
        self.config.freeze_encoder = freeze_encoder or part != "all"
        self.encoder.requires_grad_(not self.config.freeze_encoder)
        self.decoder.requires_grad_(part != "readout" and not self.config.freeze_decoder)
        if self.config.lora is not None and part != "readout":
            set_adapter_trainable(self.decoder)
        self.train(self.training)  # a frozen encoder is in evaluation mode

    def train(self, mode: bool = True) -> MemoryModelForCausalLM:
        """As torch's; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
        return self

    def encode(self, input_ids: TokenIds, attention_mask: TokenMask | None = None) -> DocumentMemories:
        """Memories of every chunk of every document; those of chunks without text mean nothing.

        Args:
            input_ids: (documents, tokens), any number of tokens.
            attention_mask: (documents, tokens), nonzero for text, on any side.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        ids, mask = left_align(input_ids, mask)
        chunks = split(ids, mask, chunk_length=self.config.chunk_length, pad_token_id=self.config.pad_token_id or 0)
        return self.encode_chunks(chunks.input_ids, chunks.attention_mask)

    def decode(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks length vocabulary"]:
        """What memories give back: logits of each chunk's tokens, each chunk by itself, as blank copies are read.

        A memory fills all the groups of slots that stand between a text and its copy in training (half the chunks).

        Raises:
            MemoryShapeError: memories of another shape than the encoder writes, or values that are not finite.
            UserError: the model's decoder reads no memories (a baseline).
        """
        if not self.config.use_memory:
            raise UserError("this model never reads its memories (use_memory=False); nothing can be given back.")
        groups = max(1, self.config.num_chunks // 2)
        self._check_memories(memories[:, None], len(memories), 1)
        if not bool(torch.isfinite(memories).all()):
            raise MemoryShapeError("memories hold values that are NaN or infinite; encode the text again.")
        if not len(memories):
            return memories.new_zeros(0, self.config.chunk_length, self.config.decoder_config.vocab_size)
        shape = (len(memories), groups + 1, self.config.chunk_length)
        blanks = torch.full(shape, self.config.pad_token_id or 0, device=memories.device)
        document = ChunkedDocuments(blanks, torch.ones_like(blanks), None, None, None, shape[1] * shape[2])
        asked = torch.arange(groups + 1, device=memories.device).expand(shape[:2]) == groups
        return self._decode(document, memories[:, None].expand(-1, groups + 1, -1, -1), asked)

    def forward(
        self,
        input_ids: TokenIds,
        attention_mask: Int[Tensor, "batch seen"]
        | Bool[Tensor, "batch seen"]
        | Bool[Tensor, "batch 1 tokens kept"]
        | None = None,
        labels: Labels | None = None,
        memories: DocumentMemories | None = None,
        objective: Int[Tensor, " documents"] | None = None,
        loss_weights: Float[Tensor, " objectives"] | None = None,
        reconstruction_labels: Labels | None = None,
        use_memory: bool | None = None,
        num_items_in_batch: Float[Tensor, " objectives"] | Tensor | int | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        position_ids: Int[Tensor, "rows tokens"] | None = None,
        logits_to_keep: int = 0,
        chunk_positions: Int[Tensor, "rows tokens"] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> MemoryModelOutput | ModelOutput:
        """Read whole documents, or (with `use_cache` True or False, as `generate()` sets it) a prompt with slots.

        Args:
            input_ids: (documents, tokens). In a prompt, `memory_token_id` stands where each slot goes (see `prompt`).
            attention_mask: (documents, tokens), nonzero for text, on any side; of a prompt with a static cache,
                what each token may read of what is kept.
            labels: (documents, tokens), what is asked of each position, else IGNORE_INDEX; not shifted here.
                In training only the chunks that are asked for something are decoded, and no logits are returned.
            memories: (documents, chunks, memories, numbers): what `remember` gave; encoded here where None.
            objective: (documents,), which objective each row belongs to; all to one where None.
            loss_weights: (objectives,); all alike where None.
            reconstruction_labels: (documents, tokens), what the reconstruction head is asked for, as a last objective.
            use_memory: False: no slot holds a memory (the `no_memory` baseline); by default as the configuration says.
            num_items_in_batch: (objectives,), tokens asked for over all accumulated batches and devices.
            use_cache: None for documents.
            cache: of a prompt that is continued.
            position_ids: of a prompt.
            logits_to_keep: last positions of a prompt to give logits of; 0 for all.
            chunk_positions: of a prompt, each token's place in its chunk.
            past_key_values: the name of `cache` in transformers before 5.24.
            kwargs: ignored; Trainer passes settings of other models.

        Raises:
            UserError: more chunks than the decoder has positions for; no label asks for anything.
            MemoryShapeError: memories of another shape than the encoder writes.
        """
        if use_cache is not None:
            slots = _PromptSlots(input_ids == self.config.memory_token_id, memories)
            embedded = self._embed_prompt(input_ids, slots, chunk_positions)
            with self._adapted(memories is not None and bool(memories.numel())):
                return self.decoder(
                    inputs_embeds=embedded,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    use_cache=use_cache,
                    logits_to_keep=logits_to_keep,
                    **{CACHE_NAME: past_key_values if cache is None else cache},
                )
        pad = self.config.pad_token_id or 0
        document = chunked(
            input_ids, attention_mask, labels, reconstruction_labels, length=self.config.chunk_length, pad=pad
        )
        wants = self.config.use_memory if use_memory is None else use_memory
        memories = self._memories(document, memories) if wants or reconstruction_labels is not None else None
        seen = memories if wants else None
        if labels is None or not self.training:
            logits = document.joined(self._decode(document, seen))
            owners = input_ids.new_zeros(len(input_ids)) if objective is None else objective
            count = document.objectives(objective, loss_weights)
            sums = None if labels is None else sums_by_objective(logits, labels, owners, count=count)
        else:
            logits, sums = None, self._asked_sums(document, seen, objective, loss_weights)
        if sums is not None and document.reconstruction is not None:
            sums = _followed_by(sums, self._reconstruction_sums(document, memories))
        loss = None if sums is None else loss_of(sums, loss_weights, num_items_in_batch)
        return MemoryModelOutput(
            loss=loss,
            logits=logits,
            memories=memories,
            **(
                {}
                if sums is None
                else {"nats": sums.nats.detach(), "num_correct": sums.num_correct, "num_targets": sums.num_targets}
            ),
        )

    def _memories(self, document: ChunkedDocuments, memories: Tensor | None) -> Tensor:
        """Of all chunks but the last, which nobody reads, unless the layout or the reconstruction head asks for it."""
        all_asked = document.reconstruction is not None or reads_own_chunk(self.config.layout)
        needed = document.ids.shape[1] - (not all_asked)
        if memories is None:
            return self.encode_chunks(document.ids[:, :needed], document.mask[:, :needed])
        self._check_memories(memories, len(document.ids), needed)
        return memories

    def encode_chunks(
        self, ids: Int[Tensor, "documents chunks tokens"], mask: Int[Tensor, "documents chunks tokens"]
    ) -> DocumentMemories:
        """Memories of chunks, text first in each; without gradients where the encoder is frozen."""
        documents, chunks = ids.shape[:2]
        writer = cast(ChunkEncoderConfig, self.config.encoder_config)
        if not documents * chunks:
            shape = (documents, chunks, writer.memories_per_chunk, writer.bottleneck_size)
            return torch.zeros(shape, device=ids.device, dtype=self.dtype)
        # copies and blanks say one thing many times; each chunk is encoded once
        folded = torch.stack([ids.flatten(0, 1), mask.flatten(0, 1).to(ids.dtype)], dim=1)
        once, places = torch.unique(folded, dim=0, return_inverse=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_encoder):
            memories = self.encoder(*self._in_encoder_tokens(once[:, 0], once[:, 1]))
        return memories[places].unflatten(0, (documents, chunks))

    def _in_encoder_tokens(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.encoder_tokens == "shared":
            return ids, mask
        if self.translation is None:
            raise UserError(
                "this model's encoder has a tokenizer of its own; load the model by from_pretrained(FOLDER), or set "
                "its `translation`."
            )
        return self.translation(ids, mask)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with the encoder's tokenizer where it has one of its own."""
        found = cast(Any, super()).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        if model.config.encoder_tokens == "own":
            length = cast(ChunkEncoderConfig, model.config.encoder_config).chunk_length
            model.translation = translation_in(pretrained_model_name_or_path, length=length)
        return found

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers', with both tokenizers where the encoder has one of its own."""
        cast(Any, super()).save_pretrained(save_directory, *args, **kwargs)
        if self.translation is not None:
            self.translation.decoder_tokenizer.save_pretrained(save_directory)
            self.translation.encoder_tokenizer.save_pretrained(Path(save_directory) / FOLDER)

    def _embed(self, ids: Int[Tensor, "*rows tokens"]) -> Float[Tensor, "*rows tokens width"]:
        """By the decoder's table, and blanks by their place's vector where they have one; rows begin with a chunk."""
        table = self.get_input_embeddings()
        if self.blank is None:
            return table(ids)
        blank = ids == (self.config.pad_token_id or 0)
        tokens = table(ids.masked_fill(blank, 0))
        places = torch.arange(ids.shape[-1], device=ids.device) % self.config.chunk_length
        return torch.where(blank[..., None], self.blank.to(tokens.dtype)[places], tokens)

    def embed_chunk(self, ids: Int[Tensor, "*rows tokens"]) -> Float[Tensor, "*rows tokens width"]:
        """The decoder's inputs of chunks, or of their first tokens."""
        tokens = self._embed(ids)
        return tokens if self.chunk_positions is None else tokens + self.chunk_positions.weight[: ids.shape[-1]]

    def _decode(
        self,
        document: ChunkedDocuments,
        memories: Tensor | None,
        rows: Bool[Tensor, "documents chunks"] | None = None,
        *,
        length: int | None = None,
    ) -> Float[Tensor, "rows tokens vocabulary"]:
        """Logits of chunks (all of them, folded, where `rows` is None), each behind the memories before it.

        With `length`, of each chunk's first tokens, where the decoder's positions are its inputs'.
        """
        documents = len(document.ids)
        length = length if _reads_position_ids(self.config.decoder_config) else None
        ids, seen = document.ids[..., :length], document.mask[..., :length]
        placed, readable, tokens = self._introduced(self.embed_chunk(ids), memories)
        if self.config.has_first_token:
            placed, readable = self._behind_first_token(placed, readable)
        inputs = torch.cat([placed.to(tokens.dtype), tokens], dim=2).flatten(0, 1)
        mask = torch.cat([readable.expand(documents, -1, -1), seen.bool()], dim=2).flatten(0, 1)
        positions = self._positions(readable)[:, : inputs.shape[1]].repeat(documents, 1)
        blanks = (ids == (self.config.pad_token_id or 0)).flatten(0, 1)
        if rows is not None:
            chosen = rows.flatten()
            inputs, mask, positions, blanks = inputs[chosen], mask[chosen], positions[chosen], blanks[chosen]
        # a row that may read nothing is NaN in some attention implementations; what comes of it is never asked for
        mask = mask | ~mask.any(-1, keepdim=True)
        return self._read_at_widths(inputs, mask, positions, blanks)

    def _read_at_widths(
        self,
        inputs: Float[Tensor, "rows inputs width"],
        mask: Bool[Tensor, "rows inputs"],
        positions: Int[Tensor, "rows inputs"],
        blanks: Bool[Tensor, "rows tokens"],
    ) -> Float[Tensor, "rows tokens vocabulary"]:
        """Logits of each row's tokens; masked slots before its first memory are left out where positions allow it."""
        lead = int(self.config.has_first_token)
        slots, per_chunk = inputs.shape[1] - blanks.shape[1] - lead, self.config.slots_per_chunk
        unread = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        if slots and _reads_position_ids(self.config.decoder_config):
            step = -(-slots // (per_chunk * _WIDTHS)) * per_chunk
            # a row of padding alone begins nowhere; its tokens all stay
            first = mask[:, lead:].long().argmax(1).clamp(max=slots)
            unread = torch.where(first == slots, slots, first // step * step)
        widths, numbers = unread.unique(return_inverse=True)
        parts = [(numbers == i).nonzero()[:, 0] for i in range(len(widths))]
        logits: list[Tensor] = []
        places = torch.arange(inputs.shape[1], device=inputs.device)
        for start, rows in zip(widths.tolist(), parts, strict=True):
            # what stands before the memories goes with them
            kept = places[(places >= lead + start) | ((places < lead) & (start < slots))]
            with self._adapted(start < slots):
                read = [x[rows][:, kept] for x in (inputs, mask, positions)]
                logits.append(self._logits(read[0], read[1], read[2], blanks[rows]))
        return torch.cat(logits)[torch.cat(parts).argsort()]

    def _behind_first_token(
        self,
        placed: Float[Tensor, "documents chunks slots width"],
        readable: Bool[Tensor, "chunks slots"],
    ) -> tuple[Float[Tensor, "documents chunks places width"], Bool[Tensor, "chunks places"]]:
        """A token before all slots, read where any of them is."""
        first = self._first_token().expand(*placed.shape[:2], 1, -1).to(placed.dtype)
        return torch.cat([first, placed], dim=2), torch.cat([readable.any(-1, keepdim=True), readable], dim=1)

    def _first_token(self) -> Float[Tensor, " width"]:
        ids = torch.tensor(self.config.first_token_id, device=self.device)
        return self.get_input_embeddings()(ids)

    def _adapted(self, reads_memory: bool) -> AbstractContextManager[None]:
        """Adapters are for memories alone."""
        return nullcontext() if reads_memory or self.config.lora is None else adapter_off(self.decoder)

    def _logits(self, inputs: Tensor, mask: Tensor, positions: Tensor, blanks: Bool[Tensor, "rows tokens"]) -> Tensor:
        """(rows, tokens, vocabulary) of the last inputs; blanks go through a head of their own where there is one."""
        length = blanks.shape[1]
        read = {"attention_mask": mask.long(), "position_ids": positions, "use_cache": False}
        if self.blank_head is None:
            return self.decoder(inputs_embeds=inputs, logits_to_keep=length, **read).logits
        hidden = self.decoder.base_model(inputs_embeds=inputs, **read).last_hidden_state[:, -length:]
        answers, rest = self.blank_head(hidden[blanks]), self.get_output_embeddings()(hidden[~blanks])
        # autocast answers in another precision than it normalises in
        logits = answers.new_empty(*blanks.shape, self.blank_head.out_features)
        logits[blanks], logits[~blanks] = answers, rest
        return logits

    def _introduced(
        self, tokens: Float[Tensor, "documents chunks length width"], memories: Tensor | None
    ) -> tuple[
        Float[Tensor, "documents chunks slots width"],
        Bool[Tensor, "chunks slots"],
        Float[Tensor, "documents chunks length width"],
    ]:
        """Slots before each chunk's tokens, which of them may be read, and the tokens."""
        documents, chunks, length, width = tokens.shape
        layout, there = self.config.layout, memories is not None and bool(memories.numel())
        if isinstance(self.readout, Injection):
            self._check_beyond(length, chunks)
            known = self.readout(tokens, cast(Tensor, memories)[:, :chunks]) if there else tokens
            return tokens.new_zeros(documents, chunks, 0, width), tokens.new_zeros(chunks, 0).bool(), known
        groups = memory_blocks_needed(layout, chunks=chunks, trained=self.config.num_chunks)
        table = slot_table(layout, chunks=chunks, groups=groups).to(tokens.device)
        lead = int(self.config.has_first_token)
        self._check_beyond(lead + groups * self.config.slots_per_chunk + length, chunks)
        if not there:
            slots, table = tokens.new_zeros(documents, 1, self.config.slots_per_chunk, width), table * 0 - 1
        else:
            found = cast(Tensor, memories)
            slots = self.readout(found.flatten(0, 1)).unflatten(0, found.shape[:2])
        return *self.readout.place(slots, table), tokens

    def _positions(self, readable: Bool[Tensor, "chunks slots"]) -> Int[Tensor, "chunks inputs"]:
        """Consecutive; in the variable layout from the first memory that is there."""
        inputs = readable.shape[1] + self.config.chunk_length
        places = torch.arange(inputs, device=readable.device).expand(len(readable), -1)
        if self.config.layout != "variable":
            return places
        return (places - (~readable).sum(1, keepdim=True)).clamp(min=0)

    def _asked_sums(
        self,
        document: ChunkedDocuments,
        memories: Tensor | None,
        objective: Tensor | None,
        weights: Tensor | None,
    ) -> ObjectiveSums:
        labels = cast(Tensor, document.labels)
        rows = (labels != IGNORE_INDEX).any(-1)
        owners = torch.zeros(len(labels), dtype=torch.long, device=labels.device) if objective is None else objective
        owners = owners[:, None].expand(rows.shape)[rows]
        # tokens behind the last one that is asked for change nothing before it
        asked = (labels != IGNORE_INDEX).flatten(0, 1).any(0).nonzero()
        length = int(asked[-1]) + 1 if len(asked) else None
        logits = self._decode(document, memories, rows, length=length)
        count = document.objectives(objective, weights)
        return sums_by_objective(logits, labels[rows][:, : logits.shape[1]], owners, count=count)

    def _reconstruction_sums(self, document: ChunkedDocuments, memories: Tensor | None) -> ObjectiveSums:
        if self.reconstruction is None or memories is None or document.reconstruction is None:
            raise UserError("this model has no reconstruction head; make it with reconstruction_head=True.")
        logits = self.reconstruction(memories.flatten(0, 1))
        labels = document.reconstruction.flatten(0, 1)
        return sums_by_objective(logits, labels, torch.zeros(len(labels), dtype=torch.long), count=1)

    def prompt(self, rows: Sequence[Sequence[Piece]]) -> dict[str, Tensor]:
        """What `generate()` takes: placeholders, mask and memories, padded on the left.

        Args:
            rows: of each, memories (chunks, memories, numbers) and lists of tokens in the order in which they were
                read; the newest tokens stand last.

        Raises:
            UserError: a layout or filler that has no prompts; no rows.
            MemoryShapeError: memories of another shape than the encoder writes.
        """
        return lay_out(self.config, rows, self.device)

    def prompt_embeddings(self, rows: Sequence[Sequence[Piece]]) -> dict[str, Tensor]:
        """As `prompt`, for the decoder by itself: `inputs_embeds` (rows, positions, width) and `attention_mask`.

        Raises:
            UserError: as `prompt`; or a model whose decoder by itself would read other positions than this one does.
            MemoryShapeError: memories of another shape than the encoder writes.
        """
        if self.chunk_positions is not None:
            raise UserError(
                "this model adds a place in the chunk to each token (learned_positions), which its decoder by itself "
                "does not; train with model.learned_positions=false to export prompts."
            )
        if not _rotary(self.config.decoder_config) and self.config.layout != "variable":
            raise UserError(
                f"this model's decoder has absolute positions and layout '{self.config.layout}' moves them; train "
                "with model.layout=variable to export prompts."
            )
        prompt = self.prompt(rows)
        slots = _PromptSlots(prompt["input_ids"] == self.config.memory_token_id, prompt["memories"])
        mask = prompt["attention_mask"]
        embedded = self._embed_prompt(prompt["input_ids"], slots, None)
        longest = int(mask.sum(1).max())
        return {"inputs_embeds": embedded[:, -longest:], "attention_mask": mask[:, -longest:]}

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers does it, with the positions that training gave slots and tokens."""
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        kwargs["position_ids"] = positions_of(self.config, input_ids, mask)
        inputs = cast(Any, super()).prepare_inputs_for_generation(input_ids, *args, **kwargs)
        if self.chunk_positions is not None:
            places = chunk_positions_of(self.config, input_ids, mask)
            inputs["chunk_positions"] = places[:, -inputs["input_ids"].shape[1] :]
        return inputs

    def _embed_prompt(self, input_ids: Tensor, slots: _PromptSlots, places: Tensor | None) -> Tensor:
        tokens = self._embed(input_ids.masked_fill(slots.places, self.config.pad_token_id or 0))
        if self.chunk_positions is not None and places is not None:
            tokens = tokens + self.chunk_positions(places)
        if not bool(slots.places.any()):
            return tokens
        if slots.memories is None:
            raise UserError("the prompt has places for memories; give the memories too (see `prompt`).")
        read = cast(SlotReadout, self.readout)(slots.memories.flatten(0, 1).to(self.dtype)).flatten(0, 1)
        if len(read) != int(slots.places.sum()):
            raise MemoryShapeError(
                f"{int(slots.places.sum())} places in the prompt do not fit {len(read)} slots; build it with `prompt`."
            )
        return tokens.masked_scatter(slots.places[..., None], read.to(tokens.dtype))

    def _check_memories(self, memories: Tensor, documents: int, needed: int) -> None:
        writer = cast(ChunkEncoderConfig, self.config.encoder_config)
        expected = (writer.memories_per_chunk, writer.bottleneck_size)
        if memories.ndim != 4 or tuple(memories.shape[2:]) != expected or memories.shape[0] != documents:
            raise MemoryShapeError(
                f"memories of shape {tuple(memories.shape)} do not fit {documents} documents of this model, "
                f"which writes {expected} (memories, numbers) per chunk."
            )
        if memories.shape[1] < needed:
            raise MemoryShapeError(f"memories of {memories.shape[1]} chunks do not reach; {needed} are read.")

    def _check_beyond(self, inputs: int, chunks: int) -> None:
        """More chunks than in training need positions that count distances, and a layout that keeps them."""
        config, longest = self.config, self.config.decoder_config.max_position_embeddings
        if inputs > longest:
            raise UserError(
                f"{chunks} chunks take {inputs} decoder positions and it has {longest}; "
                "cut the text, or train a decoder with more positions."
            )
        if chunks > config.num_chunks and (config.layout == "fixed" or not _rotary(config.decoder_config)):
            raise UserError(
                f"{chunks} chunks do not fit the {config.num_chunks} this model was trained on: its positions are "
                "absolute; cut the text, or train with more chunks."
            )


class ChunkPositionEmbedding(nn.Embedding):
    """A vector of each place in a chunk, added to the token that stands there."""


class ReconstructionHead(nn.Module):
    """A chunk's tokens straight from its memories: a map per position and one linear layer, no context."""

    def __init__(self, config: MemoryModelConfig) -> None:
        super().__init__()
        writer = cast(ChunkEncoderConfig, config.encoder_config)
        settings = SlotSettings(
            chunk_length=config.chunk_length,
            hidden_size=config.decoder_config.hidden_size,
            bottleneck_size=writer.bottleneck_size,
            bottleneck_rank=config.readout_rank,
            memories_per_chunk=writer.memories_per_chunk,
            readout=config.readout,
            readout_rank=config.readout_rank,
        )
        self.read = READOUTS[config.readout](settings)
        self.head = nn.Linear(config.decoder_config.hidden_size, writer.vocab_size, bias=False)

    def forward(self, memories: Float[Tensor, "chunks memories numbers"]) -> Float[Tensor, "chunks tokens vocabulary"]:
        """Logits of each token of each chunk."""
        return self.head(F.gelu(self.read(memories)))


class _PromptSlots(NamedTuple):
    """Where slots stand in a prompt, and what goes there."""

    places: Bool[Tensor, "rows tokens"]
    memories: DocumentMemories | None


def _reads_position_ids(config: PreTrainedConfig) -> bool:
    """A mixer's positions are its places."""
    return config.model_type != MixerConfig.model_type


def _rotary(config: PreTrainedConfig) -> bool:
    return getattr(config, "rope_parameters", None) is not None


def _followed_by(sums: ObjectiveSums, more: ObjectiveSums) -> ObjectiveSums:
    """The reconstruction's sums as the last objective."""
    return ObjectiveSums(*(torch.cat([a, b]) for a, b in zip(sums, more, strict=True)))
