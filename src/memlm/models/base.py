"""What all models with memlm's layers, or Llama's, share towards transformers."""

from __future__ import annotations

from typing import cast

from torch import nn
from transformers import PreTrainedModel


class MemlmModel(PreTrainedModel):
    """A `PreTrainedModel` without a base model inside, over mixer or Llama layers."""

    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ["MixerBlock", "LlamaDecoderLayer"]  # noqa: RUF012  (transformers reads a plain class attribute)


class DecoderInside(MemlmModel):
    """A model whose tokens go in and out through the decoder it is built around."""

    decoder: PreTrainedModel

    def get_input_embeddings(self) -> nn.Embedding:
        """The decoder's token table."""
        return cast(nn.Embedding, self.decoder.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """The head that predicts tokens."""
        return cast(nn.Module, self.decoder.get_output_embeddings())
