"""Documents on their way from one process to another: tensors go as safetensors, so that nothing is unpickled."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import load, save

from memlm.store.format.document import StoredDocument, document_of, tensors_of
from memlm.store.format.header import StoreHeader


@dataclass(frozen=True)
class Sent:
    """One document.

    Attributes:
        id: of the document.
        tensors: as safetensors.
        text_sha256: of its text.
        size: of its text, in bytes.
    """

    id: str
    tensors: bytes
    text_sha256: str
    size: int


def sent(documents: list[StoredDocument]) -> list[Sent]:
    """To be sent; torch would hand over a file for each tensor."""
    return [Sent(d.id, save(tensors_of(d)), d.text_sha256, d.text_bytes) for d in documents]


def received(documents: list[Sent], header: StoreHeader) -> list[StoredDocument]:
    """As they were, for a store of this header."""
    return [
        document_of(load(d.tensors), header, name=d.id, text_sha256=d.text_sha256, text_bytes=d.size) for d in documents
    ]
