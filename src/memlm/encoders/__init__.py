"""Encoders of every kind behind one interface: texts in, vectors out."""

from memlm.encoders.huggingface import POOLINGS, HuggingFaceEncoder
from memlm.encoders.interface import Encoder, FunctionEncoder, MemoryEncoder, TextVectors
from memlm.encoders.opening import open_encoder

__all__ = [
    "POOLINGS",
    "Encoder",
    "FunctionEncoder",
    "HuggingFaceEncoder",
    "MemoryEncoder",
    "TextVectors",
    "open_encoder",
]
