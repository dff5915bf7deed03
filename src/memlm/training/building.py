"""New models from a run's settings, or around the encoder of another run."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memlm.data import eos_id, load_tokenizer, pad_id
from memlm.models import ChunkEncoder, MemoryModelForCausalLM, TextAutoencoder, encoder_of
from memlm.models.loading import RUN_MODELS, load_model
from memlm.models.runtime import weights_fingerprint
from memlm.training.config import RunConfig
from memlm.training.memory.pretrained import build_around_pretrained, take_token_table
from memlm.training.model_settings import ModelConfig, TokenIds, complete, settings_of
from memlm.training.run_folder import RunFolder


def encoder_of_run(path: str) -> ChunkEncoder:
    """Return the encoder of a finished run of an autoencoder or a memory model, in evaluation mode.

    Raises:
        RunFolderError, CheckpointError: not a finished run of a model with an encoder.
    """
    RunFolder.open(path).require_model()
    model = load_model(path, TextAutoencoder, MemoryModelForCausalLM)[0]
    return encoder_of(model) if isinstance(model, TextAutoencoder) else model.encoder.eval()


def build_run_model(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int | None = None,
    encoder: ChunkEncoder | None = None,
) -> PreTrainedModel:
    """Return the untrained model of a run; a given encoder is frozen into it.

    Args:
        config: settings of the run; a pretrained decoder comes with its weights.
        tokenizer: tokenizer of the decoder, and of the encoder where it has none of its own.
        seed: seed of the weights; the run's by default.
        encoder: trained encoder.

    Raises:
        ConfigError: sizes that do not fit each other.
        CheckpointError: the pretrained decoder cannot be loaded.
    """
    seed = config.training.seed if seed is None else seed
    if config.decoder.path is not None:
        own = None if config.encoder_run is None else load_tokenizer(config.encoder_run)
        torch.manual_seed(seed)
        return build_around_pretrained(config, tokenizer, encoder=encoder, encoder_tokenizer=own)
    tokens = TokenIds(len(tokenizer), pad_id(tokenizer), eos_id(tokenizer))
    head = config.asks_reconstruction and not config.is_autoencoder
    model = build_model(config.model, tokens, seed=seed, encoder=encoder, reconstruction_head=head)
    if config.data.token_table is not None:
        take_token_table(cast(TextAutoencoder, model), config.data.token_table)
    return model


def build_model(
    config: ModelConfig,
    tokens: TokenIds,
    *,
    seed: int,
    encoder: ChunkEncoder | None = None,
    reconstruction_head: bool = False,
) -> Any:
    """Return an untrained model for a tokenizer's sizes.

    Args:
        config: configuration of the model; what the data decides is filled in anew.
        tokens: sizes and ids of the tokenizer.
        seed: seed of the weights.
        encoder: trained encoder that is frozen into a memory model.
        reconstruction_head: whether a memory model has a head for the `reconstruction` objective.
    """
    filled: dict[str, Any] = {}
    if encoder is not None:
        filled = {"freeze_encoder": True, "encoder_fingerprint": weights_fingerprint(encoder)}
    if reconstruction_head:
        filled["reconstruction_head"] = True
    own = None if encoder is None else encoder.config
    torch.manual_seed(seed)
    whole = complete(settings_of(config), tokens, encoder=own, **filled)
    model = cast(Any, RUN_MODELS[whole.model_type])(whole)
    if encoder is not None:
        model.encoder.load_state_dict(encoder.state_dict())
    return model
