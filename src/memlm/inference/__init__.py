"""Memories in use: strings in and out, and memories in fewer bits."""

from memlm.inference.quantize import Bits, QuantizedMemories, bits_per_vector, dequantize, quantize
from memlm.inference.text_memory import TextMemory, load

__all__ = ["Bits", "QuantizedMemories", "TextMemory", "bits_per_vector", "dequantize", "load", "quantize"]
