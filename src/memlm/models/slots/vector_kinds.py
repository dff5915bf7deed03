"""The injections that store one vector for each memory, and the choice among all injections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from memlm.errors import ConfigError, UserError
from memlm.models.slots.configuration import SlotWriterConfig
from memlm.models.slots.encoded import HiddenStates, Reader
from memlm.models.slots.entering import Change
from memlm.models.slots.injection import Injection, KeyValueInjection
from memlm.models.slots.vectors import MemoryVectors, VectorInjection, at_tokens, behind_first, normalized, size_of

_CLOSED = -5.0
"""Bias with which layers begin that cannot read a code yet."""


class InputInjection(VectorInjection):
    """Vectors in place of tokens: the embedding of each group's last token, and what is learned.

    Means of embeddings, even if scaled to the norm of tokens, are unlike any token, and a decoder predicts far worse
    behind them than without memories.
    """

    def start(
        self, reader: Reader, states: HiddenStates, ends: Int[Tensor, "batch memories"]
    ) -> Float[Tensor, "batch memories width"]:
        """Return the embedding of the last token of each group."""
        return at_tokens(reader.embed(states.ids), ends)

    def changes(self, vectors: Float[Tensor, "batch memories width"]) -> Mapping[int, Change]:
        """Return nothing: all layers read what the layer before them made."""
        return {}

    def inputs(
        self, reader: Reader, vectors: Float[Tensor, "batch memories width"]
    ) -> Float[Tensor, "batch memories width"]:
        """Return the vectors."""
        return vectors

    def prompt(
        self,
        reader: Reader,
        memories: MemoryVectors,
        ids: Int[Tensor, "batch tokens"],
        mask: Bool[Tensor, "batch tokens"],
    ) -> dict[str, Tensor]:
        """Return embeddings of the first token, memories and text, padded on the left, and their mask.

        Args:
            reader: of the decoder.
            memories: of one text for each row.
            ids: (batch, tokens), text first.
            mask: (batch, tokens), True for text.

        Raises:
            UserError: another number of rows than of texts.
        """
        if len(ids) != len(memories.counts):
            raise UserError(f"{len(ids)} prompts do not fit memories of {len(memories.counts)} texts; give one each.")
        rows: list[Tensor] = []
        first = reader.embed(torch.full((1, 1), reader.first_token_id, device=ids.device))[0]
        for vectors, count, row, seen in zip(memories.vectors, memories.counts, reader.embed(ids), mask, strict=True):
            rows.append(torch.cat([first, vectors[:count].to(first.dtype), row[seen]]))
        longest = max(map(len, rows))
        embeds = torch.stack([F.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        seen = torch.arange(longest, 0, -1, device=ids.device) <= torch.tensor([[len(row)] for row in rows]).to(ids)
        return {"inputs_embeds": embeds, "attention_mask": seen.long()}


class LayerInjection(VectorInjection):
    """Vectors that enter a layer as if those below it had made them; these see no memory.

    Args:
        width: numbers of a hidden state.
        layer: the layer.
    """

    def __init__(self, width: int, layer: int) -> None:
        super().__init__(width, source=layer, lowest=layer)


class CodeInjection(VectorInjection):
    """Vectors that enter every layer, each through a learned map of low rank.

    At first all layers read the same, what entered one of them at the last token of each group, and those below it
    hardly attend to it: a learned bias for each layer is added to the scores.

    Args:
        width: numbers of a hidden state.
        layer: the layer whose inputs vectors start from.
        num_layers: layers of the decoder.
        rank: of the maps.
    """

    def __init__(self, width: int, layer: int, num_layers: int, rank: int) -> None:
        super().__init__(width, source=layer)
        self.down = nn.Parameter(torch.randn(num_layers, width, rank) * width**-0.5)
        self.up = nn.Parameter(torch.zeros(num_layers, rank, width))
        self.openness = nn.Parameter(torch.where(torch.arange(num_layers) < layer, _CLOSED, 0.0))

    def bias(self, layer: int) -> Tensor | float:
        """Return the learned bias of a layer's slots."""
        return self.openness[layer]

    def changes(self, vectors: Float[Tensor, "batch memories width"]) -> Mapping[int, Change]:
        """Return how the code enters each layer."""
        code = vectors.float()
        normal, size = normalized(code), size_of(code)
        pairs = zip(self.down, self.up, strict=True)
        own = [code + size * (normal @ down @ up) for down, up in pairs]
        return {i: behind_first(entered) for i, entered in enumerate(own)}


def new_injection(config: SlotWriterConfig, decoder: PreTrainedModel) -> Injection:
    """Return the untrained injection of a configuration.

    Raises:
        ConfigError: a layer that the decoder does not have.
    """
    if config.injection == "kv":
        return KeyValueInjection()
    width = int(cast(Any, decoder.get_input_embeddings()).weight.shape[1])
    layers = int(decoder.config.num_hidden_layers)
    layer = max(1, layers // 2) if config.injection_layer is None else config.injection_layer
    if not 0 < layer < layers:
        raise ConfigError(
            f"injection_layer ({layer}) must lie between 1 and {layers - 1}, the last of the decoder's {layers} layers."
        )
    found: VectorInjection
    if config.injection == "input":
        found = InputInjection(width)
    elif config.injection == "layer":
        found = LayerInjection(width, layer)
    else:
        found = CodeInjection(width, layer, layers, config.injection_rank)
    return found.to(decoder.device)
