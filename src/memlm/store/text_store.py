"""Texts in a store: remembered with what makes them exact, recalled byte for byte, long ones part by part.

A text of more than one part (memlm.data.corpus) is kept as hidden documents, one a part, and becomes visible by one
more that names them, committed when all are there. What was interrupted goes on behind the parts that are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.data.corpus import parts_of
from memlm.encoders import Encoder, open_encoder
from memlm.errors import DamagedStoreError, StoreError, UserError
from memlm.store.codec import ChunkCodec, WrittenChunks, chunk_sizes
from memlm.store.corrections import pack, unpack
from memlm.store.format.document import StoredDocument, check_id, manifest_of, named_parts, part_id, part_ids
from memlm.store.format.header import StoreHeader
from memlm.store.memory_store import MemoryStore, with_parts
from memlm.store.quantize import Bits, QuantizedMemories, quantize, rows_of
from memlm.store.search import Hit, StoreSearch

Outcome = Literal["written", "replaced", "unchanged"]
Progress = Callable[[int, int], None]
"""Told bytes of text, and how many tokens of it were written now."""
_BATCH_CHARACTERS = 2**16
"""Of texts that are written and committed at once, at least."""


@dataclass(frozen=True)
class AddOutcome:
    """What became of a document."""

    id: str
    outcome: Outcome
    text_bytes: int


@dataclass(frozen=True)
class Unit:
    """A text, or part of one, to be written."""

    id: str
    text: str


@dataclass(frozen=True)
class Finish:
    """A document is all there: what makes it visible, what it takes the place of, and what is told."""

    document: StoredDocument | None
    remove: tuple[str, ...]
    told: AddOutcome


def write_units(
    codec: ChunkCodec, units: Sequence[Unit], bits: Bits, retrieval: Encoder | None = None
) -> list[StoredDocument]:
    """Texts as they are kept; what one becomes does not depend on the others."""
    tokens = codec.tokens([unit.text for unit in units])
    written = codec.write(tokens, bits)
    vectors = None if retrieval is None else _vectors(codec, tokens, bits, retrieval)
    counts = [len(chunk_sizes(len(ids), codec.chunk_length)) for ids in tokens]
    found: list[StoredDocument] = []
    first = 0
    for unit, ids, count in zip(units, tokens, counts, strict=True):
        rows = slice(first, first + count)
        part = WrittenChunks(rows_of(written.memories, rows), written.ranks[rows], written.num_correct[rows])
        own = None if vectors is None else rows_of(vectors, rows)
        found.append(_document(codec, unit, ids, part, own))
        first += count
    return found


def _vectors(codec: ChunkCodec, tokens: list[list[int]], bits: Bits, retrieval: Encoder) -> QuantizedMemories:
    length = codec.chunk_length
    texts = [codec.piece(ids[i : i + length]) for ids in tokens for i in range(0, len(ids), length)]
    return quantize(retrieval.encode(texts) if texts else torch.zeros(0, retrieval.width), bits)


def _document(
    codec: ChunkCodec, unit: Unit, ids: list[int], written: WrittenChunks, vectors: QuantizedMemories | None
) -> StoredDocument:
    content = unit.text.encode()
    sizes = chunk_sizes(len(ids), codec.chunk_length)
    # the last chunk alone may have places behind its text, so that the text's ranks come first
    ranks = written.ranks.flatten()[: len(ids)]
    by_tokens = codec.text(ids).encode() == content
    return StoredDocument(
        id=unit.id,
        memories=written.memories,
        tokens=torch.tensor(sizes, dtype=torch.int32),
        num_correct=written.num_correct,
        corrections=pack(ranks, torch.tensor(ids, dtype=torch.long), content, by_tokens=by_tokens),
        text_sha256=hashlib.sha256(content).hexdigest(),
        text_bytes=len(content),
        vectors=vectors,
    )


class TextStore:
    """A store with the model that wrote it.

    Example:
        >>> with TextStore.open("notes.mem", "runs/memory", write=True) as texts:
        ...     list(texts.remember([("a.md", ["any text"])]))
        >>> TextStore.open("notes.mem", "runs/memory").recall("a.md")
        'any text'
    """

    def __init__(
        self, store: MemoryStore, codec: ChunkCodec, retrieval: Encoder | None = None, *, created: bool = False
    ) -> None:
        self.store = store
        self._created = created
        self.codec = codec
        self.retrieval = retrieval
        self._search: tuple[int, tuple[str, ...] | None, StoreSearch] | None = None
        self._check(codec.header(store.header.bits))

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: str | Path | ChunkCodec,
        *,
        write: bool = False,
        bits: Bits | None = None,
        retrieval: Encoder | str | None = None,
        wait: float = 0.0,
    ) -> TextStore:
        """Return a store; opened for writing, it is created where there is none.

        A store created here is removed again when its `with` block fails before anything is stored.

        Args:
            folder: of the store.
            model: what reads and writes memories; a run's folder.
            write: for the one writer.
            bits: of a number in a new store, 8 by default; of an old one they are what they are.
            retrieval: an encoder of your own, whose vectors of the chunks' texts are kept and searched in place of
                memories; of an old store the one that it was made with.
            wait: seconds to wait for another writer.

        Raises:
            StoreError: no store, of another model, or another process writes to it.
            DamagedStoreError: a file is not what was written.
        """
        codec = model if isinstance(model, ChunkCodec) else ChunkCodec.load(model)
        encoder = open_encoder(retrieval) if isinstance(retrieval, str) else retrieval
        created = write and not Path(folder).exists()
        if created:
            hints = {
                "model": None if isinstance(model, ChunkCodec) else str(Path(model).absolute()),
                "retrieval_model": retrieval if isinstance(retrieval, str) else None,
            }
            MemoryStore.create(folder, new_header(codec, bits or 8, encoder, hints))
        store = MemoryStore.open(folder, write=write, wait=wait)
        try:
            if bits is not None and bits != store.header.bits:
                raise StoreError(
                    f"'{folder}' keeps numbers in {store.header.bits} bits, not {bits}; leave it out, or make another."
                )
            return cls(store, codec, encoder, created=created)
        except BaseException:
            store.discard() if created else store.close()
            raise

    def __enter__(self) -> TextStore:
        """Itself."""
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Close; a store created here is discarded if the block failed before anything was stored."""
        if error is not None and self._created:
            self.store.discard()
        else:
            self.close()

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()

    def add(
        self,
        documents: Iterable[tuple[str, Iterable[str]]],
        *,
        replace: bool = False,
        write: Callable[[Iterator[list[Unit]]], Iterator[list[StoredDocument]]] | None = None,
        progress: Progress | None = None,
    ) -> Generator[AddOutcome]:
        """Write texts; each is told when it is committed.

        A text that is there already is left as it is; what was interrupted goes on.

        Args:
            documents: ids and texts, each text in pieces of any size.
            replace: where an id is there with another text, put the new one in its place.
            write: units to documents, in their order, with as many lists as were given; here, one after the other.
            progress: told of what was committed, or found.

        Raises:
            StoreError: an id that is there with another text; a full disk. What was told stays.
        """
        batches = _Batches(self._plan(documents, replace, progress or (lambda _bytes, _tokens: None)))
        write = write or self._write_here
        for written in write(iter(batches)):
            finishes = batches.finishes.pop(0)
            yield from self._commit(written, finishes, progress)
        for finishes in batches.finishes:
            yield from self._commit([], finishes, progress)

    def recall(self, name: str) -> str:
        """A document's text, byte for byte.

        Raises:
            StoreError: it is not there, or the store's corrections are of another model.
            DamagedStoreError: its data is not what was written, or does not give its text back.
        """
        return b"".join(self.recall_parts(name)).decode()

    def recall_parts(self, name: str) -> Iterator[bytes]:
        """As `recall`, part by part; each part is checked before it is given, the whole at the end."""
        entry = self.store.entry(name)
        digest = hashlib.sha256()
        for part in self.parts(name):
            content = self._exact(part)
            digest.update(content)
            yield content
        if digest.hexdigest() != entry.text_sha256:
            raise DamagedStoreError(f"document {ascii(name)[:80]} does not come back as it was written; restore it.")

    def reading(self, name: str) -> str:
        """What the memories alone give back, uncorrected.

        Raises:
            StoreError: it is not there.
        """
        return "".join(self._approximate(part) for part in self.parts(name))

    def parts(self, name: str) -> Iterator[StoredDocument]:
        """A document's parts in order; itself where it has none.

        Raises:
            StoreError: it is not there.
            DamagedStoreError: its data is not what was written.
        """
        document = self.store.read(name)
        found = named_parts(document)
        if found is None:
            yield document
            return
        for inner in part_ids(name, *found):
            yield self.store.read(inner)

    def search(self, query: str, k: int = 10, *, documents: Sequence[str] | None = None) -> list[Hit]:
        """The chunks nearest to a text, best first, by exact cosine; those nearest to any chunk of a long query.

        The first search reads all vectors, and they are kept while nothing is written.

        Args:
            query: a text.
            k: how many.
            documents: ids to search in; all where None.

        Raises:
            UserError: an empty query, or k below 1.
            StoreError: an id that is not there; the store's retrieval encoder is missing.
            DamagedStoreError: a file is not what was written.
        """
        if not query:
            raise UserError("the query is empty; give at least one character.")
        commits, chosen = self.store.commits, None if documents is None else tuple(documents)
        if self._search is None or self._search[:2] != (commits, chosen):
            self._search = (commits, chosen, StoreSearch(self.store, documents=chosen))
        return self._search[2].nearest(self.vectors_of(query), k)

    def vectors_of(self, query: str) -> Float[Tensor, "queries numbers"]:
        """What is compared with the store's vectors.

        Raises:
            StoreError: the store has vectors of a retrieval encoder and there is none.
        """
        if self.store.header.retrieval is None:
            return self.codec.encode(self.codec.tokens([query])).flatten(1)
        if self.retrieval is None:
            raise StoreError(
                f"'{self.store.folder}' is searched by a retrieval encoder; give the one it was made with."
            )
        return self.retrieval.encode([query])

    def text_of(self, hit: Hit) -> str:
        """The exact text of a chunk that was found; a character may be cut at either end."""
        for number, part in enumerate(self.parts(hit.id)):
            if number == (hit.part or 0):
                return self.codec.piece(self.tokens(part, [hit.chunk])[hit.chunk])
        raise StoreError(f"document {ascii(hit.id)[:80]} has no part {hit.part}; search again.")

    def delete(self, names: Sequence[str]) -> None:
        """Remove documents with their parts, all of them or none.

        Raises:
            StoreError: one that is not there.
        """
        self.store.delete(with_parts(self.store, names))

    def tokens(self, document: StoredDocument, chunks: Sequence[int]) -> dict[int, list[int]]:
        """The exact tokens of some chunks of a document without parts.

        Raises:
            DamagedStoreError: its corrections are not what was written.
        """
        sizes = document.tokens.tolist()
        corrections = unpack(document.corrections, tokens=sum(sizes), text_bytes=document.text_bytes)
        if isinstance(corrections, bytes):
            ids = torch.tensor(self.codec.tokens([corrections.decode()])[0]).split(sizes)
            return {chunk: ids[chunk].tolist() for chunk in chunks}
        rows = torch.tensor(list(chunks), dtype=torch.long)
        ranks, explicit = (self._by_chunk(x, len(sizes))[rows] for x in corrections)
        found = self.codec.read(rows_of(document.memories, rows), ranks, explicit).tolist()
        return {chunk: ids[: sizes[chunk]] for chunk, ids in zip(chunks, found, strict=True)}

    def _exact(self, document: StoredDocument) -> bytes:
        total = int(document.tokens.sum())
        corrections = unpack(document.corrections, tokens=total, text_bytes=document.text_bytes)
        content = (
            corrections
            if isinstance(corrections, bytes)
            else self.codec.text(self._read(document, *corrections)).encode(errors="surrogatepass")
        )
        if hashlib.sha256(content).hexdigest() != document.text_sha256:
            raise DamagedStoreError(
                f"document {ascii(document.id)[:80]} does not come back as it was written; restore the store from a "
                "copy, or read it with the model that wrote it."
            )
        return content

    def _approximate(self, document: StoredDocument) -> str:
        total = int(document.tokens.sum())
        return self.codec.text(self._read(document, torch.zeros(total, dtype=torch.uint8), torch.zeros(total).long()))

    def _read(self, document: StoredDocument, ranks: Tensor, explicit: Tensor) -> list[int]:
        padded = [self._by_chunk(x, len(document.tokens)) for x in (ranks, explicit)]
        return self.codec.read(document.memories, padded[0], padded[1]).flatten()[: len(ranks)].tolist()

    def _by_chunk(self, places: Tensor, chunks: int) -> Tensor:
        """The last chunk alone may have places behind its text."""
        length = self.codec.chunk_length
        return torch.nn.functional.pad(places, (0, chunks * length - len(places))).view(chunks, length)

    def _write_here(self, batches: Iterator[list[Unit]]) -> Iterator[list[StoredDocument]]:
        for batch in batches:
            yield write_units(self.codec, batch, self.store.header.bits, self.retrieval)

    def _plan(
        self, documents: Iterable[tuple[str, Iterable[str]]], replace: bool, progress: Progress
    ) -> Iterator[Unit | Finish]:
        seen: set[str] = set()
        for name, stream in documents:
            check_id(name)
            if name in seen:
                raise StoreError(f"document {ascii(name)[:80]} is given twice; give each an id of its own.")
            seen.add(name)
            yield from _DocumentPlan(self.store, name, replace=replace, progress=progress).units(stream)

    def _commit(
        self,
        written: list[StoredDocument],
        finishes: list[Finish],
        progress: Progress | None,
    ) -> Iterator[AddOutcome]:
        whole = [finish.document for finish in finishes if finish.document is not None]
        remove = [name for finish in finishes for name in finish.remove]
        self.store.add([*written, *whole], replace=True, remove=remove)
        if progress is not None:
            tokens = sum(int(document.tokens.sum()) for document in written)
            progress(sum(document.text_bytes for document in written), tokens)
        yield from (finish.told for finish in finishes)

    def _check(self, wanted: StoreHeader) -> None:
        kept = self.store.header
        names = {"encoder": "encoder", "tokenizer": "tokenizer", "decoder": "decoder, whose reading is corrected"}
        for field, name in names.items():
            if getattr(kept, field) != getattr(wanted, field):
                raise StoreError(
                    f"'{self.store.folder}' was written by another {name} ({getattr(kept, field)[:12]}) than this "
                    f"model's ({getattr(wanted, field)[:12]}); give the model that wrote it."
                )
        given = None if self.retrieval is None else self.retrieval.fingerprint
        if given is not None and given != kept.retrieval:
            raise StoreError(
                f"'{self.store.folder}' is searched by "
                f"{'memories' if kept.retrieval is None else 'vectors of another encoder'}, not by this retrieval "
                "encoder's; leave it out, or make another store."
            )


