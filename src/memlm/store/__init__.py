"""Stores of texts as memories: codec, exact corrections, search, and memories in fewer bits."""

from memlm.store.codec import ChunkCodec, Codec
from memlm.store.codecs import open_codec
from memlm.store.format.document import StoredDocument
from memlm.store.format.header import StoreHeader, read_header
from memlm.store.format.segments import Entry
from memlm.store.ingest import AddOutcome
from memlm.store.memory_store import MemoryStore, StoreStats
from memlm.store.parallel import encode_over_ranks, encode_with_workers, serve_rank
from memlm.store.quantize import ROUNDINGS, Bits, QuantizedMemories, bits_per_vector, dequantize, quantize, rounded
from memlm.store.search import Hit, StoreSearch
from memlm.store.slot_codec import SlotCodec
from memlm.store.text_store import TextStore

__all__ = [
    "ROUNDINGS",
    "AddOutcome",
    "Bits",
    "ChunkCodec",
    "Codec",
    "Entry",
    "Hit",
    "MemoryStore",
    "QuantizedMemories",
    "SlotCodec",
    "StoreHeader",
    "StoreSearch",
    "StoreStats",
    "StoredDocument",
    "TextStore",
    "bits_per_vector",
    "dequantize",
    "encode_over_ranks",
    "encode_with_workers",
    "open_codec",
    "quantize",
    "read_header",
    "rounded",
    "serve_rank",
]
