"""Named full configurations."""

from __future__ import annotations

from collections.abc import Callable

from memlm.errors import ConfigError, did_you_mean
from memlm.recipes.autoencoder import (
    autoencoder_chunk_deep,
    autoencoder_chunk_small,
    autoencoder_chunk_tiny,
    autoencoder_dense,
    autoencoder_paper_tiny,
    autoencoder_pretrained,
    autoencoder_quick,
    autoencoder_small,
    autoencoder_tiny,
)
from memlm.recipes.memory import (
    MIXTURES,
    memory_curriculum_tiny,
    memory_full_context_tiny,
    memory_last_token_tiny,
    memory_next_tiny,
    memory_none_tiny,
    memory_oracle_tiny,
    memory_paper_tiny,
    memory_pretrained_input,
    memory_recurrent_tiny,
    memory_tiny,
)
from memlm.recipes.paper import autoencoder_paper, memory_curriculum_paper, memory_paper
from memlm.training.config import RunConfig

_ALL = (
    *(autoencoder_tiny, autoencoder_quick, autoencoder_small, autoencoder_dense, autoencoder_paper_tiny),
    *(autoencoder_chunk_tiny, autoencoder_chunk_small, autoencoder_chunk_deep),
    *(memory_tiny, memory_last_token_tiny, memory_curriculum_tiny, memory_paper_tiny),
    *(autoencoder_paper, memory_paper, memory_curriculum_paper),
    *(memory_next_tiny, memory_none_tiny, memory_full_context_tiny, memory_recurrent_tiny, memory_oracle_tiny),
    *(autoencoder_pretrained, memory_pretrained_input),
)
RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__.replace("_", "-"): recipe for recipe in _ALL}


def get_recipe(name: str) -> RunConfig:
    """Return the configuration of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()


__all__ = ["MIXTURES", "RECIPES", "get_recipe"]
