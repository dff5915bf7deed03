"""Memories in use: text to memories and back, and memories in fewer bits."""

from memlm.inference.quantize import QuantizedMemories, dequantize, quantize, stored_bytes
from memlm.inference.text_memory import TextMemory, load

__all__ = ["QuantizedMemories", "TextMemory", "dequantize", "load", "quantize", "stored_bytes"]
