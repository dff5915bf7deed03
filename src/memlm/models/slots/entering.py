"""Hidden states on their way into a decoder's layers: they can be kept, and others can take their place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

Change = Callable[[Float[Tensor, "batch positions width"]], Float[Tensor, "batch positions width"]]
"""Function from the hidden states that would enter a layer to those that do."""


def layers_of(decoder: PreTrainedModel) -> nn.ModuleList:
    """Return the layers of a decoder, whichever name its family gives them."""
    count = int(decoder.config.num_hidden_layers)
    lists = (module for module in decoder.base_model.modules() if isinstance(module, nn.ModuleList))
    return next(found for found in lists if len(found) == count)


@contextmanager
def entering(decoder: PreTrainedModel, changes: Mapping[int, Change]) -> Generator[None]:
    """Pass the hidden states that enter some layers through functions within the context.

    Args:
        decoder: the decoder, which is as before when the context ends.
        changes: a function for each layer, by its index.
    """
    layers = layers_of(decoder)
    handles = [
        layers[i].register_forward_pre_hook(partial(_changed, change), with_kwargs=True)
        for i, change in changes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _changed(change: Change, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
