"""Settings of the memory model: an encoder, a decoder, and what passes between them."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from memlm.errors import ConfigError, did_you_mean
from memlm.models.autoencoder.configuration import TextAutoencoderConfig
from memlm.models.base import MemlmConfig, require_positive
from memlm.models.layers.backbone import BACKBONES
from memlm.models.layers.bottleneck import ACTIVATIONS, BOTTLENECKS
from memlm.models.layers.readout import READOUTS
from memlm.models.memory.adapter import LoraSettings


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


LAYOUTS = ("aligned", "fixed", "variable", "oracle")
FILLERS = ("masked", "learned", "constant")
ENCODER_TOKENS = ("shared", "own")
INJECTIONS = ("token", "hidden", "projection")
SLOT_READOUTS = tuple(name for name in READOUTS if name != "prefix")


@strict
class MemoryModelConfig(MemlmConfig):
    """Chunks become memories by `encoder`; `decoder` reads a chunk's tokens behind the memories of those before it.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys, unknown kinds.
    """

    model_type = "memlm_memory"
    sub_configs: ClassVar[dict[str, type[AutoConfig]]] = {"encoder": AutoConfig, "decoder": AutoConfig}  # pyright: ignore
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    encoder: dict[str, Any] | PreTrainedConfig | None = None
    """What writes memories; a ChunkEncoderConfig."""
    decoder: dict[str, Any] | PreTrainedConfig | None = None
    """Any causal language model; `generate()` looks for this name."""
    chunk_length: int = 16
    """Tokens per chunk."""
    num_chunks: int = 4
    """Chunks of a document in training; more can be read later where the decoder has positions for their slots."""
    slots_per_chunk: int = 8
    """Decoder inputs that one chunk's memories take."""
    readout: str = "slices"
    """How memories become slots; one of memlm.models.layers.readout without `prefix`."""
    readout_rank: int = 16
    """Numbers each slot reads; `positionwise` only."""
    layout: str = "aligned"
    """Where memories stand: `aligned`, the paper's `fixed` and `variable`, or `oracle`."""
    injection: str = "token"
    """How memories enter: as inputs before the tokens, or (oracle only) beside them by `hidden` or `projection`."""
    learned_positions: bool = False
    """Tokens get a learnt vector of their place in the chunk, slots one of their place in the group: attention then
    finds a token's slot by what both hold, and need not by distance (LOG.md)."""
    filler: str = "masked"
    """Unused slots are `masked`, or hold a `learned` or `constant` (ones) vector that is attended to (the paper's)."""
    lora: dict[str, Any] | None = None
    """Adapters in the decoder (memlm.models.memory.adapter), at work where memories are read; its own weights stay."""
    freeze_decoder: bool = False
    """The decoder's own weights stay as they are; what joins it to memories, and adapters, may change."""
    own_blank: bool = False
    """Padding ids within text get learnt vectors, one a place in the chunk, not a row of the decoder's table (which may
    have none)."""
    first_token_id: int | None = None
    """A token that stands before the first memory; none does without memories. A pretrained decoder makes its first
    position the one that attention rests on, and keeps nothing of what stands there (Xiao et al., arXiv 2309.17453)."""
    encoder_tokens: str = "shared"
    """`own`: the encoder has a tokenizer of its own, and chunks reach it through their text (`translation`)."""
    freeze_encoder: bool = False
    """The encoder stays as it is: evaluation mode, no gradients."""
    encoder_fingerprint: str | None = None
    """Of a frozen encoder's weights; checked after loading."""
    use_memory: bool = True
    """False: no slot ever holds a memory, in training too (the `no_memory` baseline)."""
    blank_head: bool = False
    """Blanks (padding ids within text) are answered through an output map of their own, not the one that predicts:
    giving back and predicting pull at one map in different directions (LOG.md). The decoder's logits must be those of
    its output embedding, neither scaled nor capped."""
    reconstruction_head: bool = False
    """A head that reads a chunk's tokens straight from its memories, for the `reconstruction` objective."""
    memory_token_id: int = 1024
    """What stands in the decoder's input ids where a slot is; no tokenizer id."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder = _as_config(self.encoder, "encoder")
        self.decoder = _as_config(self.decoder, "decoder")
        super().__post_init__(**kwargs)

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """The decoder's settings."""
        return cast(PreTrainedConfig, self.decoder)

    @property
    def encoder_config(self) -> PreTrainedConfig:
        """The encoder's settings."""
        return cast(PreTrainedConfig, self.encoder)

    @property
    def document_length(self) -> int:
        """Tokens of a document in training."""
        return self.chunk_length * self.num_chunks

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that cannot be."""
        require_positive(self, "chunk_length", "num_chunks", "slots_per_chunk", "readout_rank")
        known = (
            *(("layout", LAYOUTS), ("filler", FILLERS), ("readout", SLOT_READOUTS), ("injection", INJECTIONS)),
            ("encoder_tokens", ENCODER_TOKENS),
        )
        for name, choices in known:
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(f"unknown {name} '{value}'. {did_you_mean(value, choices)}")
        if self.filler != "masked" and self.layout == "variable":
            raise ConfigError(f"filler ('{self.filler}') has no place in the variable layout; use 'masked'.")
        if self.injection != "token" and self.layout != "oracle":
            raise ConfigError(
                f"injection ('{self.injection}') puts a chunk's own memory beside its tokens; "
                f"it needs the oracle layout, not '{self.layout}'."
            )
        if self.learned_positions and self.layout == "variable":
            raise ConfigError(
                "learned_positions have no place in the variable layout, where places move; use 'aligned'."
            )
        if self.lora is not None:
            self.lora = LoraSettings.of(self.lora).to_dict()
            if self.layout != "variable":
                raise ConfigError(
                    f"lora needs the variable layout, not '{self.layout}': where no memory is read, text must stand "
                    "where the decoder knows it."
                )
        if self.first_token_id is not None and (self.layout != "variable" or self.first_token_id < 0):
            raise ConfigError(
                f"first_token_id ({self.first_token_id}) must be a token of the decoder, in the variable layout, not "
                f"'{self.layout}'."
            )
        if self.first_token_id is not None and self.first_token_id == (self.pad_token_id or 0):
            raise ConfigError(
                f"first_token_id ({self.first_token_id}) must not be the padding id ({self.pad_token_id}), which is a "
                "blank within text."
            )
        self._check_sizes()

    @property
    def has_first_token(self) -> bool:
        """Whether a token stands before the first memory."""
        return self.first_token_id is not None

    def _check_sizes(self) -> None:
        memories, slots = self.encoder_config.memories_per_chunk, self.slots_per_chunk
        if self.readout in ("repeated", "windowed") and slots % memories:
            raise ConfigError(
                f"slots_per_chunk ({slots}) must be divisible by memories_per_chunk ({memories}) "
                f"for the {self.readout} readout."
            )
        if self.encoder_tokens == "own":
            self._check_apart()
            return
        if self.chunk_length > self.encoder_config.chunk_length:
            raise ConfigError(
                f"chunk_length ({self.chunk_length}) must not exceed the encoder's "
                f"({self.encoder_config.chunk_length})."
            )
        if self.memory_token_id < self.encoder_config.vocab_size:
            raise ConfigError(
                f"memory_token_id ({self.memory_token_id}) must lie beyond the tokenizer's "
                f"{self.encoder_config.vocab_size} ids; nothing else may stand for a slot."
            )

    def _check_apart(self) -> None:
        """Of an encoder with a tokenizer of its own."""
        if self.memory_token_id < self.decoder_config.vocab_size:
            raise ConfigError(
                f"memory_token_id ({self.memory_token_id}) must lie beyond the decoder's "
                f"{self.decoder_config.vocab_size} ids; nothing else may stand for a slot."
            )
        if not self.freeze_encoder or self.reconstruction_head:
            raise ConfigError(
                "an encoder with a tokenizer of its own must be frozen (freeze_encoder) and has no "
                "reconstruction head: gradients do not pass through text."
            )


def _as_config(value: dict[str, Any] | PreTrainedConfig | None, name: str) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    if not isinstance(value, dict) or "model_type" not in value:
        raise ConfigError(f"{name} must be a configuration, or a mapping with a model_type; got {value!r}.")
    settings = dict(value)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)
