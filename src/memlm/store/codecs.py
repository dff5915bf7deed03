"""The codec that belongs to a model: of an autoencoder, of a memory model, or of a pretrained decoder's slots."""

from __future__ import annotations

from pathlib import Path

from memlm.errors import ConfigError
from memlm.models.loading import is_decoder
from memlm.models.runtime import device_of
from memlm.models.slots import MemoryDecoder
from memlm.store.codec import ChunkCodec, Codec
from memlm.store.format.header import StoreHeader
from memlm.store.slot_codec import SlotCodec

TOKENS_PER_MEMORY = 8.0
"""Tokens for each slot of a new store."""


def open_codec(
    model: str | Path, stored: StoreHeader | None = None, *, tokens_per_memory: int | float | None = None
) -> Codec:
    """Load the model of a store; a decoder computes on a GPU where there is one.

    Args:
        model: run folder, folder that `save_pretrained` wrote, or folder or Hub id of a decoder.
        stored: header of an existing store.
        tokens_per_memory: of a decoder, in a new store.

    Raises:
        CheckpointError: there is no model, or a damaged one.
        ConfigError: tokens for each slot of a model that has no slots.
    """
    slots = None if stored is None else stored.slots
    if slots is None and (stored is not None or not is_decoder(str(model))):
        if tokens_per_memory is not None:
            raise ConfigError(f"'{model}' is no decoder, and its chunks have one size; leave tokens_per_memory out.")
        return ChunkCodec.load(model)
    decoder = MemoryDecoder.from_pretrained(str(model), device_map=device_of("auto"))
    if slots is not None:
        return SlotCodec.of(decoder, slots)
    return SlotCodec(decoder, tokens_per_memory=tokens_per_memory or TOKENS_PER_MEMORY)


def place_of(model: str | Path) -> str:
    """Return the absolute path of a folder; an id of the Hub stays as it is."""
    return str(Path(model).absolute()) if Path(model).exists() else str(model)
