"""Memories on disk."""

from memlm.inference.store.document import StoredDocument
from memlm.inference.store.header import StoreHeader
from memlm.inference.store.index import Entry
from memlm.inference.store.store import MemoryStore, StoreStats

__all__ = ["Entry", "MemoryStore", "StoreHeader", "StoreStats", "StoredDocument"]
