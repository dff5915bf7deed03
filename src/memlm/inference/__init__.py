"""Memories in use: strings in and out, and memories in fewer bits."""

from memlm.inference.encoders import Encoder, FunctionEncoder, open_encoder
from memlm.inference.quantize import (
    ROUNDINGS,
    Bits,
    QuantizedMemories,
    bits_per_vector,
    dequantize,
    quantize,
    rounded,
)
from memlm.inference.text_memory import TextMemory, load
from memlm.inference.vectors import default_cache, embed

__all__ = [
    "ROUNDINGS",
    "Bits",
    "Encoder",
    "FunctionEncoder",
    "QuantizedMemories",
    "TextMemory",
    "bits_per_vector",
    "default_cache",
    "dequantize",
    "embed",
    "load",
    "open_encoder",
    "quantize",
    "rounded",
]
