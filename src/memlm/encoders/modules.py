"""The modules between a transformer's hidden states and a vector: poolings and what follows them.

Each module takes a dictionary of features and returns it with its own result. Names of features and of weights are
those of sentence-transformers, so that its files load as they are:

    token_embeddings       hidden states, (texts, tokens, width)
    attention_mask         1 for tokens and 0 for padding, (texts, tokens)
    all_layer_embeddings   hidden states of the embeddings and of every layer
    prompt_length          the number of tokens of the prompt before each text
    sentence_embedding     the vector, (texts, numbers)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Hidden = Float[Tensor, "texts tokens width"]
Mask = Int[Tensor, "texts tokens"]
Pooled = Float[Tensor, "texts width"]
Features = dict[str, Any]
VECTOR = "sentence_embedding"


def _token(hidden: Hidden, mask: Mask, *, from_end: int) -> Pooled:
    """Return the state of the token at `from_end` from each text's end, or of its first; padding may be on any side."""
    positions = mask.long().cumsum(1)
    chosen = (positions[:, -1:] - from_end + 1).clamp(min=1)
    column = ((positions == chosen) & mask.bool()).long().argmax(1)
    return hidden[torch.arange(len(hidden)), column]


def _mean(hidden: Hidden, mask: Mask) -> Pooled:
    kept = mask.bool()[..., None]
    return hidden.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1)


def _mean_by_root(hidden: Hidden, mask: Mask) -> Pooled:
    kept = mask.bool()[..., None]
    return hidden.masked_fill(~kept, 0).sum(1) / kept.sum(1).clamp(min=1).sqrt()


def _weighted_mean(hidden: Hidden, mask: Mask, *, before: int = 0) -> Pooled:
    """Return the mean weighted by each token's position, counted from 1 behind `before` tokens that are left out."""
    weights = ((mask.long().cumsum(1) + before) * mask.bool())[..., None].to(hidden.dtype)
    return (hidden.masked_fill(weights == 0, 0) * weights).sum(1) / weights.sum(1).clamp(min=1)


def _max(hidden: Hidden, mask: Mask) -> Pooled:
    return hidden.masked_fill(~mask.bool()[..., None], float("-inf")).amax(1)


def _first(hidden: Hidden, mask: Mask) -> Pooled:
    return hidden[torch.arange(len(hidden)), mask.long().argmax(1)]


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last": partial(_token, from_end=1),
    "penultimate": partial(_token, from_end=2),
    "mean": _mean,
    "cls": _first,
    "max": _max,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
}
"""Functions from hidden states (texts, tokens, width) and a mask (texts, tokens) to one state of each text: of the last
token, the last but one (as in arXiv 2602.13466), the mean of all, the first token, the greatest value of each number,
the sum over the root of the number of tokens, and the mean weighted by position."""


class Pooling(nn.Module):
    """Pools hidden states to one vector for each text; several poolings stand one behind the other.

    Args:
        modes: keys of POOLINGS.
        include_prompt: pool the tokens of the prompt, too.
    """

    def __init__(self, modes: Sequence[str], *, include_prompt: bool = True) -> None:
        super().__init__()
        self.modes, self.include_prompt = tuple(modes), include_prompt

    def extra_repr(self) -> str:
        """Return the settings, which fingerprints contain."""
        return f"{'+'.join(self.modes)}, include_prompt={self.include_prompt}"

    def forward(self, features: Features) -> Features:
        """Add the vector."""
        hidden, mask = features["token_embeddings"], features["attention_mask"]
        before = 0 if self.include_prompt else int(features["prompt_length"])
        mask = mask * (mask.long().cumsum(1) > before)
        functions = {**POOLINGS, "weightedmean": partial(_weighted_mean, before=before)}
        features[VECTOR] = torch.cat([functions[mode](hidden, mask) for mode in self.modes], dim=-1)
        return features


class _Mapped(nn.Module):
    """A module that maps one feature to another, by default the vector to itself."""

    def __init__(self, source: str = VECTOR, target: str | None = None) -> None:
        super().__init__()
        self.source, self.target = source, target or source

    def extra_repr(self) -> str:
        """Return the settings, which fingerprints contain."""
        return f"{self.source} -> {self.target}"

    def forward(self, features: Features) -> Features:
        """Add the mapped feature."""
        features[self.target] = self.map(features[self.source])
        return features

    def map(self, value: Tensor) -> Tensor:
        """Return the mapped value, (..., numbers)."""
        raise NotImplementedError


class Normalize(_Mapped):
    """Scales vectors to length one."""

    def map(self, value: Tensor) -> Tensor:
        """Return the scaled vectors."""
        return nn.functional.normalize(value, dim=-1)


class Dense(_Mapped):
    """A linear map with an activation, and with a residual connection where `residual` is set."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        activation: nn.Module,
        residual: bool,
        source: str = VECTOR,
        target: str | None = None,
    ) -> None:
        super().__init__(source, target)
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation_function = activation
        self.use_residual = residual
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def map(self, value: Tensor) -> Tensor:
        """Return the mapped vectors."""
        mapped = self.activation_function(self.linear(value))
        if not self.use_residual:
            return mapped
        return mapped + (self.residual(value) if hasattr(self, "residual") else value)


class LayerNorm(_Mapped):
    """Layer normalization of vectors."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimension)

    def map(self, value: Tensor) -> Tensor:
        """Return the normalized vectors."""
        return self.norm(value)


class WeightedLayerPooling(nn.Module):
    """Replaces hidden states by the weighted mean of those of all layers from `layer_start`, 0 for the embeddings."""

    def __init__(self, num_hidden_layers: int, *, layer_start: int) -> None:
        super().__init__()
        self.layer_start = layer_start
        self.layer_weights = nn.Parameter(torch.ones(num_hidden_layers + 1 - layer_start))

    def extra_repr(self) -> str:
        """Return the settings, which fingerprints contain."""
        return f"layer_start={self.layer_start}"

    def forward(self, features: Features) -> Features:
        """Replace the hidden states."""
        layers = torch.stack([layer.float() for layer in features["all_layer_embeddings"][self.layer_start :]])
        weights = self.layer_weights[:, None, None, None]
        features["token_embeddings"] = (weights * layers).sum(0) / self.layer_weights.sum()
        return features


def untrained_modules(modules: nn.ModuleList) -> nn.ModuleList:
    """Return modules of the same kinds with weights as they are before training."""
    fresh = copy.deepcopy(modules)
    for module in fresh.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, WeightedLayerPooling):
            nn.init.ones_(module.layer_weights)
    return fresh
