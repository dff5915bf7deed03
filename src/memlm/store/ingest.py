"""From texts to stored documents: which parts must be encoded, in which batches, and what becomes visible with them.

A text of more than one part (`memlm.data.corpus.parts_of`) is stored as hidden documents, one for each part. One more
document names the parts and makes the text visible; it is committed when all parts are stored. An interrupted text
continues behind the parts that are stored already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.data import decode_ids, decode_piece
from memlm.data.corpus import parts_of
from memlm.encoders import Encoder, HuggingFaceEncoder
from memlm.errors import StoreError
from memlm.store.codec import Codec, WrittenChunks, chunk_sizes
from memlm.store.corrections import pack
from memlm.store.format.document import StoredDocument, check_id, has_places, manifest_of, no_places, part_id
from memlm.store.memory_store import MemoryStore
from memlm.store.quantize import Bits, QuantizedMemories, quantize, rows_of

Outcome = Literal["written", "replaced", "unchanged"]
Progress = Callable[[int, int], None]
"""A callback that receives bytes of text that are stored, and how many of their tokens were encoded now."""
_BATCH_CHARACTERS = 2**16
"""The least number of characters that are encoded and committed together."""


@dataclass(frozen=True)
class AddOutcome:
    """The result of adding one document.

    Attributes:
        id: the document.
        outcome: "written", "replaced" or "unchanged".
        text_bytes: size of its text in UTF-8.
    """

    id: str
    outcome: Outcome
    text_bytes: int


class Unit(NamedTuple):
    """A text, or a part of a long one, that has to be encoded."""

    id: str
    text: str


class Completion(NamedTuple):
    """A text whose units are all encoded.

    Attributes:
        ready: documents that need no encoding: parts that the stored text has, too, and last the document that makes a
            long text visible.
        remove: ids that the text replaces.
        outcome: the result to report.
    """

    ready: list[StoredDocument]
    remove: list[str]
    outcome: AddOutcome


def encode_units(
    codec: Codec, units: Sequence[Unit], bits: Bits, retrieval: Encoder | None = None
) -> list[StoredDocument]:
    """Encode texts as stored documents; the result for one text does not depend on the others.

    The vectors that `retrieval` gives of each chunk's text are stored for search.
    """
    tokens = codec.tokens([unit.text for unit in units])
    written = codec.write(tokens, bits)
    vectors = None
    if retrieval is not None:
        length = codec.chunk_length
        texts = [
            decode_piece(codec.tokenizer, ids[i : i + length]) for ids in tokens for i in range(0, len(ids), length)
        ]
        vectors = quantize(document_vectors(retrieval, texts), bits)
    documents: list[StoredDocument] = []
    first = 0
    for unit, ids in zip(units, tokens, strict=True):
        rows = slice(first, first + len(chunk_sizes(len(ids), codec.chunk_length)))
        own = None if vectors is None else rows_of(vectors, rows)
        documents.append(_document(codec, unit, ids, written.rows(rows), own))
        first = rows.stop
    return documents


def document_vectors(retrieval: Encoder, texts: Sequence[str]) -> Float[Tensor, "texts numbers"]:
    """Return the vectors of texts that are searched, with the prompt that the encoder declares for them."""
    encode = retrieval.encode_document if isinstance(retrieval, HuggingFaceEncoder) else retrieval.encode
    return encode(texts) if texts else torch.zeros(0, retrieval.width)


def _document(
    codec: Codec, unit: Unit, ids: list[int], written: WrittenChunks, vectors: QuantizedMemories | None
) -> StoredDocument:
    content = unit.text.encode()
    # only the last chunk may have positions behind its text, so the ranks of the text come first
    ranks = written.ranks.flatten()[: len(ids)]
    by_tokens = codec.gives_back and decode_ids(codec.tokenizer, ids).encode() == content
    return StoredDocument(
        id=unit.id,
        memories=written.memories,
        tokens=torch.tensor(chunk_sizes(len(ids), codec.chunk_length), dtype=torch.int32),
        num_correct=written.num_correct,
        corrections=pack(ranks, torch.tensor(ids, dtype=torch.long), content, by_tokens=by_tokens),
        text_sha256=hashlib.sha256(content).hexdigest(),
        text_bytes=len(content),
        vectors=vectors,
        places=written.places,
    )


class UnitBatches:
    """Lists of units to encode, and the texts that are complete with each list.

    Iterating yields the lists. `completions` holds one list of `Completion` for each list that was yielded, and a last
    one for texts that needed no encoding.
    """

    def __init__(
        self, store: MemoryStore, documents: Iterable[tuple[str, Iterable[str]]], *, replace: bool, progress: Progress
    ) -> None:
        self.completions: list[list[Completion]] = []
        self._plan = _planned(store, documents, replace, progress)

    def __iter__(self) -> Iterator[list[Unit]]:
        batch: list[Unit] = []
        completed: list[Completion] = []
        size = 0
        for item in self._plan:
            if isinstance(item, Completion):
                completed.append(item)
                continue
            if size >= _BATCH_CHARACTERS:
                self.completions.append(completed)
                yield batch
                batch, completed, size = [], [], 0
            batch.append(item)
            size += len(item.text)
        self.completions.append(completed)
        if batch:
            yield batch


def _planned(
    store: MemoryStore, documents: Iterable[tuple[str, Iterable[str]]], replace: bool, progress: Progress
) -> Iterator[Unit | Completion]:
    seen: set[str] = set()
    for name, stream in documents:
        check_id(name)
        if name in seen:
            raise StoreError(f"document {ascii(name)[:80]} is given twice; give each an id of its own.")
        seen.add(name)
        yield from _DocumentPlan(store, name, replace=replace, progress=progress).units(stream)


class _DocumentPlan:
    """The units and the completion of one text, given what the store holds of it."""

    def __init__(self, store: MemoryStore, name: str, *, replace: bool, progress: Progress) -> None:
        self.store, self.name, self.replace, self.progress = store, name, replace, progress
        self.shown = ascii(name)[:80]
        self.stored = store.entry(name) if name in store else None
        self.stored_parts = [] if self.stored is None else store.part_ids(self.stored)
        self.digest = hashlib.sha256()
        self.size = 0

    def units(self, stream: Iterable[str]) -> Iterator[Unit | Completion]:
        parts = parts_of(stream)
        first, second = next(parts), next(parts, None)
        if second is None:
            yield from self._short(first)
        elif self.stored is not None and not self.replace:
            yield from self._compared(chain((first, second), parts))
        else:
            yield from self._long(chain((first, second), parts))

    def _short(self, text: str) -> Iterator[Unit | Completion]:
        self._count(text)
        if self.stored is not None and self.stored.text_sha256 == self.digest.hexdigest():
            yield self._unchanged()
            return
        if self.stored is not None and not self.replace:
            raise self._another_text()
        yield Unit(self.name, text)
        yield self._completion([], self.stored_parts)

    def _long(self, parts: Iterator[str]) -> Iterator[Unit | Completion]:
        # the parts of a replacement are stored beside those that they will replace
        generation, count = 1 if part_id(self.name, 0, 0) in self.stored_parts else 0, 0
        same = {self.store.entry(inner).text_sha256: inner for inner in self.stored_parts}
        ready: list[StoredDocument] = []
        for number, text in enumerate(parts):
            inner = part_id(self.name, generation, number)
            content = self._count(text)
            if self._holds(inner, content):
                self.progress(len(content), 0)
            elif (old := same.get(hashlib.sha256(content).hexdigest())) is not None:
                ready.append(replace(self.store.read(old), id=inner))
                self.progress(len(content), 0)
            else:
                yield Unit(inner, text)
            count = number + 1
        manifest = self._manifest(generation, count)
        remove = list(self.stored_parts)
        while (inner := part_id(self.name, generation, count)) in self.store:  # of a longer text that was interrupted
            remove.append(inner)
            count += 1
        yield self._completion([*ready, manifest], remove)

    def _compared(self, parts: Iterator[str]) -> Iterator[Completion]:
        """Read a text that may not be replaced, and stop at its first difference from the stored one."""
        for text, inner in zip_longest(parts, self.stored_parts):
            if text is None or inner is None or not self._holds(inner, self._count(text)):
                raise self._another_text()
        yield self._unchanged()

    def _count(self, text: str) -> bytes:
        """Add a part to the digest and the size of the text."""
        try:
            content = text.encode()
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair at character {error.start}"
            raise StoreError(f"document {self.shown} holds {half}; decode it with errors='replace'.") from None
        self.digest.update(content)
        self.size += len(content)
        return content

    def _unchanged(self) -> Completion:
        self.progress(self.size, 0)
        return Completion([], [], AddOutcome(self.name, "unchanged", self.size))

    def _completion(self, ready: list[StoredDocument], remove: list[str]) -> Completion:
        outcome: Outcome = "written" if self.stored is None else "replaced"
        return Completion(ready, remove, AddOutcome(self.name, outcome, self.size))

    def _another_text(self) -> StoreError:
        remedy = "replace it (--replace), or give this one another id"
        return StoreError(f"document {self.shown} is in '{self.store.folder}' with another text; {remedy}.")

    def _holds(self, inner: str, content: bytes) -> bool:
        return inner in self.store and self.store.entry(inner).text_sha256 == hashlib.sha256(content).hexdigest()

    def _manifest(self, generation: int, count: int) -> StoredDocument:
        header = self.store.header
        numbers = header.retrieval_numbers
        return StoredDocument(
            id=self.name,
            memories=quantize(torch.zeros(0, header.memories_per_chunk, header.numbers), header.bits),
            vectors=None if numbers is None else quantize(torch.zeros(0, numbers), header.bits),
            places=no_places(header.slots) if header.slots is not None and has_places(header) else None,
            tokens=torch.zeros(0, dtype=torch.int32),
            num_correct=torch.zeros(0, dtype=torch.int32),
            corrections=manifest_of(generation, count),
            text_sha256=self.digest.hexdigest(),
            text_bytes=self.size,
        )
