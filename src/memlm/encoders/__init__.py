"""Encoders of every kind behind one interface: texts in, vectors out."""

from memlm.encoders.huggingface import HuggingFaceEncoder, open_encoder
from memlm.encoders.interface import Encoder, FunctionEncoder, MemoryEncoder, SentenceTransformersEncoder, TextVectors
from memlm.encoders.modules import POOLINGS

__all__ = [
    "POOLINGS",
    "Encoder",
    "FunctionEncoder",
    "HuggingFaceEncoder",
    "MemoryEncoder",
    "SentenceTransformersEncoder",
    "TextVectors",
    "open_encoder",
]
