"""Memories in use: strings in and out, and memories in fewer bits."""

from memlm.inference.codec import ChunkCodec
from memlm.inference.encoders import Encoder, FunctionEncoder, open_encoder
from memlm.inference.export import export_decoder, export_prompt
from memlm.inference.parts import stream_file
from memlm.inference.quantize import (
    ROUNDINGS,
    Bits,
    QuantizedMemories,
    bits_per_vector,
    dequantize,
    quantize,
    rounded,
)
from memlm.inference.ranks import serve_rank, write_over_ranks
from memlm.inference.search import Hit, StoreSearch
from memlm.inference.session import MemorySession, SessionStats
from memlm.inference.store import MemoryStore
from memlm.inference.text_memory import TextMemory, load
from memlm.inference.text_store import Remembered, TextStore
from memlm.inference.vectors import default_cache, embed
from memlm.inference.workers import write_side_by_side

__all__ = [
    "ROUNDINGS",
    "Bits",
    "ChunkCodec",
    "Encoder",
    "FunctionEncoder",
    "Hit",
    "MemorySession",
    "MemoryStore",
    "QuantizedMemories",
    "Remembered",
    "SessionStats",
    "StoreSearch",
    "TextMemory",
    "TextStore",
    "bits_per_vector",
    "default_cache",
    "dequantize",
    "embed",
    "export_decoder",
    "export_prompt",
    "load",
    "open_encoder",
    "quantize",
    "rounded",
    "serve_rank",
    "stream_file",
    "write_over_ranks",
    "write_side_by_side",
]
