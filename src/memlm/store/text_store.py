"""A store of texts: documents are encoded with corrections that make them exact, and are recalled byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from memlm.data import decode_ids, decode_piece
from memlm.data.given import folder_of, list_of_texts, one_text, text_pieces
from memlm.durable import is_vacant
from memlm.encoders import Encoder, HuggingFaceEncoder, SentenceTransformersEncoder, open_encoder
from memlm.errors import DamagedStoreError, DataError, StoreError, UserError, Within
from memlm.store.codec import Codec
from memlm.store.codecs import open_codec, place_of
from memlm.store.corrections import unpack
from memlm.store.format.document import StoredDocument
from memlm.store.format.header import StoreHeader, read_header
from memlm.store.ingest import AddOutcome, Completion, Progress, Unit, UnitBatches, encode_units
from memlm.store.memory_store import MemoryStore
from memlm.store.quantize import Bits, rows_of
from memlm.store.search import Hit, StoreSearch

EncodeBatches = Callable[[Iterator[list[Unit]]], Iterator[list[StoredDocument]]]
"""A function that encodes lists of units in order, as `encode_units` does for one list."""


class TextStore:
    """A store together with the model that wrote it.

    Example:
        >>> with TextStore.open("notes.mem", "runs/memory", write=True) as texts:
        ...     list(texts.add([("a.md", ["any text"])]))
        >>> TextStore.open("notes.mem", "runs/memory").recall("a.md")
        'any text'
    """

    def __init__(
        self, store: MemoryStore, codec: Codec, retrieval: Encoder | None = None, *, created: bool = False
    ) -> None:
        self.store = store
        self.codec = codec
        self.retrieval = retrieval
        self._created = created
        self._search: tuple[int, tuple[str, ...] | None, StoreSearch] | None = None
        self._check(codec.header(store.header.bits))

    def __repr__(self) -> str:
        return f"TextStore({self.store!r}, {type(self.codec).__name__}, tokenizer of {len(self.codec.tokenizer)})"

    @classmethod
    def open(
        cls,
        folder: str | Path,
        model: str | Path | Codec,
        *,
        write: bool = False,
        bits: Bits | None = None,
        retrieval: Encoder | str | None = None,
        prompt: str | None = None,
        trust_remote_code: bool = False,
        tokens_per_memory: int | float | None = None,
        wait: float = 0.0,
    ) -> TextStore:
        """Open a store; with `write` it is created if it does not exist.

        A store that this call created is removed again when its `with` block fails before anything is stored.

        Args:
            folder: the store.
            model: the model that writes and reads memories, or the folder of its run; or the folder or Hub id of a
                decoder.
            write: become the store's only writer.
            bits: bits of a number in a new store, 8 by default; an existing store must have as many.
            retrieval: an encoder, or its folder or id. A new store keeps its vectors of the chunks' texts, and search
                compares them instead of the memories. An existing store needs the encoder that it was made with.
            prompt: of documents in a new store, the name of a prompt that `retrieval` declares, or a text; by default
                the declared one. An existing store keeps its own.
            trust_remote_code: run Python code that comes with `retrieval`.
            tokens_per_memory: of a decoder's slots in a new store, 8 by default; an existing store must have as many.
            wait: seconds to wait for another writer.

        Raises:
            StoreError: there is no store, it belongs to another model, or another process writes to it.
            DamagedStoreError: a file is not what was written.
        """
        folder = folder_of(folder, name="store")
        if not callable(getattr(model, "header", None)):
            folder_of(model, name="model")
        named = isinstance(model, str | Path)
        stored = None if write and is_vacant(Path(folder)) else read_header(Path(folder))
        slots = None if stored is None else stored.slots
        codec = open_codec(model, stored, tokens_per_memory=tokens_per_memory) if named else model
        prompt = prompt if stored is None else stored.retrieval_prompt
        encoder: Encoder | None = None if isinstance(retrieval, str) else retrieval
        if isinstance(retrieval, str):
            encoder = open_encoder(retrieval, prompt=prompt, trust_remote_code=trust_remote_code)
        values: dict[str, object] = {
            "model": place_of(model) if named else None,
            "retrieval_model": place_of(retrieval) if isinstance(retrieval, str) else None,
            "retrieval_prompt": prompt if isinstance(retrieval, str) else None,
        }
        if encoder is not None:
            values |= {"retrieval": encoder.fingerprint, "retrieval_numbers": encoder.width}
        header = codec.header(bits or 8).model_copy(update=values)
        store, created = MemoryStore.open_or_create(folder, header if write else None, wait=wait)
        try:
            if bits is not None and bits != store.header.bits:
                raise StoreError(f"'{folder}' keeps numbers in {store.header.bits} bits, not {bits}; leave bits out.")
            if slots is not None and tokens_per_memory not in (None, slots.tokens_per_memory):
                raise StoreError(
                    f"'{folder}' has a memory for {slots.tokens_per_memory:g} tokens, not for {tokens_per_memory:g}; "
                    "leave tokens_per_memory out."
                )
            return cls(store, codec, encoder, created=created)
        except BaseException:
            store.discard() if created else store.close()
            raise

    def __enter__(self) -> TextStore:
        """Return the store itself."""
        return self

    def __exit__(self, error: object, *_: object) -> None:
        """Close the store; a new one is removed if the block failed before anything was stored."""
        if error is not None and self._created:
            self.store.discard()
        else:
            self.close()

    def close(self) -> None:
        """Close the files and release the writer's lock."""
        self.store.close()

    def add(
        self,
        documents: Iterable[tuple[str, Iterable[str]]],
        *,
        replace: bool = False,
        encode: EncodeBatches | None = None,
        progress: Progress | None = None,
    ) -> Generator[AddOutcome]:
        """Encode and store texts; yield the outcome of each when it is committed.

        A text that is stored already is not encoded again, and an interrupted text continues where it stopped.

        Args:
            documents: ids and texts; each text is an iterable of strings of any size.
            replace: replace a document that has the same id and another text.
            encode: encodes lists of units in order, for instance with several processes; by default this process does.
            progress: receives what was committed or found.

        Raises:
            StoreError: an id exists with another text, or the disk is full. Documents that were yielded stay.
        """
        tell = progress or (lambda _bytes, _tokens: None)
        batches = UnitBatches(self.store, _checked(documents), replace=replace, progress=tell)
        here = partial(encode_units, self.codec, bits=self.store.header.bits, retrieval=self.retrieval)
        for encoded in map(here, batches) if encode is None else encode(iter(batches)):
            yield from self._commit(encoded, batches.completions.pop(0), tell)
        for completions in batches.completions:
            yield from self._commit([], completions, tell)

    def recall(self, name: str) -> str:
        """Return a document's exact text; errors are those of `recall_parts`."""
        return b"".join(self.recall_parts(name)).decode()

    def recall_parts(self, name: str) -> Iterator[bytes]:
        """Yield a document's exact text in parts; each part is checked before it is yielded, the full text at the end.

        Raises:
            StoreError: there is no such document.
            DamagedStoreError: its data is not what was written, or does not give its text back.
        """
        entry = self.store.entry(name)
        digest = hashlib.sha256()
        for part in self.parts(name):
            content = self._exact(part)
            digest.update(content)
            yield content
        if digest.hexdigest() != entry.text_sha256:
            raise _altered(name)

    def reading(self, name: str) -> str:
        """Return the text that the memories alone give back, without corrections.

        Raises:
            StoreError: there is no such document, or the memories are slots of a decoder, which give no text back.
        """
        pieces: list[str] = []
        for part in self.parts(name):
            zeros = torch.zeros(int(part.tokens.sum()), dtype=torch.long)
            pieces.append(decode_ids(self.codec.tokenizer, self._read(part, zeros.to(torch.uint8), zeros)))
        return "".join(pieces)

    def parts(self, name: str) -> Iterator[StoredDocument]:
        """Iterate over a document's parts in order; a short document is its only part.

        Raises:
            StoreError: there is no such document.
            DamagedStoreError: its data is not what was written.
        """
        for inner in self.store.part_ids(self.store.entry(name)) or [name]:
            yield self.store.read(inner)

    def search(
        self, query: str, k: int = 10, *, documents: Sequence[str] | None = None, prompt: str | None = None
    ) -> list[Hit]:
        """Return the `k` chunks nearest to a text by exact cosine, best first, in all or only these documents.

        A query of several chunks finds the chunks nearest to any of them. The first search reads all vectors; they are
        reused until the store changes. `prompt` stands before the query of a retrieval encoder, by default the one that
        it declares for queries.

        Raises:
            UserError: the query is empty, or k is below 1.
            StoreError: a document does not exist, or the store's retrieval encoder is missing.
            DamagedStoreError: a file is not what was written.
        """
        if not one_text(query, name="query"):
            raise UserError("the query is empty; give at least one character.")
        Within(1, 2**31 - 1).check("k", k, whole=True)
        return self._searched(documents).nearest(self.query_vectors(query, prompt), k)

    def cosines(self, query: str, chunks: Sequence[tuple[str, int]], documents: Sequence[str]) -> list[float]:
        """Return the cosine of each of some chunks to a text.

        Args:
            query: a text.
            chunks: the inner id of a document or of its part, as `parts` gives it, and the number of the chunk in it.
            documents: ids of the documents that the chunks belong to.

        Raises:
            StoreError: a document does not exist, or the store's retrieval encoder is missing.
        """
        search, vectors = self._searched(documents), self.query_vectors(query)
        return search.cosines(vectors)[[search.row_of(part, chunk) for part, chunk in chunks]].tolist()

    def _searched(self, documents: Sequence[str] | None) -> StoreSearch:
        chosen = None if documents is None else tuple(list_of_texts(documents, name="documents"))
        commits = self.store.commits
        if self._search is None or self._search[:2] != (commits, chosen):
            self._search = (commits, chosen, StoreSearch(self.store, documents=chosen))
        return self._search[2]

    def query_vectors(self, query: str, prompt: str | None = None) -> Float[Tensor, "queries numbers"]:
        """Return the vectors of a text that are compared with the store's.

        Raises:
            StoreError: the store has vectors of a retrieval encoder and none was given, or a prompt is for no encoder.
        """
        if self.store.header.retrieval is None:
            self._check_no_prompt(prompt)
            # a codec of slots raises
            return self.codec.encode(self.codec.tokens([query])).flatten(1)
        if self.retrieval is None:
            raise StoreError(f"'{self.store.folder}' is searched by a retrieval encoder; give that encoder.")
        if isinstance(self.retrieval, HuggingFaceEncoder | SentenceTransformersEncoder):
            return self.retrieval.encode_query([query], prompt)
        self._check_no_prompt(prompt)
        return self.retrieval.encode([query])

    def _check_no_prompt(self, prompt: str | None) -> None:
        if prompt is not None:
            raise StoreError(f"the search of '{self.store.folder}' takes no prompt ('{prompt}'); leave it out.")

    def text_of(self, hit: Hit) -> str:
        """Return the exact text of a chunk that was found; a character may be cut at either end.

        Raises:
            StoreError: the document or its part no longer exists.
        """
        for number, part in enumerate(self.parts(hit.id)):
            if number == (hit.part or 0):
                return decode_piece(self.codec.tokenizer, self.tokens(part, [hit.chunk])[hit.chunk])
        raise StoreError(f"document {ascii(hit.id)[:80]} has no part {hit.part}; search again.")

    def delete(self, names: Sequence[str]) -> None:
        """Remove documents; see `MemoryStore.delete`."""
        self.store.delete(names)

    def tokens(self, document: StoredDocument, chunks: Sequence[int]) -> dict[int, list[int]]:
        """Return the exact token ids of some chunks of a document or part.

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
        tokens = int(document.tokens.sum())
        content = unpack(document.corrections, tokens=tokens, text_bytes=document.text_bytes)
        if not isinstance(content, bytes):
            content = decode_ids(self.codec.tokenizer, self._read(document, *content)).encode(errors="surrogatepass")
        if hashlib.sha256(content).hexdigest() != document.text_sha256:
            raise _altered(document.id)
        return content

    def _read(self, document: StoredDocument, ranks: Tensor, explicit: Tensor) -> list[int]:
        padded = [self._by_chunk(x, len(document.tokens)) for x in (ranks, explicit)]
        return self.codec.read(document.memories, padded[0], padded[1]).flatten()[: len(ranks)].tolist()

    def _by_chunk(self, values: Tensor, chunks: int) -> Tensor:
        """Fold one value per token into (chunks, length); only the last chunk may need padding."""
        length = self.codec.chunk_length
        return torch.nn.functional.pad(values, (0, chunks * length - len(values))).view(chunks, length)

    def _commit(
        self, encoded: list[StoredDocument], completions: list[Completion], progress: Progress
    ) -> Iterator[AddOutcome]:
        ready = [document for one in completions for document in one.ready]
        remove = [name for one in completions for name in one.remove]
        self.store.add([*encoded, *ready], replace=True, remove=remove)
        progress(sum(one.text_bytes for one in encoded), sum(int(one.tokens.sum()) for one in encoded))
        yield from (one.outcome for one in completions)

    def _check(self, given: StoreHeader) -> None:
        stored = self.store.header
        names = {"encoder": "encoder", "tokenizer": "tokenizer", "decoder": "decoder, whose reading is corrected"}
        for field, name in names.items():
            if getattr(stored, field) != getattr(given, field):
                differ = f"({getattr(stored, field)[:12]}) than this model's ({getattr(given, field)[:12]})"
                raise StoreError(f"'{self.store.folder}' was written by another {name} {differ}; give that one.")
        if stored.slots != given.slots:
            raise StoreError(f"'{self.store.folder}' was written with other settings of slots; open it by its folder.")
        if self.retrieval is not None and self.retrieval.fingerprint != stored.retrieval:
            searched = "memories" if stored.retrieval is None else "vectors of another encoder"
            raise StoreError(f"'{self.store.folder}' is searched by {searched}, not by this retrieval encoder's.")


def _checked(documents: object) -> Iterator[tuple[str, Iterator[str]]]:
    """Yield ids and the pieces of texts.

    Raises:
        DataError: something else was given.
    """
    if isinstance(documents, str | bytes) or not isinstance(documents, Iterable):
        raise DataError(f"documents (a {type(documents).__name__}) must be pairs of an id and a text.")
    for pair in cast("Iterable[Any]", documents):
        if not isinstance(pair, tuple | list) or len(cast("Sequence[Any]", pair)) != 2:
            raise DataError(f"a document (a {type(pair).__name__}) must be a pair of an id and a text.")
        name, text = cast("Sequence[Any]", pair)
        yield one_text(name, name="an id"), text_pieces(text)


def _altered(name: str) -> DamagedStoreError:
    reason = f"document {ascii(name)[:80]} does not come back as it was written"
    return DamagedStoreError(f"{reason}; restore the store from a copy.")
