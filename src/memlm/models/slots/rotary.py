"""Rotary positions: queries and keys are moved by a distance, whatever position they have."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from memlm.errors import ConfigError
from memlm.models.slots.attention import AttentionRecord, recorded

_PROBED_POSITION = 3
_FAMILIES = "use one of the families Llama, Qwen, Gemma, Mistral, Phi or GPT-2."
_TOLERANCE = 0.02
"""Largest relative error of a rotated query, for decoders in bf16."""


class Rotary:
    """Moves rotated queries and keys of a decoder to other positions.

    A rotation by `p` followed by one by `d` is a rotation by `p + d`, so nothing has to be rotated back first. A
    decoder with learned positions has nothing to move: its queries and keys are returned as they are.

    Raises:
        ConfigError: the decoder rotates in another way.
    """

    def __init__(self, decoder: PreTrainedModel) -> None:
        self._module = cast(Any, getattr(decoder.base_model, "rotary_emb", None))
        self._types: list[str] = list(getattr(decoder.config, "layer_types", None) or [])
        takes_type = self._module is not None and "layer_type" in inspect.signature(self._module.forward).parameters
        if not takes_type:
            self._types = []
        _check_rotation(decoder, self)

    @property
    def moves(self) -> bool:
        """True if the decoder's positions are rotary."""
        return self._module is not None

    def move(
        self,
        states: Float[Tensor, "batch heads tokens numbers"],
        distances: Int[Tensor, "batch _heads tokens"],
        *,
        layer: int,
    ) -> Float[Tensor, "batch heads tokens numbers"]:
        """Return rotated queries or keys, in fp32, as they are `distances` positions further on.

        Args:
            states: (batch, heads, tokens, numbers).
            distances: (batch, heads, tokens); `heads` may be 1.
            layer: index of the layer, since layers may rotate differently.
        """
        states = states.float()
        if self._module is None:
            return states
        folded = distances.flatten(0, 1)
        more = (self._types[layer],) if self._types else ()
        cos, sin = self._module(states[:1], folded, *more)
        scale = self._scale(layer)
        cos, sin = (x.unflatten(0, distances.shape[:2]) / scale for x in (cos, sin))
        rotated, rest = states[..., : cos.shape[-1]], states[..., cos.shape[-1] :]
        first, second = rotated.chunk(2, dim=-1)
        return torch.cat([rotated * cos + torch.cat([-second, first], dim=-1) * sin, rest], dim=-1)

    def _scale(self, layer: int) -> float:
        name = f"{self._types[layer]}_attention_scaling" if self._types else "attention_scaling"
        return float(getattr(self._module, name, 1.0))


@torch.no_grad()
def _check_rotation(decoder: PreTrainedModel, rotary: Rotary) -> None:
    first, known = (_queries(decoder, position) for position in (0, _PROBED_POSITION))
    layers = int(decoder.config.num_hidden_layers)
    if sorted(first) != list(range(layers)):
        raise ConfigError(
            f"decoders of kind '{decoder.config.model_type}' have {layers} layers, of which {len(first)} have the "
            f"attention that memories need; {_FAMILIES}"
        )
    distance = torch.full((1, 1, 1), _PROBED_POSITION, device=decoder.device)
    moved = rotary.move(first[0], distance, layer=0)
    if rotary.moves and (moved - known[0].float()).norm() > _TOLERANCE * known[0].float().norm():
        raise ConfigError(
            f"decoders of kind '{decoder.config.model_type}' rotate queries in a way that memlm does not know; "
            f"{_FAMILIES}"
        )


def _queries(decoder: PreTrainedModel, position: int) -> dict[int, Tensor]:
    """Return each layer's query for one token at a position."""
    queries: dict[int, Tensor] = {}

    def keep(record: AttentionRecord) -> None:
        queries[record.layer] = record.query

    # not the first token, which is often padding and embedded as zeros
    ids = torch.full((1, 1), decoder.config.vocab_size // 2, device=decoder.device)
    with recorded(keep):
        decoder(ids, position_ids=torch.full_like(ids, position), use_cache=False)
    return queries
