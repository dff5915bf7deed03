"""Which parts of documents were read for an answer, and how."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from memlm.measurement import PartRead
from memlm.session.document_chunks import DocumentChunk, Passage
from memlm.session.reading_plan import ChunkReading, slots_of


def parts_read(
    chunks: Sequence[DocumentChunk], plan: Sequence[ChunkReading], shown: Sequence[Passage]
) -> list[PartRead]:
    """Return the parts of all documents, in their order.

    Args:
        chunks: of the documents.
        plan: how each chunk was read; those that it lacks were left out.
        shown: passages that stood in the prompt as tokens.
    """
    sizes = {one.chunk: len(chunks[one.chunk].tokens) for one in plan}
    ratios = {one.chunk: sizes[one.chunk] / slots_of(sizes[one.chunk], one.tokens_per_memory) for one in plan}
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
