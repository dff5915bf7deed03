"""Settings of the text autoencoder."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError, did_you_mean
from memlm.models.base import MemlmConfig, require_positive
from memlm.models.layers.backbone import BACKBONES
from memlm.models.layers.bottleneck import ACTIVATIONS, BOTTLENECKS
from memlm.models.layers.readout import READOUTS


@strict
class TextAutoencoderConfig(MemlmConfig):
    """One chunk of tokens becomes `memories_per_chunk` vectors of `bottleneck_size` numbers, and comes back.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys, unknown kinds.
    """

    model_type = "memlm_autoencoder"

    vocab_size: int = 1024
    chunk_length: int = 64
    """Tokens a chunk holds at most."""
    hidden_size: int = 192
    backbone: str = "mixer"
    """`mixer` (learned matrices over positions) or `llama` (attention)."""
    num_encoder_layers: int = 2
    num_decoder_layers: int = 2
    num_heads: int = 16
    kernel_size: int = 1
    """Taps of a mixer's convolution along the width."""
    causal: bool = True
    """Whether encoder and decoder positions see only earlier ones; the paper found it to help even here (1.1)."""
    intermediate_size: int | None = None
    """Width of the feed-forward layers; four times the hidden size where not set."""
    bottleneck: str = "slices"
    bottleneck_size: int = 256
    """Numbers in one memory."""
    bottleneck_rank: int = 16
    """Numbers each position writes before all are joined; `positionwise` only."""
    memories_per_chunk: int = 1
    readout: str = "slices"
    readout_rank: int = 16
    """Numbers each position reads; `positionwise` only."""
    noise_bits: int | None = None
    """Training adds noise as wide as one step of rounding to this many bits."""
    memory_activation: str = "none"
    """`none`, `tanh`, or `rms_norm`."""
    initializer_range: float = 0.02
    attention_implementation: str = "sdpa"
    learned_positions: bool = False
    """Llama layers get a learnt vector of each position beside their rotary ones; mixers know positions anyway."""
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    @property
    def memory_size(self) -> int:
        """Numbers that all memories of one chunk hold together."""
        return self.memories_per_chunk * self.bottleneck_size

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that cannot be."""
        require_positive(self, "vocab_size", "chunk_length", "hidden_size", "num_heads", "kernel_size")
        require_positive(self, "bottleneck_size", "bottleneck_rank", "memories_per_chunk", "readout_rank")
        _require_known(
            self, backbone=BACKBONES, bottleneck=BOTTLENECKS, readout=READOUTS, memory_activation=ACTIVATIONS
        )
        _require_divisible(self, "hidden_size", "num_heads")
        _require_divisible(self, "chunk_length", "memories_per_chunk")
        if self.readout == "windowed" and self.hidden_size % 2:
            raise ConfigError(f"hidden_size ({self.hidden_size}) must be even for the windowed readout.")
        if self.noise_bits is not None and not 2 <= self.noise_bits <= 16:
            raise ConfigError(f"noise_bits ({self.noise_bits}) must lie between 2 and 16.")


def _require_known(config: TextAutoencoderConfig, **kinds: Any) -> None:
    for name, known in kinds.items():
        value = getattr(config, name)
        if value not in known:
            raise ConfigError(f"unknown {name} '{value}'. {did_you_mean(value, known)}")


def _require_divisible(config: TextAutoencoderConfig, whole: str, part: str) -> None:
    dividend, divisor = getattr(config, whole), getattr(config, part)
    if dividend % divisor:
        raise ConfigError(f"{whole} ({dividend}) must be divisible by {part} ({divisor}).")
