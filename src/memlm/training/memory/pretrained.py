"""Memory models around a pretrained decoder: any causal language model of transformers."""

from __future__ import annotations

from typing import cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from memlm.data import encode_texts, eos_id, pad_id
from memlm.errors import CheckpointError, ConfigError
from memlm.models import ChunkEncoder, MemoryModelConfig, MemoryModelForCausalLM
from memlm.models.memory.adapter import base_weights_into
from memlm.models.memory.encoder import Translation, same_tokens
from memlm.models.runtime import no_shard_bars, weights_fingerprint
from memlm.training.memory.config import MemoryModelSettings

_OURS = {"encoder", "decoder", "memory", "backpropagation_depth"}
_SAMPLE = 256


def load_decoder(path_or_id: str) -> PreTrainedModel:
    """A causal language model in fp32.

    Raises:
        CheckpointError: none there, or one that runs code of its own.
    """
    try:
        with no_shard_bars():
            return AutoModelForCausalLM.from_pretrained(path_or_id, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # hub, safetensors, JSON and transformers each raise their own kind
        reason = " ".join(str(error).split())[:200]
        if "custom code" in reason:
            raise CheckpointError(
                f"'{path_or_id}' brings code of its own, which memlm does not run; give a model that transformers "
                "knows, or convert it to one."
            ) from error
        raise CheckpointError(
            f"cannot load a decoder from '{path_or_id}' ({reason}); give a causal language model's folder or Hub id."
        ) from error


def build_around_pretrained(
    settings: MemoryModelSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    encoder: ChunkEncoder | None,
    encoder_tokenizer: PreTrainedTokenizerBase | None,
) -> MemoryModelForCausalLM:
    """The decoder as it is, what joins it to memories drawn anew.

    Args:
        settings: of chunks, slots and adapters.
        tokenizer: of the decoder.
        encoder: frozen into the model.
        encoder_tokenizer: of the encoder; where it differs, chunks reach the encoder through their text.

    Raises:
        CheckpointError: the decoder cannot be loaded.
        ConfigError: no encoder; sizes that do not fit each other.
    """
    if encoder is None or encoder_tokenizer is None:
        raise ConfigError("a pretrained decoder reads the memories of a trained encoder; give encoder_run (--encoder).")
    base = load_decoder(str(settings.decoder.pretrained))
    table = base.get_input_embeddings()
    if not isinstance(table, torch.nn.Embedding):
        raise ConfigError(f"the decoder '{settings.decoder.pretrained}' has no table of token embeddings; use another.")
    apart = not same_tokens(tokenizer, encoder_tokenizer)
    adapter = settings.decoder.adapter
    rank, alpha = settings.decoder.lora_rank, settings.decoder.lora_alpha
    model = MemoryModelForCausalLM(
        MemoryModelConfig(
            encoder=encoder.config,
            decoder=base.config,
            **settings.model_dump(exclude=_OURS),
            lora={"rank": rank, "alpha": alpha, "gated": adapter == "gated"} if adapter in ("lora", "gated") else None,
            freeze_decoder=adapter != "all",
            own_blank=True,
            first_token_id=_first_token(tokenizer),
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


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """What texts begin with, or are parted by: attention rests there, and nothing is lost."""
    blank = pad_id(tokenizer)
    candidates = (tokenizer.bos_token_id, eos_id(tokenizer), *encode_texts(tokenizer, ["\n"])[0])
    return next(i for i in candidates if isinstance(i, int) and i != blank)


@torch.no_grad()
def _start_like_tokens(model: MemoryModelForCausalLM, table: torch.Tensor) -> None:
    """Slots as long as tokens, blanks about where tokens are: what a decoder was never given it reads badly."""
    writer = model.encoder.config
    memories = torch.randn(_SAMPLE, writer.memories_per_chunk, writer.bottleneck_size)
    length = float(model.readout(memories).square().mean().sqrt())
    for parameter in model.readout.parameters():
        parameter.mul_(float(table.square().mean().sqrt()) / max(length, 1e-6))
    blank = cast(torch.nn.Parameter, model.blank)
    blank.copy_(table.mean(0) + table.std() * torch.randn(blank.shape))
