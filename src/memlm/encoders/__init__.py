"""Encoders of every kind behind one interface: texts in, vectors out."""

from memlm.encoders.huggingface import POOLINGS, HuggingFaceEncoder, open_encoder
from memlm.encoders.interface import Encoder, FunctionEncoder, MemoryEncoder, TextVectors

__all__ = [
    "POOLINGS",
    "Encoder",
    "FunctionEncoder",
    "HuggingFaceEncoder",
    "MemoryEncoder",
    "TextVectors",
    "open_encoder",
]
