"""Stacks of layers for encoders and decoders, and their settings: embeddings and a mask in, hidden states out."""

from __future__ import annotations

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_divisible, require_known, require_positive
from memlm.models.layers.mixer.configuration import MixerConfig
from memlm.models.layers.mixer.modeling import MixerModel

BACKBONES = ("mixer", "llama")


@strict
class LayersConfig(MemlmConfig):
    """A stack of mixer or Llama layers.

    Raises:
        ConfigError: sizes below one, heads that do not divide the width, an unknown backbone, unknown keys.
    """

    vocab_size: int = 1024
    """Number of token ids."""
    hidden_size: int = 192
    """Width of the layers."""
    backbone: str = "mixer"
    """Kind of layers: `mixer` (learned matrices over positions) or `llama` (attention)."""
    num_heads: int = 16
    """Heads of every layer; a mixer with one head is flat."""
    kernel_size: int = 1
    """Taps of a mixer's convolution along the width."""
    causal: bool = True
    """Positions see only earlier ones, which helps autoencoders too (Badger, arXiv 2602.13466)."""
    intermediate_size: int | None = None
    """Width of the feed-forward layers; four times the hidden size by default."""
    learned_positions: bool = False
    """Llama layers get a learned vector for each position beside their rotary positions."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights of Llama layers."""
    attention_implementation: str = "sdpa"
    """Attention kernel of Llama layers: `sdpa` or `eager`."""
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        require_positive(self, "vocab_size", "hidden_size", "num_heads", "kernel_size", "intermediate_size")
        require_known(self, backbone=BACKBONES)
        require_divisible(self, "hidden_size", "num_heads")
        if self.backbone == "llama" and self.hidden_size // self.num_heads % 2:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) must be divisible by twice num_heads ({self.num_heads}) for llama "
                "layers, whose rotary positions turn pairs of numbers."
            )


def build_backbone(settings: LayersConfig, *, num_layers: int, length: int) -> MixerBackbone | LlamaBackbone:
    """Return the stack that `settings.backbone` names, for inputs of at most `length` positions."""
    kind = MixerBackbone if settings.backbone == "mixer" else LlamaBackbone
    return kind(settings, num_layers=num_layers, length=length)


class MixerBackbone(nn.Module):
    """Masked mixer blocks; positions are absolute, so tokens must start at position 0."""

    def __init__(self, settings: LayersConfig, *, num_layers: int, length: int) -> None:
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
        """Return hidden states; masked positions (right of the text) are never read."""
        return self.stack(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state


class LlamaBackbone(nn.Module):
    """Llama layers of transformers (rotary positions, RMSNorm, SwiGLU), with a final norm.

    Rotary positions only steer where attention looks: one that looks everywhere alike, as all do at first, loses the
    order of tokens. With `learned_positions` a vector of each position is added to its input (LOG.md).
    """

    def __init__(self, settings: LayersConfig, *, num_layers: int, length: int) -> None:
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
        """Return hidden states; masked positions are never read."""
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
