"""Settings of what writes the memories of chunks."""

from __future__ import annotations

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from memlm.errors import ConfigError, did_you_mean
from memlm.models.autoencoder.configuration import TextAutoencoderConfig
from memlm.models.configuration import MemlmConfig, require_positive
from memlm.models.layers.backbone import BACKBONES
from memlm.models.layers.bottleneck import ACTIVATIONS, BOTTLENECKS


@strict
class ChunkEncoderConfig(MemlmConfig):
    """The encoder's half of a text autoencoder, or any transformers model with a bottleneck behind it.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys, unknown kinds.
    """

    model_type = "memlm_chunk_encoder"
    sub_configs: ClassVar[dict[str, type[AutoConfig]]] = {"base": AutoConfig}  # pyright: ignore

    vocab_size: int = 1024
    chunk_length: int = 16
    """Tokens a chunk holds at most."""
    hidden_size: int = 128
    backbone: str = "mixer"
    """`mixer` or `llama`; not used where there is a `base`."""
    base: dict[str, Any] | PreTrainedConfig | None = None
    """Settings of a transformers model that takes the place of our layers, its own token table included."""
    num_encoder_layers: int = 2
    num_heads: int = 16
    kernel_size: int = 1
    causal: bool = True
    intermediate_size: int | None = None
    bottleneck: str = "slices"
    bottleneck_size: int = 128
    """Numbers in one memory."""
    bottleneck_rank: int = 16
    memories_per_chunk: int = 1
    readout_rank: int = 16
    """What bottlenecks of two directions share; the encoder does not use it."""
    noise_bits: int | None = None
    noise_residual: bool = False
    memory_activation: str = "none"
    initializer_range: float = 0.02
    attention_implementation: str = "sdpa"
    learned_positions: bool = False
    """Llama layers get a learnt vector of each position beside their rotary ones; mixers know positions anyway."""
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.base, dict):
            settings = dict(self.base)
            self.base = AutoConfig.for_model(settings.pop("model_type"), **settings)
        if self.base is not None:
            self.hidden_size, self.vocab_size = self.base.hidden_size, self.base.vocab_size
        super().__post_init__(**kwargs)

    @classmethod
    def of_autoencoder(cls, config: TextAutoencoderConfig) -> ChunkEncoderConfig:
        """The encoder's half of a text autoencoder."""
        shared = set(cls.__dataclass_fields__) & set(TextAutoencoderConfig.__dataclass_fields__)
        named = [name for name in cls.__annotations__ if name in shared]
        return cls(**{name: getattr(config, name) for name in named})

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that cannot be."""
        require_positive(self, "vocab_size", "chunk_length", "hidden_size", "num_heads", "kernel_size")
        require_positive(self, "bottleneck_size", "bottleneck_rank", "memories_per_chunk")
        kinds = (("backbone", BACKBONES), ("bottleneck", BOTTLENECKS), ("memory_activation", ACTIVATIONS))
        for name, known in kinds:
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown {name} '{value}'. {did_you_mean(value, known)}")
        for whole, part in (("hidden_size", "num_heads"), ("chunk_length", "memories_per_chunk")):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{whole} ({getattr(self, whole)}) must be divisible by {part} ({getattr(self, part)})."
                )
