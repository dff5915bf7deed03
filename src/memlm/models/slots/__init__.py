"""Memories of a pretrained decoder: keys and values of a few slots for each layer, which the decoder reads."""

from memlm.models.slots.decoder import MemoryDecoder
from memlm.models.slots.encoded import EncodedTexts
from memlm.models.slots.fit import FitSettings
from memlm.models.slots.memories import SlotMemories
from memlm.models.slots.slot_cache import SlotCache
from memlm.models.slots.states import EncodingSettings
from memlm.models.slots.vectors import MemoryVectors

__all__ = [
    "EncodedTexts",
    "EncodingSettings",
    "FitSettings",
    "MemoryDecoder",
    "MemoryVectors",
    "SlotCache",
    "SlotMemories",
]
