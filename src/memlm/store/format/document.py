"""A document as it is stored: rounded memories, and the corrections that make its text exact."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.errors import DamagedStoreError, StoreError
from memlm.store.format.header import SlotFormat, StoreHeader
from memlm.store.quantize import QuantizedMemories

LONGEST_ID = 1024
"""The greatest size of an id in bytes."""
PART = "\x1f"
"""The separator between a long document's id and the numbers of its part; `check_id` forbids it in ids."""
_MANIFEST = b"parts "
"""The beginning of a manifest; no corrections begin so (`memlm.store.corrections`)."""


@dataclass(frozen=True)
class SlotPlaces:
    """The part of slots that is not keys and values.

    Attributes:
        bias: (chunks, slots of all layers and heads) in fp16, minus infinity for a slot that holds nothing.
        positions: (chunks, slots of all layers and heads) in int16, positions of the slots' tokens in their chunk.
    """

    bias: Float[Tensor, "chunks slots"]
    positions: Int[Tensor, "chunks slots"]

    def rows(self, rows: slice) -> SlotPlaces:
        """Return the places of some chunks."""
        return SlotPlaces(self.bias[rows], self.positions[rows])


def has_places(header: StoreHeader) -> bool:
    """Return whether memories are keys and values, which have biases and positions."""
    return header.slots is not None and header.slots.injection == "kv"


def no_places(slots: SlotFormat) -> SlotPlaces:
    """Return the places of a document without chunks."""
    width = slots.layers * slots.heads * slots.slots
    return SlotPlaces(torch.zeros(0, width, dtype=torch.half), torch.zeros(0, width, dtype=torch.int16))


@dataclass(frozen=True)
class StoredDocument:
    """A document's memories and corrections.

    Attributes:
        id: any text of 1 to 1,024 bytes without control characters.
        memories: (chunks, memories, numbers), rounded.
        tokens: (chunks,), number of tokens in each chunk.
        num_correct: (chunks,), tokens that the memory alone gives back.
        corrections: bytes that turn what the memories give back into the text.
        text_sha256: SHA-256 of the text in UTF-8.
        text_bytes: size of the text in UTF-8.
        vectors: (chunks, numbers), rounded: a retrieval encoder's vectors of each chunk's text, if the store has one.
        places: of slots, where the memories are keys and values.
    """

    id: str
    memories: QuantizedMemories
    tokens: Int[Tensor, " chunks"]
    num_correct: Int[Tensor, " chunks"]
    corrections: bytes
    text_sha256: str
    text_bytes: int
    vectors: QuantizedMemories | None = None
    places: SlotPlaces | None = None

    @property
    def fidelity(self) -> Float[Tensor, " chunks"]:
        """The share of each chunk's tokens that its memory gives back, (chunks,)."""
        return self.num_correct / self.tokens.clamp(min=1)


def part_id(name: str, generation: int, number: int) -> str:
    """Return the id of a part (from 0) of a long document, which lists of documents leave out.

    The generation is 0 or 1, since the parts of a replacement are stored beside those that it will replace.
    """
    return f"{name}{PART}{generation}{PART}{number}"


def is_part(name: str) -> bool:
    """Return True for the id of a part."""
    return PART in name


def owner_of(name: str) -> tuple[str, int | None, int | None]:
    """Split an id into the document's id and the generation and number of its part, None for a document."""
    owner, *part = name.split(PART)
    return (owner, int(part[0]), int(part[1])) if part else (owner, None, None)


def manifest_of(generation: int, count: int) -> bytes:
    """Return the bytes that name the parts of a long document; they are stored instead of corrections."""
    return _MANIFEST + f"{generation} {count}".encode()


def named_parts(document: StoredDocument) -> list[str]:
    """Return the ids of a long document's parts in order; none for a document without parts.

    Raises:
        DamagedStoreError: the manifest cannot be read.
    """
    if len(document.tokens) or not document.corrections.startswith(_MANIFEST):
        return []
    try:
        generation, count = map(int, document.corrections[len(_MANIFEST) :].split())
    except ValueError:
        raise DamagedStoreError(f"document {ascii(document.id)[:80]} names no parts; restore it.") from None
    return [part_id(document.id, generation, number) for number in range(count)]


def check_id(name: str) -> None:
    """Check that an id fits on one line and is not too long; an id never becomes a path.

    Raises:
        StoreError: the id is empty, too long, or has control characters (category Cc of Unicode).
    """
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise StoreError(f"id {ascii(name)[:60]} is not valid Unicode; give it another.") from None
    if not 1 <= size <= LONGEST_ID:
        raise StoreError(f"an id of {size} bytes; ids have 1 to {LONGEST_ID}.")
    if any(unicodedata.category(character) == "Cc" for character in name):  # PART holds some
        raise StoreError(f"id {ascii(name)[:60]} holds control characters; give it another.")


def tensors_of(document: StoredDocument) -> dict[str, Tensor]:
    """Return a document's tensors by their names in a segment; corrections become a tensor of bytes."""
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
    if document.places is not None:
        found |= {"bias": document.places.bias, "positions": document.places.positions}
    return found


def document_of(
    tensors: dict[str, Tensor], header: StoreHeader, *, name: str, text_sha256: str, text_bytes: int
) -> StoredDocument:
    """Build a document from the result of `tensors_of`."""
    return StoredDocument(
        id=name,
        memories=memories_of(tensors, header),
        tokens=tensors["tokens"],
        num_correct=tensors["right"],
        corrections=tensors["corrections"].numpy().tobytes(),
        text_sha256=text_sha256,
        text_bytes=text_bytes,
        vectors=vectors_of(tensors, header),
        places=SlotPlaces(tensors["bias"], tensors["positions"]) if has_places(header) else None,
    )


def memories_of(tensors: dict[str, Tensor], header: StoreHeader) -> QuantizedMemories:
    """Return the memories among a document's or a segment's tensors."""
    return QuantizedMemories(tensors["values"], tensors.get("scale"), header.bits, header.numbers)


def vectors_of(tensors: dict[str, Tensor], header: StoreHeader) -> QuantizedMemories | None:
    """Return a retrieval encoder's vectors, or None if the store has none."""
    if header.retrieval_numbers is None:
        return None
    return QuantizedMemories(tensors["vectors"], tensors.get("vector_scale"), header.bits, header.retrieval_numbers)
