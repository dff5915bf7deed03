"""Settings that several families of models share: a stack of layers, and the coding of chunks into memories."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_divisible, require_known, require_positive
from memlm.models.layers.backbone import BACKBONES
from memlm.models.layers.bottleneck import ACTIVATIONS, BOTTLENECKS


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
        require_positive(self, "vocab_size", "hidden_size", "num_heads", "kernel_size")
        require_known(self, backbone=BACKBONES)
        require_divisible(self, "hidden_size", "num_heads")
        if self.intermediate_size is not None:
            require_positive(self, "intermediate_size")
        if self.backbone == "llama" and self.hidden_size // self.num_heads % 2:
            raise ConfigError(
                f"hidden_size ({self.hidden_size}) must be divisible by twice num_heads ({self.num_heads}) for llama "
                "layers, whose rotary positions turn pairs of numbers."
            )


@strict
class ChunkCodingConfig(LayersConfig):
    """An encoder that turns a chunk of tokens into `memories_per_chunk` vectors of `bottleneck_size` numbers."""

    chunk_length: int = 64
    """Largest number of tokens in a chunk."""
    num_encoder_layers: int = 2
    """Layers that read the tokens."""
    bottleneck: str = "slices"
    """How hidden states become memories."""
    bottleneck_size: int = 256
    """Numbers in one memory."""
    bottleneck_rank: int = 16
    """Numbers that each position contributes before all are joined (`positionwise` bottleneck)."""
    memories_per_chunk: int = 1
    """Memories that stand for one chunk."""
    readout_rank: int = 16
    """Numbers that each position reads (`positionwise` readout)."""
    noise_bits: int | None = None
    """Train with uniform noise as wide as one step of rounding to this many bits."""
    memory_activation: str = "none"
    """Function that bounds the numbers of a memory: `none`, `tanh` or `rms_norm`."""

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        super().check()
        require_positive(self, "chunk_length", "bottleneck_size", "bottleneck_rank", "memories_per_chunk")
        require_positive(self, "readout_rank")
        require_known(self, bottleneck=BOTTLENECKS, memory_activation=ACTIVATIONS)
        require_divisible(self, "chunk_length", "memories_per_chunk")
        if not 0 <= self.num_encoder_layers <= 512:
            raise ConfigError(f"num_encoder_layers ({self.num_encoder_layers}) must lie between 0 and 512.")
        if self.noise_bits is not None and not 2 <= self.noise_bits <= 16:
            raise ConfigError(f"noise_bits ({self.noise_bits}) must lie between 2 and 16.")
