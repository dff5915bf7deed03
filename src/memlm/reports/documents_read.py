"""A page that shows how documents were read for an answer: as tokens, as dense or sparse memories, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from memlm.files import write_file_atomic
from memlm.measurement import PartRead
from memlm.reports.page import environment


def write_reading(path: str | Path, question: str, answer: str, reading: str, parts: Sequence[PartRead]) -> None:
    """Write the page, replacing the file in one step.

    Args:
        path: of the file.
        question: that was asked.
        answer: that was given.
        reading: one line that says how much was read.
        parts: of all documents, in their order.
    """
    documents = [(name, list(group)) for name, group in groupby(parts, key=lambda part: part.document)]
    template = environment().get_template("reading.html")
    densest = min((part.tokens_per_memory for part in parts if part.tokens_per_memory is not None), default=1.0)
    write_file_atomic(
        Path(path),
        template.render(question=question, answer=answer, reading=reading, documents=documents, densest=densest),
    )