def new_header(codec: ChunkCodec, bits: Bits, retrieval: Encoder | None, hints: dict[str, str | None]) -> StoreHeader:
    """Of a store that these write; `hints` say where they lie."""
    found: dict[str, object] = dict(hints)
    if retrieval is not None:
        found |= {"retrieval": retrieval.fingerprint, "retrieval_numbers": retrieval.width}
    return codec.header(bits).model_copy(update=found)


class _Batches:
    """Units in lists of enough chunks, and what is finished behind each list."""

    def __init__(self, plan: Iterator[Unit | Finish]) -> None:
        self.plan = plan
        self.finishes: list[list[Finish]] = []

    def __iter__(self) -> Iterator[list[Unit]]:
        batch: list[Unit] = []
        finished: list[Finish] = []
        size = 0
        for item in self.plan:
            if isinstance(item, Finish):
                finished.append(item)
                continue
            if size >= _BATCH_CHARACTERS:
                self.finishes.append(finished)
                yield batch
                batch, finished, size = [], [], 0
            batch.append(item)
            size += len(item.text)
        self.finishes.append(finished)
        if batch:
            yield batch


class _DocumentPlan:
    """What is to be written of one text."""

    def __init__(self, store: MemoryStore, name: str, *, replace: bool, progress: Progress) -> None:
        self.store, self.name, self.replace, self.progress = store, name, replace, progress
        self.there = store.entry(name) if name in store else None
        self.digest = hashlib.sha256()
        self.size = 0

    def units(self, stream: Iterable[str]) -> Iterator[Unit | Finish]:
        parts = parts_of(stream)
        first = next(parts)
        second = next(parts, None)
        if second is None:
            yield from self._short(first)
            return

        def again() -> Iterator[str]:
            yield first
            yield second
            yield from parts

        yield from self._long(again())

    def _short(self, text: str) -> Iterator[Unit | Finish]:
        content = self._counted(text)
        if self._same():
            yield self._unchanged()
            return
        remove = self._old_parts()
        self._check_other()
        yield Unit(self.name, text)
        yield Finish(None, remove, AddOutcome(self.name, self._outcome(), len(content)))

    def _long(self, parts: Iterator[str]) -> Iterator[Unit | Finish]:
        old = None if self.there is None else named_parts(self.store.read(self.name))
        if self.there is not None and not self.replace:
            yield from self._compared(parts, old)
            return
        generation = 0 if old is None else 1 - old[0]
        count = 0
        for number, text in enumerate(parts):
            inner = part_id(self.name, generation, number)
            content = self._counted(text)
            if not self._holds(inner, content):
                yield Unit(inner, text)
            else:
                self.progress(len(content), 0)
            count = number + 1
        stale = list(self._from(generation, count))
        whole = self._manifest(generation, count)
        yield Finish(whole, (*self._old_parts(), *stale), AddOutcome(self.name, self._outcome(), self.size))

    def _compared(self, parts: Iterator[str], old: tuple[int, int] | None) -> Iterator[Finish]:
        for number, text in enumerate(parts):
            content = self._counted(text)
            if old is None or number >= old[1] or not self._holds(part_id(self.name, old[0], number), content):
                self._check_other()
        if not self._same():
            self._check_other()
        yield self._unchanged()

    def _counted(self, text: str) -> bytes:
        content = _utf8(text, self.name)
        self.digest.update(content)
        self.size += len(content)
        return content

    def _same(self) -> bool:
        return self.there is not None and self.there.text_sha256 == self.digest.hexdigest()

    def _unchanged(self) -> Finish:
        self.progress(self.size, 0)
        return Finish(None, (), AddOutcome(self.name, "unchanged", self.size))

    def _outcome(self) -> Outcome:
        return "written" if self.there is None else "replaced"

    def _check_other(self) -> None:
        if self.there is not None and not self.replace:
            raise StoreError(
                f"document {ascii(self.name)[:80]} is in '{self.store.folder}' with another text; "
                "replace it (--replace), or give this one another id."
            )

    def _old_parts(self) -> tuple[str, ...]:
        found = None if self.there is None else named_parts(self.store.read(self.name))
        return () if found is None else tuple(part_ids(self.name, *found))

    def _holds(self, inner: str, content: bytes) -> bool:
        if inner not in self.store:
            return False
        return self.store.entry(inner).text_sha256 == hashlib.sha256(content).hexdigest()

    def _from(self, generation: int, number: int) -> Iterator[str]:
        while (inner := part_id(self.name, generation, number)) in self.store:
            yield inner
            number += 1

    def _manifest(self, generation: int, count: int) -> StoredDocument:
        header = self.store.header
        shape = (0, header.memories_per_chunk, header.numbers)
        numbers = header.retrieval_numbers
        return StoredDocument(
            id=self.name,
            memories=quantize(torch.zeros(shape), header.bits),
            vectors=None if numbers is None else quantize(torch.zeros(0, numbers), header.bits),
            tokens=torch.zeros(0, dtype=torch.int32),
            num_correct=torch.zeros(0, dtype=torch.int32),
            corrections=manifest_of(generation, count),
            text_sha256=self.digest.hexdigest(),
            text_bytes=self.size,
        )


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"document {ascii(name)[:80]} holds half of a surrogate pair at character {error.start}, which is not "
            "UTF-8; decode it with errors='replace'."
        ) from None
