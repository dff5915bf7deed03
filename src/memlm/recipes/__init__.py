"""Named full configurations."""

from __future__ import annotations

from collections.abc import Callable

from memlm.data.given import one_text
from memlm.errors import ConfigError, did_you_mean
from memlm.recipes import autoencoder as a
from memlm.recipes import memory as m
from memlm.recipes.memory import MIXTURES
from memlm.training.config import RunConfig

_ALL = (
    *(a.autoencoder_tiny, a.autoencoder_quick, a.autoencoder_small, a.autoencoder_dense, a.autoencoder_paper_tiny),
    *(a.autoencoder_chunk_tiny, a.autoencoder_chunk_small, a.autoencoder_chunk_deep),
    *(m.memory_tiny, m.memory_last_token_tiny, m.memory_curriculum_tiny, m.memory_paper_tiny),
    *(a.autoencoder_paper, m.memory_paper, m.memory_curriculum_paper),
    *(m.memory_next_tiny, m.memory_none_tiny, m.memory_full_context_tiny, m.memory_recurrent_tiny),
    *(m.memory_oracle_tiny, a.autoencoder_pretrained, m.memory_pretrained_input, m.memory_pretrained),
)
RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__.replace("_", "-"): recipe for recipe in _ALL}


def get_recipe(name: str) -> RunConfig:
    """Return the configuration of a name.

    Raises:
        ConfigError: there is none.
    """
    if one_text(name, name="a recipe's name") not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()


__all__ = ["MIXTURES", "RECIPES", "get_recipe"]
