"""Settings of a pretrained decoder that was trained to write memories."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_known, require_positive
from memlm.models.memory.adapter import LoraSettings
from memlm.models.slots.states import EncodingSettings

INJECTIONS = ("kv", "input", "layer", "code")
"""The ways for memories to enter a decoder."""
_MOST_HEAD_ROWS = 10_000


@strict
class SlotWriterConfig(MemlmConfig):
    """Adapters of a pretrained decoder that are active while it writes memories, and only then.

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys.
    """

    model_type = "memlm_slot_writer"
    from_data: ClassVar[frozenset[str]] = MemlmConfig.from_data | {
        *("decoder_path", "decoder_identity", "gguf_file", "first_token_id", "encoding")
    }

    chunk_length: int = 256
    """Tokens of a chunk, which is written by itself."""
    num_chunks: int = 3
    """Chunks of a training row. Each but the first is read behind the memories of those before it, so that contexts of
    every length are trained at once."""
    scored_tokens: int = 96
    """Tokens of each chunk, drawn at random, whose predictions are compared with those of the full context."""
    ratios: list[int] | None = None
    """Tokens per memory, drawn anew for each step. By default 2, 4, 8, 16 and 32; for `kv` 1, since the fit, which
    needs no training, makes fewer memories when they are read."""
    fit_share: float = 0.0
    """Share of steps in which memories are made by the fit, through which gradients pass, as they are when they are
    read. In the others every so many-th token is kept. Without effect where all tokens are kept (ratios of 1)."""
    fact_share: float = 0.0
    """Share of rows whose last chunk asks for facts of earlier ones: names and numbers of the text, or planted ones."""
    chat_share: float = 0.0
    """Share of rows whose last chunk asks for planted facts of earlier ones in a conversation, worded by the decoder's
    chat template."""
    facts_per_row: int = 4
    """Facts that a row of either kind asks for. Tokens of answers are compared with the text, since a small decoder
    does not find all of them itself, and other tokens with the decoder's predictions."""
    reconstruction_share: float = 0.0
    """Share of rows whose last chunk is an earlier one once more."""
    head_rows: int = 8
    """Training rows on which heads are measured at the end, so that slots go to those that need them; 0 for equally
    many slots of each head."""
    injection: str = "kv"
    """How memories enter the decoder: `kv`, keys and values of all layers; or one vector for each memory: `input`, in
    place of a token; `layer`, above the layers below `injection_layer`; `code`, through a map for each layer."""
    injection_layer: int | None = None
    """The layer whose inputs `layer` and `code` store; by default the one in the middle."""
    injection_rank: int = 32
    """Rank of the maps of `code`."""
    lora: dict[str, Any] | None = None
    """Low-rank adapters: a mapping of LoraSettings; None for a decoder as it is."""
    decoder_path: str | None = None
    """Folder or Hub id of the decoder."""
    gguf_file: str | None = None
    """Name of the GGUF file in the decoder's folder."""
    decoder_identity: str | None = None
    """Identity of the decoder's weights (`decoder_identity`)."""
    vocab_size: int = 1024
    """Tokens of the decoder."""
    pad_token_id: int | None = None
    eos_token_id: int | None = None
    first_token_id: int = 0
    """Token before each text."""
    encoding: dict[str, Any] | None = None
    """How texts are encoded: a mapping of EncodingSettings."""

    def check(self) -> None:
        """Raise ConfigError for sizes that do not fit each other."""
        require_positive(self, "chunk_length", "num_chunks", "scored_tokens", "injection_rank", "facts_per_row")
        if self.num_chunks < 2:
            raise ConfigError(f"num_chunks ({self.num_chunks}) must be at least 2: one is written, one is read.")
        if not 0 <= self.head_rows <= _MOST_HEAD_ROWS:
            raise ConfigError(f"head_rows ({self.head_rows}) must lie between 0 and {_MOST_HEAD_ROWS}.")
        if self.scored_tokens > self.chunk_length:
            raise ConfigError(
                f"scored_tokens ({self.scored_tokens}) must not exceed chunk_length ({self.chunk_length})."
            )
        require_known(self, injection=INJECTIONS)
        shares = {name: getattr(self, name) for name in ("fact_share", "chat_share", "reconstruction_share")}
        if min(shares.values()) < 0 or sum(shares.values()) > 1:
            given = ", ".join(f"{name} ({share})" for name, share in shares.items())
            raise ConfigError(f"{given} must not be below 0 nor above 1 in sum.")
        if not 0 <= self.fit_share <= 1 or (self.fit_share and self.injection != "kv"):
            raise ConfigError(
                f"fit_share ({self.fit_share}) must lie between 0 and 1, and above 0 only for kv (injection: "
                f"{self.injection}), since vectors are not fitted."
            )
        if not all(1 <= ratio <= self.chunk_length for ratio in self.drawn_ratios) or not self.drawn_ratios:
            raise ConfigError(f"ratios ({self.ratios}) must lie between 1 and chunk_length ({self.chunk_length}).")
        if self.lora is not None:
            self.lora = asdict(LoraSettings.of(self.lora))

    @property
    def asks_for_facts(self) -> bool:
        """True if some training rows ask for facts."""
        return self.fact_share + self.chat_share > 0

    @property
    def drawn_ratios(self) -> list[int]:
        """Tokens per memory, of which each step draws one."""
        if self.ratios is not None:
            return self.ratios
        return [1] if self.injection == "kv" else [ratio for ratio in (2, 4, 8, 16, 32) if ratio <= self.chunk_length]

    @property
    def document_length(self) -> int:
        """Tokens of a training row."""
        return self.chunk_length * self.num_chunks

    @property
    def encoding_settings(self) -> EncodingSettings:
        """How texts are encoded; in chunks, as in training, by default."""
        if self.encoding is not None:
            return EncodingSettings.of(self.encoding)
        return EncodingSettings(mode="chunks", chunk_length=self.chunk_length, block_length=2 * self.chunk_length)
