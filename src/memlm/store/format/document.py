"""One document as a store keeps it: rounded memories, and what is needed beside them to give its text back exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.errors import DamagedStoreError, StoreError
from memlm.store.format.header import StoreHeader
from memlm.store.quantize import QuantizedMemories

LONGEST_ID = 1024
"""Bytes."""
_PART = "\x1f"
"""Between a long document's id and what counts its parts; no id has it (check_id)."""
_MANIFEST = b"parts "
"""No corrections begin so (memlm.store.corrections)."""


@dataclass(frozen=True)
class StoredDocument:
    """A document's memories and corrections.

    Attributes:
        id: any text of 1 to 1,024 bytes without control characters.
        memories: (chunks, memories, numbers), rounded.
        tokens: (chunks,), tokens of each chunk.
        right: (chunks,), those of them that the memory gives back by itself.
        corrections: bytes that turn what the memories give back into the text.
        text_sha256: of the text's UTF-8 bytes.
        text_bytes: how many those are.
        vectors: (chunks, numbers), rounded: a retrieval encoder's of each chunk's text, where the store has one.
    """

    id: str
    memories: QuantizedMemories
    tokens: Int[Tensor, " chunks"]
    num_correct: Int[Tensor, " chunks"]
    corrections: bytes
    text_sha256: str
    text_bytes: int
    vectors: QuantizedMemories | None = None

    @property
    def fidelity(self) -> Float[Tensor, " chunks"]:
        """Share of each chunk's tokens that its memory gives back."""
        return self.num_correct / self.tokens.clamp(min=1)


def part_id(name: str, generation: int, number: int) -> str:
    """Under which a part of a long document is kept, hidden from lists.

    Args:
        name: the document's id.
        generation: 0 or 1: the parts of a replacement stand beside those that it will replace.
        number: of the part, from 0.
    """
    return f"{name}{_PART}{generation}{_PART}{number}"


def is_part(name: str) -> bool:
    """Whether this is a part's id."""
    return _PART in name


def owner_of(name: str) -> tuple[str, int | None, int | None]:
    """The document that an id belongs to, and the generation and number of its part, None where it is no part."""
    owner, *part = name.split(_PART)
    return (owner, int(part[0]), int(part[1])) if part else (owner, None, None)


def part_ids(name: str, generation: int, count: int) -> Iterator[str]:
    """Of a document's parts, in order."""
    return (part_id(name, generation, number) for number in range(count))


def manifest_of(generation: int, count: int) -> bytes:
    """What stands in place of a long document's corrections: which parts it has."""
    return _MANIFEST + f"{generation} {count}".encode()


def named_parts(document: StoredDocument) -> tuple[int, int] | None:
    """Generation and number of a long document's parts; None where it is a text of its own.

    Raises:
        DamagedStoreError: it names no parts that could be.
    """
    if len(document.tokens) or not document.corrections.startswith(_MANIFEST):
        return None
    try:
        generation, count = map(int, document.corrections[len(_MANIFEST) :].split())
    except ValueError:
        raise DamagedStoreError(f"document {ascii(document.id)[:80]} names no parts; restore it.") from None
    return generation, count


def check_id(name: str) -> None:
    """An id is shown on one line and is bounded; it never becomes a path.

    Raises:
        StoreError: empty, too long, or with characters that cannot be shown.
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise StoreError(f"id {ascii(name)[:60]} is not valid Unicode; give it another.") from None
    if not 1 <= size <= LONGEST_ID:
        raise StoreError(f"an id of {size} bytes; ids have 1 to {LONGEST_ID}.")
    if not name.isprintable():  # _PART is not, either
        raise StoreError(f"id {ascii(name)[:60]} holds control characters; give it another.")


def tensors_of(document: StoredDocument) -> dict[str, Tensor]:
    """Its tensors by the names they have in a segment, corrections as bytes."""
    found = {
        "values": document.memories.values,
        "tokens": document.tokens.to(torch.int32),
        "right": document.num_correct.to(torch.int32),
        "corrections": torch.frombuffer(bytearray(document.corrections or b"\0"), dtype=torch.uint8)[
            : len(document.corrections)
        ],
    }
    if document.memories.scale is not None:
        found["scale"] = document.memories.scale
    if document.vectors is not None:
        found["vectors"] = document.vectors.values
        if document.vectors.scale is not None:
            found["vector_scale"] = document.vectors.scale
    return found


def document_of(
    tensors: dict[str, Tensor], header: StoreHeader, *, name: str, text_sha256: str, text_bytes: int
) -> StoredDocument:
    """What `tensors_of` took apart."""
    memories = QuantizedMemories(tensors["values"], tensors.get("scale"), header.bits, header.numbers)
    return StoredDocument(
        id=name,
        memories=memories,
        tokens=tensors["tokens"],
        num_correct=tensors["right"],
        corrections=tensors["corrections"].numpy().tobytes(),
        text_sha256=text_sha256,
        text_bytes=text_bytes,
        vectors=vectors_of(tensors, header),
    )


def vectors_of(tensors: dict[str, Tensor], header: StoreHeader) -> QuantizedMemories | None:
    """A retrieval encoder's vectors, where the store has one."""
    if header.retrieval_numbers is None:
        return None
    return QuantizedMemories(tensors["vectors"], tensors.get("vector_scale"), header.bits, header.retrieval_numbers)


def data_hash(tensors: dict[str, Tensor]) -> str:
    """Over names, kinds, shapes and bytes of a document's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
