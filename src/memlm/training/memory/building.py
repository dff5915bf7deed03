"""A fresh memory model from a run's settings, or around the encoder of another run."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from memlm.data import eos_id, pad_id
from memlm.models import (
    ChunkEncoder,
    ChunkEncoderConfig,
    ChunkReader,
    MemoryModelConfig,
    MemoryModelForCausalLM,
    RecurrentMemoryConfig,
    RecurrentMemoryForCausalLM,
    TextAutoencoder,
    encoder_of,
)
from memlm.models.memory.slots import memory_blocks_needed
from memlm.models.runtime import weights_fingerprint
from memlm.training.memory.config import MemoryModelSettings
from memlm.training.memory.pretrained import build_around_pretrained
from memlm.training.run_folder import RunFolder

_SLOT_IDS = 1
"""Token ids beyond the tokenizer's: one that stands for a slot."""


def encoder_of_run(path: str) -> tuple[ChunkEncoder, RunFolder]:
    """The encoder of a finished autoencoder or memory run, in evaluation mode.

    Raises:
        RunFolderError, CheckpointError: not a finished run.
    """
    folder = RunFolder.open(path)
    folder.require_model()
    if folder.kind() == "memory":
        return MemoryModelForCausalLM.from_pretrained(path).encoder.eval(), folder
    return encoder_of(TextAutoencoder.from_pretrained(path)), folder


def build_memory_model(
    settings: MemoryModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    encoder: ChunkEncoder | None = None,
    encoder_tokenizer: PreTrainedTokenizerBase | None = None,
    reconstruction_head: bool = False,
) -> ChunkReader:
    """A fresh memory model, its weights drawn from the seed; a given encoder is frozen into it.

    Args:
        settings: sizes and kinds; a pretrained decoder comes with its weights.
        tokenizer: of the decoder, and of the encoder where it has none of its own.
        seed: of the weights.
        encoder: whose weights and settings are taken.
        encoder_tokenizer: of that encoder.
        reconstruction_head: for the `reconstruction` objective.

    Raises:
        ConfigError: sizes that do not fit each other.
        CheckpointError: the pretrained decoder cannot be loaded.
    """
    if settings.decoder.pretrained is not None:
        torch.manual_seed(seed)
        return build_around_pretrained(settings, tokenizer, encoder=encoder, encoder_tokenizer=encoder_tokenizer)
    return build_from_sizes(
        settings,
        vocabulary=len(tokenizer),
        pad_token_id=pad_id(tokenizer),
        eos_token_id=eos_id(tokenizer),
        seed=seed,
        encoder=encoder,
        reconstruction_head=reconstruction_head,
    )


def build_from_sizes(
    settings: MemoryModelSettings,
    *,
    vocabulary: int,
    pad_token_id: int,
    eos_token_id: int,
    seed: int,
    encoder: ChunkEncoder | None = None,
    reconstruction_head: bool = False,
) -> ChunkReader:
    """As `build_memory_model`, of a tokenizer's sizes alone."""
    torch.manual_seed(seed)
    if settings.memory == "recurrent":
        return _recurrent(settings, vocabulary, pad_token_id, eos_token_id)
    pad = pad_token_id
    written = _encoder_config(settings, vocabulary, pad) if encoder is None else encoder.config
    groups = memory_blocks_needed(settings.layout, chunks=settings.num_chunks, trained=settings.num_chunks)
    slots = groups * settings.slots_per_chunk if settings.injection == "token" else 0
    inputs = slots + settings.chunk_length
    model = MemoryModelForCausalLM(
        MemoryModelConfig(
            encoder=written,
            decoder=_decoder_config(settings, vocabulary + _SLOT_IDS, pad, inputs),
            **settings.model_dump(exclude={"encoder", "decoder", "memory", "backpropagation_depth"}),
            reconstruction_head=reconstruction_head,
            freeze_encoder=encoder is not None,
            encoder_fingerprint=None if encoder is None else weights_fingerprint(encoder),
            memory_token_id=vocabulary,
            pad_token_id=pad,
            eos_token_id=eos_token_id,
        )
    )
    if encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
    return model


def _recurrent(settings: MemoryModelSettings, vocabulary: int, pad: int, eos: int) -> RecurrentMemoryForCausalLM:
    slots = settings.slots_per_chunk
    return RecurrentMemoryForCausalLM(
        RecurrentMemoryConfig(
            decoder=_decoder_config(settings, vocabulary, pad, 2 * slots + settings.chunk_length),
            chunk_length=settings.chunk_length,
            num_chunks=settings.num_chunks,
            memory_tokens=slots,
            backpropagation_depth=settings.backpropagation_depth,
            use_memory=settings.use_memory,
            pad_token_id=pad,
            eos_token_id=eos,
        )
    )


def _encoder_config(settings: MemoryModelSettings, vocabulary: int, pad: int) -> ChunkEncoderConfig:
    values = settings.encoder.model_dump(exclude={"num_layers"})
    return ChunkEncoderConfig(
        vocab_size=vocabulary,
        chunk_length=settings.chunk_length,
        num_encoder_layers=settings.encoder.num_layers,
        pad_token_id=pad,
        **values,
    )


def _decoder_config(settings: MemoryModelSettings, vocabulary: int, pad: int, inputs: int) -> dict[str, Any]:
    decoder = settings.decoder
    common = {"vocab_size": vocabulary, "hidden_size": decoder.hidden_size, "num_hidden_layers": decoder.num_layers}
    if decoder.backbone == "mixer":
        return {
            "model_type": "memlm_mixer",
            "num_heads": decoder.num_heads,
            "kernel_size": decoder.kernel_size,
            "intermediate_size": decoder.intermediate_size,
            "max_position_embeddings": inputs,
            "pad_token_id": pad,
            **common,
        }
    return {
        "model_type": "llama",
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_heads,
        "intermediate_size": decoder.intermediate_size or 4 * decoder.hidden_size,
        # rotary positions: more chunks than in training can be read
        "max_position_embeddings": max(2**15, inputs),
        "pad_token_id": pad,
        "bos_token_id": None,
        "eos_token_id": None,
        **common,
    }
