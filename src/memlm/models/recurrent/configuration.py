"""Settings of the recurrent memory baseline."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from memlm.errors import ConfigError
from memlm.models.base import MemlmConfig, require_positive


@strict
class RecurrentMemoryConfig(MemlmConfig):
    """A decoder that passes a few vectors from chunk to chunk (recurrent memory transformer, arXiv 2207.06881).

    Raises:
        ConfigError: sizes that do not fit each other, unknown keys.
    """

    model_type = "memlm_recurrent_memory"
    sub_configs: ClassVar[dict[str, type[AutoConfig]]] = {"decoder": AutoConfig}  # pyright: ignore
    has_no_defaults_at_init = True

    decoder: dict[str, Any] | PreTrainedConfig | None = None
    """Configuration of the decoder, any causal language model."""
    chunk_length: int = 16
    """Tokens per chunk."""
    num_chunks: int = 4
    """Chunks of a document in training."""
    memory_tokens: int = 8
    """Vectors that pass from chunk to chunk."""
    backpropagation_depth: int | None = None
    """Number of chunks that gradients pass through before they are cut; all by default."""
    use_memory: bool = True
    """Read memories; if false, every chunk begins with the learned start."""
    initializer_range: float = 0.02
    """Standard deviation of initial weights, for transformers."""
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.decoder, dict):
            settings = dict(self.decoder)
            self.decoder = AutoConfig.for_model(settings.pop("model_type", ""), **settings)
        super().__post_init__(**kwargs)

    @property
    def decoder_config(self) -> PreTrainedConfig:
        """Configuration of the decoder."""
        return cast(PreTrainedConfig, self.decoder)

    @property
    def document_length(self) -> int:
        """Tokens of a document in training."""
        return self.chunk_length * self.num_chunks

    @property
    def inputs(self) -> int:
        """Positions of the decoder that one chunk takes: memories read, tokens, memories written."""
        return 2 * self.memory_tokens + self.chunk_length

    def check(self) -> None:
        """Raise ConfigError for sizes that do not exist or do not fit each other."""
        require_positive(self, "chunk_length", "num_chunks", "memory_tokens")
        if self.backpropagation_depth is not None:
            require_positive(self, "backpropagation_depth")
        if self.decoder is None:
            raise ConfigError("decoder (None) must be a configuration, or a mapping with a model_type.")
        longest = self.decoder_config.max_position_embeddings
        if self.inputs > longest:
            raise ConfigError(
                f"chunk_length ({self.chunk_length}) and twice memory_tokens ({self.memory_tokens}) take {self.inputs} "
                f"decoder positions and it has {longest}."
            )
