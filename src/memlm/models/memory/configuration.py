"""Settings of the memory model: an encoder, a decoder, and what passes between them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from memlm.errors import ConfigError
from memlm.models.autoencoder.configuration import TextAutoencoderConfig
from memlm.models.base import MemlmConfig, require_known, require_positive
from memlm.models.documents import DocumentModelConfig, sub_config
from memlm.models.layers.bottleneck import ChunkCodingConfig
from memlm.models.layers.readout import READOUTS
from memlm.models.memory.adapter import LoraSettings


@strict
class ChunkEncoderConfig(ChunkCodingConfig):
    """The encoder of a text autoencoder by itself, or any transformers model with a bottleneck behind it.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys, unknown kinds.
    """

    model_type = "memlm_chunk_encoder"
    sub_configs: ClassVar[dict[str, type[AutoConfig]]] = {"base": AutoConfig}  # pyright: ignore
    from_data: ClassVar[frozenset[str]] = MemlmConfig.from_data | {"chunk_length", "base", "readout_rank"}

    chunk_length: int = 16
    hidden_size: int = 128
    bottleneck_size: int = 128
    base: dict[str, Any] | PreTrainedConfig | None = None
    """Settings of a transformers model that takes the place of memlm's layers, with its own token table."""

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.base, dict):
            self.base = sub_config(self.base, "base")
        if self.base is not None:
            self.hidden_size, self.vocab_size = self.base.hidden_size, self.base.vocab_size
        super().__post_init__(**kwargs)

    @classmethod
    def of_autoencoder(cls, config: TextAutoencoderConfig) -> ChunkEncoderConfig:
        """Return the configuration of a text autoencoder's encoder."""
        theirs = {field.name for field in fields(PreTrainedConfig)}
        shared = [field.name for field in fields(ChunkCodingConfig) if field.name not in theirs]
        return cls(**{name: getattr(config, name) for name in shared})


LAYOUTS = ("aligned", "fixed", "variable", "oracle")
SLOT_READOUTS = tuple(name for name in READOUTS if name != "prefix")


@strict
class MemoryModelConfig(DocumentModelConfig):
    """A decoder that reads a chunk's tokens behind the memories that an encoder made of the chunks before it.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys, unknown kinds.
    """

    model_type = "memlm_memory"
    sub_configs: ClassVar[dict[str, type[AutoConfig]]] = {"encoder": AutoConfig, "decoder": AutoConfig}  # pyright: ignore
    from_data: ClassVar[frozenset[str]] = MemlmConfig.from_data | {
        *("freeze_encoder", "freeze_decoder", "encoder_fingerprint", "encoder_tokens", "own_blank"),
        *("first_token_id", "memory_token_id", "reconstruction_head"),
    }
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012

    encoder: dict[str, Any] | PreTrainedConfig | None = None
    """Configuration of the encoder, a ChunkEncoderConfig."""
    slots_per_chunk: int = 8
    """Decoder inputs that one chunk's memories take."""
    readout: str = "slices"
    """How memories become slots."""
    readout_rank: int = 16
    """Numbers that each slot reads (`positionwise` readout)."""
    layout: str = "aligned"
    """Positions of the memories: newest next to the tokens (`aligned`), oldest first (`fixed`), positions counted from
    the first memory (`variable`), or each chunk's own memory too (`oracle`)."""
    injection: str = "token"
    """How memories enter the decoder: as inputs before the tokens (`token`), or in the oracle layout as a part of each
    token's width (`hidden`) or added to each token (`projection`)."""
    learned_positions: bool = False
    """Add a learned vector for the position in the chunk to each token, and one for the position in the block to each
    slot. Attention then finds a token's slot by content instead of distance (LOG.md)."""
    filler: str = "masked"
    """Unused slots are `masked`, or hold a `learned` or `constant` (ones) vector that is attended to."""
    lora: dict[str, Any] | None = None
    """Low-rank adapters (LoRA) in a pretrained decoder, active only behind memories: a mapping of LoraSettings."""
    freeze_decoder: bool = False
    """Train adapters and the connection to memories only, not the decoder's own weights."""
    own_blank: bool = False
    """Padding ids within text get learned vectors, one for each position in the chunk, instead of a row of the
    decoder's token table, which may have none."""
    first_token_id: int | None = None
    """Token that precedes the first memory; text without memories has none. Pretrained decoders use their first
    position as an attention sink (Xiao et al., arXiv 2309.17453)."""
    encoder_tokens: str = "shared"
    """`shared`, or `own`: the encoder has a tokenizer of its own, and chunks reach it as text (`translation`)."""
    freeze_encoder: bool = False
    """Keep the encoder in evaluation mode and without gradients."""
    encoder_fingerprint: str | None = None
    """Fingerprint of a frozen encoder's weights."""
    blank_head: bool = False
    """Predict blanks (padding ids within text) through an output layer of their own, since copying and prediction pull
    one layer in different directions (LOG.md). The decoder must not scale or cap its logits."""
    reconstruction_head: bool = False
    """Add a head that predicts a chunk's tokens from its memories alone, for the `reconstruction` objective."""
    memory_token_id: int = 1024
    """Placeholder for a slot in the decoder's input ids; no tokenizer id."""

    def __post_init__(self, **kwargs: Any) -> None:
        self.encoder = sub_config(self.encoder, "encoder")
        super().__post_init__(**kwargs)

    @property
    def encoder_config(self) -> PreTrainedConfig:
        """Configuration of the encoder."""
        return cast(PreTrainedConfig, self.encoder)

    def check(self) -> None:
        """Raise ConfigError for sizes and kinds that do not exist or do not fit each other."""
        require_positive(self, "chunk_length", "num_chunks", "slots_per_chunk", "readout_rank")
        require_known(self, layout=LAYOUTS, filler=("masked", "learned", "constant"), readout=SLOT_READOUTS)
        require_known(self, injection=("token", "hidden", "projection"), encoder_tokens=("shared", "own"))
        if self.filler != "masked" and self.layout == "variable":
            raise ConfigError(f"filler ('{self.filler}') has no place in the variable layout; use 'masked'.")
        if self.injection != "token" and self.layout != "oracle":
            raise ConfigError(
                f"injection ('{self.injection}') puts a chunk's own memory beside its tokens; "
                f"it needs the oracle layout, not '{self.layout}'."
            )
        if self.learned_positions and self.layout == "variable":
            raise ConfigError(
                "learned_positions have no place in the variable layout, where positions move; use 'aligned'."
            )
        if self.lora is not None:
            self.lora = asdict(LoraSettings.of(self.lora))
            if self.layout != "variable":
                raise ConfigError(
                    f"lora needs layout 'variable', not '{self.layout}': text without memories must have "
                    "the decoder's own positions."
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

    def _check_sizes(self) -> None:
        memories, slots = self.encoder_config.memories_per_chunk, self.slots_per_chunk
        if self.readout in ("repeated", "windowed") and slots % memories:
            raise ConfigError(
                f"slots_per_chunk ({slots}) must be divisible by memories_per_chunk ({memories}) "
                f"for the {self.readout} readout."
            )
        if self.encoder_tokens == "own":
            self._check_own_tokens()
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

    def _check_own_tokens(self) -> None:
        """Check an encoder with a tokenizer of its own."""
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
