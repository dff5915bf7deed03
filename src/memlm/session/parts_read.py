"""Which parts of documents were read for an answer, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from memlm.session.document_chunks import DocumentChunk, Passage
from memlm.session.reading_plan import ChunkReading, slots_of


@dataclass(frozen=True)
class PartRead:
    """Consecutive characters of a document that were read in one way.

    Attributes:
        document: id of the document.
        start: the number of characters of the document before the part.
        text: its characters.
        tokens_per_memory: tokens for each memory of the chunk that the part belongs to; None where it was left out.
        shown: True where the part also stood in the prompt as tokens.
    """

    document: str
    start: int
    text: str
    tokens_per_memory: float | None
    shown: bool


def parts_read(
    chunks: Sequence[DocumentChunk], plan: Sequence[ChunkReading], shown: Sequence[Passage]
) -> list[PartRead]:
    """Return the parts of all documents, in their order.

    Args:
        chunks: of the documents.
        plan: how each chunk was read; those that it lacks were left out.
        shown: passages that stood in the prompt as tokens.
    """
    ratios = {
        one.chunk: len(chunks[one.chunk].tokens) / slots_of(len(chunks[one.chunk].tokens), one[1]) for one in plan
    }
    return [part for number, chunk in enumerate(chunks) for part in _parts(chunk, ratios.get(number), shown)]


def _parts(chunk: DocumentChunk, ratio: float | None, shown: Sequence[Passage]) -> list[PartRead]:
    """Return the parts of a chunk, which is cut where a passage begins or ends."""
    end = chunk.ends[-1]
    ranges = [(passage.start, passage.end) for passage in shown if passage.document == chunk.document]
    cuts = sorted({chunk.start, end} | {place for both in ranges for place in both if chunk.start < place < end})
    found: list[PartRead] = []
    for begin, stop in pairwise(cuts):
        inside = any(first <= begin and stop <= last for first, last in ranges)
        text = chunk.text[begin - chunk.start : stop - chunk.start]
        found.append(PartRead(chunk.document, begin, text, ratio, inside))
    return found
