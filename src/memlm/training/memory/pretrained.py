"""Pretrained causal language models: memory models around them, and autoencoders with their token embeddings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.data import eos_id, first_token_id, pad_id
from memlm.errors import ConfigError
from memlm.models import ChunkEncoder, MemoryModelConfig, MemoryModelForCausalLM, TextAutoencoder
from memlm.models.memory.adapter import LoraSettings, base_weights_into
from memlm.models.memory.encoder import Translation
from memlm.models.runtime import load_decoder, weights_fingerprint
from memlm.training.config import RunConfig
from memlm.training.model_settings import settings_of

_REPLACED = ("model_type", "encoder", "decoder", "lora")
"""Settings that an encoder and a pretrained decoder bring themselves."""
_SAMPLE = 256
"""Random memories that show how long slots are."""


def build_around_pretrained(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: ChunkEncoder | None,
    encoder_tokenizer: PreTrainedTokenizerBase | None,
) -> MemoryModelForCausalLM:
    """Return a memory model around a pretrained decoder; what joins it to memories has new weights.

    Args:
        config: settings of the run.
        tokenizer: tokenizer of the decoder.
        encoder: trained encoder that is frozen into the model.
        encoder_tokenizer: tokenizer of the encoder; where it differs, chunks reach the encoder as text.

    Raises:
        CheckpointError: the decoder cannot be loaded.
        ConfigError: no encoder, or sizes that do not fit each other.
    """
    if encoder is None or encoder_tokenizer is None:
        raise ConfigError("a pretrained decoder reads the memories of a trained encoder; give encoder_run (--encoder).")
    base = load_decoder(str(config.decoder.path), dtype=torch.float32)
    table = _token_embeddings(base, f"use another decoder than '{config.decoder.path}'")
    apart = tokenizer.get_vocab() != encoder_tokenizer.get_vocab()
    settings = {n: v for n, v in settings_of(config.model).items() if n not in _REPLACED}
    model = MemoryModelForCausalLM(
        MemoryModelConfig(
            **settings,
            encoder=encoder.config,
            decoder=base.config,
            lora=_lora(config),
            freeze_decoder=config.decoder.adapter != "all",
            own_blank=True,
            first_token_id=first_token_id(tokenizer, vocab_size=table.num_embeddings),
            encoder_tokens="own" if apart else "shared",
            freeze_encoder=True,
            encoder_fingerprint=weights_fingerprint(encoder),
            memory_token_id=max(len(tokenizer), table.num_embeddings),
            pad_token_id=pad_id(tokenizer),
            eos_token_id=eos_id(tokenizer),
        )
    )
    model.encoder.load_state_dict(encoder.state_dict())
    base_weights_into(model.decoder, base.state_dict())
    _start_like_tokens(model, table.weight.detach())
    if apart:
        model.translation = Translation(tokenizer, encoder_tokenizer, length=encoder.config.chunk_length)
    return model


def _lora(config: RunConfig) -> dict[str, Any] | None:
    adapter = config.decoder.adapter
    if adapter not in ("lora", "gated"):
        return None
    given = cast(MemoryModelConfig, config.model).lora or asdict(LoraSettings())
    return {**given, "gated": adapter == "gated"}


def _token_embeddings(model: PreTrainedModel, remedy: str) -> torch.nn.Embedding:
    found = model.get_input_embeddings()
    if not isinstance(found, torch.nn.Embedding):
        raise ConfigError(f"the model has no table of token embeddings; {remedy}.")
    return found


@torch.no_grad()
def take_token_table(model: TextAutoencoder, path_or_id: str) -> None:
    """Give an autoencoder the principal components of a language model's token embeddings, which training leaves fixed.

    A decoder reads a memory sooner if tokens that are alike for it are alike in the memory (LOG.md). The output layer
    starts from the same components; a padding token that the language model does not have gets zeros.

    Args:
        model: untrained, with the language model's vocabulary.
        path_or_id: folder or Hub id of the language model.

    Raises:
        CheckpointError: the language model cannot be loaded.
        ConfigError: it has no token embeddings, or they are narrower than the autoencoder.
    """
    found = _token_embeddings(
        load_decoder(path_or_id, dtype=torch.float32), f"leave data.token_table ('{path_or_id}') out"
    )
    words, width = model.embed_tokens.weight.shape
    if found.embedding_dim < width:
        raise ConfigError(
            f"model.hidden_size ({width}) must not exceed the width ({found.embedding_dim}) of '{path_or_id}', whose "
            "token table it takes."
        )
    table = found.weight[:words].float()
    table = table - table.mean(0)
    components = torch.linalg.eigh(table.T @ table).eigenvectors.flip(1)[:, :width]
    projected = table @ components
    projected = torch.nn.functional.pad(projected / projected.std(), (0, 0, 0, words - len(table)))
    model.embed_tokens.weight.copy_(projected)
    # a token's own logit then begins as the square root of the width, others about one
    model.lm_head.weight.copy_(projected * width**-0.5)
    model.config.freeze_embeddings = True
    model.set_trainable()


@torch.no_grad()
def _start_like_tokens(model: MemoryModelForCausalLM, table: torch.Tensor) -> None:
    """Scale slots to the length of tokens and draw blanks near them, since decoders read unfamiliar inputs badly."""
    writer = model.encoder.config
    memories = torch.randn(_SAMPLE, writer.memories_per_chunk, writer.bottleneck_size)
    length = float(model.readout(memories).square().mean().sqrt())
    for parameter in model.readout.parameters():
        parameter.mul_(float(table.square().mean().sqrt()) / max(length, 1e-6))
    blank = cast(torch.nn.Parameter, model.blank)
    blank.copy_(table.mean(0) + table.std() * torch.randn(blank.shape))
