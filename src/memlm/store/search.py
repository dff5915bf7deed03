"""Exact search for the nearest chunks by cosine, as one matrix product with all vectors of a store.

Vectors are read once, normalized and kept in fp32; a million vectors of 128 numbers take half a gigabyte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from memlm.errors import MemoryShapeError, UserError
from memlm.store.format.document import is_part, owner_of
from memlm.store.format.segments import Entry, joined_rows
from memlm.store.memory_store import MemoryStore
from memlm.store.quantize import dequantize, rows_of

_ROWS = 2**16


@dataclass(frozen=True)
class Hit:
    """A chunk that was found.

    Attributes:
        id: the document.
        part: the number of its part, from 0, in a long document; otherwise None.
        chunk: the number of the chunk in the document or part, from 0.
        score: the cosine to the query, -1 to 1.
    """

    id: str
    part: int | None
    chunk: int
    score: float


class StoreSearch:
    """The vectors of a store, or of some of its documents, at the time of reading."""

    def __init__(self, store: MemoryStore, *, documents: Iterable[str] | None = None) -> None:
        """Read the vectors of the documents with these ids, by default of all.

        Raises:
            StoreError: a document does not exist.
            DamagedStoreError: a segment is not what was written.
        """
        entries = _visible_entries(store, documents)
        header = store.header
        width = header.retrieval_numbers or header.memories_per_chunk * header.numbers
        count = sum(entry.chunks for entry in entries)
        self.vectors = torch.empty(count, width)
        self._first: list[int] = []
        self._owners: list[Entry] = []
        row = owned = 0
        for inside, stored in store.search_vectors(entries):
            for entry in inside:
                self._first.append(owned)
                self._owners.append(entry)
                owned += entry.chunks
            for joined in joined_rows(inside):
                for rows in torch.arange(joined.start, joined.stop).split(_ROWS):
                    numbers = dequantize(rows_of(stored, rows)).flatten(1)
                    self.vectors[row : row + len(rows)] = F.normalize(numbers, dim=-1)
                    row += len(rows)
        self._row_of = {owner.id: first for owner, first in zip(self._owners, self._first, strict=True)}

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.vectors)

    def nearest(self, query: Float[Tensor, "queries numbers"], k: int = 10) -> list[Hit]:
        """Return the `k` chunks nearest to any of the query's vectors, best first; at most as many as there are.

        Raises:
            UserError: k is below 1.
            MemoryShapeError: the vectors have another width, or values that are not finite.
        """
        if k < 1:
            raise UserError(f"k ({k}) must be at least 1.")
        scores = self.cosines(query)
        best = scores.topk(min(k, len(self)))
        return [self._hit(row, score) for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def cosines(self, query: Float[Tensor, "queries numbers"]) -> Float[Tensor, " chunks"]:
        """Return each chunk's cosine to the nearest of the query's vectors; see `row_of` for their order.

        Raises:
            MemoryShapeError: the vectors have another width, or values that are not finite.
        """
        if query.ndim != 2 or query.shape[1] != self.vectors.shape[1] or not len(query):
            numbers = self.vectors.shape[1]
            raise MemoryShapeError(f"a query of shape {tuple(query.shape)} does not fit vectors of {numbers} numbers.")
        if not bool(torch.isfinite(query).all()):
            raise MemoryShapeError("the query holds values that are NaN or infinite; encode it again.")
        return (self.vectors @ F.normalize(query.float(), dim=-1).T).amax(1)

    def row_of(self, part: str, chunk: int) -> int:
        """Return the row of a chunk of a document or of its part, by the inner id that `TextStore.parts` gives."""
        return self._row_of[part] + chunk

    def _hit(self, row: int, score: float) -> Hit:
        owner = bisect_right(self._first, row) - 1
        name, _, part = owner_of(self._owners[owner].id)
        return Hit(name, part, row - self._first[owner], score)


def _visible_entries(store: MemoryStore, chosen: Iterable[str] | None) -> list[Entry]:
    """Return documents with chunks, and the parts of long documents that are complete, in the order of writing."""
    if chosen is not None:
        documents = [store.entry(name) for name in dict.fromkeys(chosen)]
        found = [*documents, *(store.entry(part) for one in documents for part in store.part_ids(one))]
        return sorted((entry for entry in found if entry.chunks), key=lambda entry: entry.order)
    entries = list(store.entries())
    visible = {name for e in entries if not is_part(e.id) for name in (e.id, *store.part_ids(e))}
    return [e for e in entries if e.chunks and e.id in visible]
