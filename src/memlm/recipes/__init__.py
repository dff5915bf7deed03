"""Named full configurations."""

from __future__ import annotations

from collections.abc import Callable

from memlm.errors import ConfigError, did_you_mean
from memlm.recipes.autoencoder import (
    autoencoder_dense,
    autoencoder_paper_tiny,
    autoencoder_quick,
    autoencoder_small,
    autoencoder_tiny,
)
from memlm.training.config import RunConfig

_ALL = (autoencoder_tiny, autoencoder_quick, autoencoder_small, autoencoder_dense, autoencoder_paper_tiny)
RECIPES: dict[str, Callable[[], RunConfig]] = {recipe.__name__.replace("_", "-"): recipe for recipe in _ALL}


def get_recipe(name: str) -> RunConfig:
    """The configuration of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe '{name}'. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]()


__all__ = ["RECIPES", "get_recipe"]
