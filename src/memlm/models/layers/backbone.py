"""Stacks of layers that an encoder or decoder can be made of: embeddings and a mask in, hidden states out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from memlm.models.layers.mixer.configuration import MixerConfig
from memlm.models.layers.mixer.modeling import MixerModel


@runtime_checkable
class BackboneSettings(Protocol):
    """The part of a configuration that a backbone reads."""

    backbone: str
    hidden_size: int
    intermediate_size: int | None
    num_heads: int
    kernel_size: int
    causal: bool
    initializer_range: float
    attention_implementation: str
    learned_positions: bool


BACKBONES = ("mixer", "llama")


def build_backbone(settings: BackboneSettings, *, num_layers: int, length: int) -> MixerBackbone | LlamaBackbone:
    """The stack that `settings.backbone` names, for inputs of at most `length` positions."""
    kind = MixerBackbone if settings.backbone == "mixer" else LlamaBackbone
    return kind(settings, num_layers=num_layers, length=length)


class MixerBackbone(nn.Module):
    """Masked mixer blocks; positions are absolute, so tokens must start at position 0."""

    def __init__(self, settings: BackboneSettings, *, num_layers: int, length: int) -> None:
        super().__init__()
        config = MixerConfig(
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=num_layers,
            num_heads=settings.num_heads,
            kernel_size=settings.kernel_size,
            max_position_embeddings=length,
            causal=settings.causal,
        )
        self.stack = MixerModel(config, with_embeddings=False)

    def forward(
        self, inputs: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Hidden states; masked positions (right of the text) are never read."""
        return self.stack(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state


class LlamaBackbone(nn.Module):
    """Llama layers of transformers (rotary positions, RMSNorm, SwiGLU), with a final norm.

    Rotary positions only steer where attention looks: one that looks everywhere alike, as all do at first, loses the
    order of tokens. With `learned_positions` a vector of each position is added to its input (LOG.md).
    """

    def __init__(self, settings: BackboneSettings, *, num_layers: int, length: int) -> None:
        super().__init__()
        self.causal = settings.causal
        config = LlamaConfig(
            vocab_size=1,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size or 4 * settings.hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=settings.num_heads,
            max_position_embeddings=length,
            initializer_range=settings.initializer_range,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        config._attn_implementation = settings.attention_implementation  # pyright: ignore[reportPrivateUsage]
        self.stack = LlamaModel(config)
        # embeddings belong to the model around it; a table here would be dead weight in every checkpoint
        del self.stack.embed_tokens
        self.positions = nn.Embedding(length, settings.hidden_size) if settings.learned_positions else None

    def forward(
        self, inputs: Float[Tensor, "batch tokens width"], mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Hidden states; masked positions are never read."""
        if self.positions is not None:
            inputs = inputs + self.positions.weight[: inputs.shape[1]]
        return self.stack(
            inputs_embeds=inputs, attention_mask=self._mask(inputs, mask), use_cache=False
        ).last_hidden_state

    def _mask(self, inputs: Tensor, mask: Tensor | None) -> Tensor | None:
        if self.causal:
            return mask
        batch, tokens, _ = inputs.shape
        readable = torch.ones(batch, tokens, dtype=torch.bool, device=inputs.device) if mask is None else mask.bool()
        # a row that may read nothing would be NaN; what it holds is never used
        readable = readable | ~readable.any(-1, keepdim=True)
        return readable[:, None, None, :].expand(batch, 1, tokens, tokens)
