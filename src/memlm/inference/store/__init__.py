"""Memories on disk."""

from memlm.inference.store.document import StoredDocument, named_parts, part_ids
from memlm.inference.store.header import StoreHeader, read_header
from memlm.inference.store.index import Entry
from memlm.inference.store.store import MemoryStore, StoreStats, with_parts

__all__ = [
    "Entry",
    "MemoryStore",
    "StoreHeader",
    "StoreStats",
    "StoredDocument",
    "named_parts",
    "part_ids",
    "read_header",
    "with_parts",
]
