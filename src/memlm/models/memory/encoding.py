"""The parts of a memory model, what training may change of them, and the pass that turns documents into memories."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from memlm.chunking import split
from memlm.errors import UserError
from memlm.models.base import DecoderInside
from memlm.models.memory.adapter import LoraSettings, add_adapter, set_adapter_trainable
from memlm.models.memory.configuration import ChunkEncoderConfig, MemoryModelConfig
from memlm.models.memory.encoder import FOLDER, ChunkEncoder, Translation
from memlm.models.memory.slots import ChunkPositionEmbedding, Injection, ReconstructionHead, SlotReadout, memory_shape
from memlm.shapes import TokenIds, TokenMask

DocumentMemories = Float[Tensor, "documents chunks memories numbers"]


class MemoryEncodingModel(DecoderInside):
    """An encoder, a readout and a decoder, with methods that encode documents and embed tokens.

    Args:
        config: a MemoryModelConfig.
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
        # the scale of the tokens they are added to: 1 in memlm's mixers, `initializer_range` in transformers
        std = getattr(config.decoder_config, "initializer_range", 1.0)
        positions = ChunkPositionEmbedding(config.chunk_length, width, std) if config.learned_positions else None
        self.chunk_positions = positions
        self.blank = nn.Parameter(torch.zeros(config.chunk_length, width)) if config.own_blank else None
        self.blank_head = nn.Linear(width, config.decoder_config.vocab_size, bias=False) if config.blank_head else None
        self.reconstruction = ReconstructionHead(config) if config.reconstruction_head else None
        # labels are shifted by the objective, not by transformers
        self.loss_type = "ForMaskedLM"
        self.post_init()
        self.set_trainable(freeze_encoder=config.freeze_encoder)

    def set_trainable(self, part: str = "all", *, freeze_encoder: bool = False) -> None:
        """Enable gradients for a part of the model and disable them for the rest.

        The decoder's own weights stay fixed if the configuration says `freeze_decoder` or has adapters.

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

    def train(self, mode: bool = True) -> MemoryEncodingModel:
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_encoder:
            self.encoder.eval()
        return self

    @property
    def blank_id(self) -> int:
        """The padding id, which also stands for blanks within text."""
        return self.config.pad_token_id or 0

    def encode(self, input_ids: TokenIds, attention_mask: TokenMask | None = None) -> DocumentMemories:
        """Return the memories of every chunk of every document.

        Args:
            input_ids: (documents, tokens), any number of tokens.
            attention_mask: (documents, tokens), nonzero for text, with padding on any side.

        Returns:
            (documents, chunks, memories, numbers); memories of chunks without text carry no meaning.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        chunks = split(input_ids, mask, chunk_length=self.config.chunk_length, pad_token_id=self.blank_id)
        return self.encode_chunks(chunks.input_ids, chunks.attention_mask)

    def encode_chunks(
        self, ids: Int[Tensor, "documents chunks tokens"], mask: Int[Tensor, "documents chunks tokens"]
    ) -> DocumentMemories:
        """Return the memories of chunks, without gradients if the encoder is frozen.

        Args:
            ids: (documents, chunks, tokens), text first in each chunk.
            mask: (documents, chunks, tokens), nonzero for text.

        Returns:
            (documents, chunks, memories, numbers).

        Raises:
            UserError: the encoder has a tokenizer of its own and the model has no `translation`.
        """
        documents, chunks = ids.shape[:2]
        if not documents * chunks:
            shape = (documents, chunks, *memory_shape(self.config))
            return torch.zeros(shape, device=ids.device, dtype=self.dtype)
        # copies and blanks repeat chunks; each distinct chunk is encoded once
        folded = torch.stack([ids.flatten(0, 1), mask.flatten(0, 1).to(ids.dtype)], dim=1)
        distinct, indices = torch.unique(folded, dim=0, return_inverse=True)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_encoder):
            memories = self.encoder(*self._in_encoder_tokens(distinct[:, 0], distinct[:, 1]))
        return memories[indices].unflatten(0, (documents, chunks))

    def _in_encoder_tokens(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.encoder_tokens == "shared":
            return ids, mask
        if self.translation is None:
            raise UserError(
                "this model's encoder has a tokenizer of its own; load the model by from_pretrained(FOLDER), or set "
                "its `translation`."
            )
        return self.translation(ids, mask)

    def embed_chunk(self, ids: Int[Tensor, "*rows tokens"]) -> Float[Tensor, "*rows tokens width"]:
        """Return the decoder's inputs for chunks, or for their first tokens."""
        tokens = self._embed(ids)
        return tokens if self.chunk_positions is None else tokens + self.chunk_positions.weight[: ids.shape[-1]]

    def _embed(self, ids: Int[Tensor, "*rows tokens"]) -> Float[Tensor, "*rows tokens width"]:
        """Look tokens up in the decoder's table, and blanks in their own if there is one; rows begin with a chunk."""
        table = self.get_input_embeddings()
        if self.blank is None:
            return table(ids)
        is_blank = ids == self.blank_id
        tokens = table(ids.masked_fill(is_blank, 0))
        positions = torch.arange(ids.shape[-1], device=ids.device) % self.config.chunk_length
        return torch.where(is_blank[..., None], self.blank.to(tokens.dtype)[positions], tokens)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does, with the encoder's tokenizer if it has one of its own."""
        found = cast(Any, super()).from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        if model.config.encoder_tokens == "own":
            length = model.config.encoder_config.chunk_length
            model.translation = Translation.in_folder(pretrained_model_name_or_path, length=length)
        return found

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model as transformers does, with both tokenizers if the encoder has one of its own."""
        cast(Any, super()).save_pretrained(save_directory, *args, **kwargs)
        if self.translation is not None:
            self.translation.decoder_tokenizer.save_pretrained(save_directory)
            self.translation.encoder_tokenizer.save_pretrained(Path(save_directory) / FOLDER)
