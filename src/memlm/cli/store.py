"""The commands on stores of memories: recall, search, stats, verify, forget and compact."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from memlm.cli.arguments import Positive, Seconds, Share, parse
from memlm.errors import DamagedStoreError, StoreError, one_line

if TYPE_CHECKING:
    from memlm.store import TextStore
    from memlm.store.format.header import SlotFormat
    from memlm.training.loop.callbacks import ProgressView


@dataclass(frozen=True, kw_only=True)
class _Store:
    store: Positional[str]
    """Folder of the store."""


@dataclass(frozen=True, kw_only=True)
class _StoreAndModel(_Store):
    model: str | None = None
    """Folder of the model that wrote the store, if it has moved since."""


@dataclass(frozen=True, kw_only=True)
class _WaitingStore(_Store):
    wait: Seconds = 0.0
    """Seconds to wait while another process writes to the store."""


@dataclass(frozen=True, kw_only=True)
class Recall(_StoreAndModel):
    """Print a document of a store, byte for byte, or print what its memories alone give back."""

    id: Positional[str]
    """The document's id, which is the path it was stored from."""
    exact: bool = True
    """Apply the corrections and check every byte; --no-exact reads the memories alone."""


@dataclass(frozen=True, kw_only=True)
class Search(_StoreAndModel):
    """Print the chunks of a store that are nearest to a text by exact cosine, with their own text."""

    query: Positional[str]
    """The text to search for. A long text finds the chunks that are nearest to any of its own chunks."""
    k: Annotated[Positive, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of chunks to print."""
    document: tuple[str, ...] = ()
    """Search only the documents with these ids."""
    retrieval: str | None = None
    """Folder or id of the store's retrieval encoder, if it has moved since."""
    prompt: str | None = None
    """Prompt before the query: a name that the store's retrieval encoder declares, or a text; by default its own for
    queries."""
    json: bool = False
    """Print one JSON object per line."""


@dataclass(frozen=True, kw_only=True)
class Stats(_Store):
    """Print the size of a store, the fidelity of its memories, and the bytes it needs per byte of text."""

    fidelity: Share = 0.98
    """Count chunks whose memories give back a smaller share of their tokens; sessions read these as tokens."""
    compare: bool = False
    """Recall all texts and also print their size under gzip, xz and zstd."""
    json: bool = False
    """Print only JSON on stdout."""


@dataclass(frozen=True, kw_only=True)
class Verify(_StoreAndModel, _WaitingStore):
    """Check every file and every document of a store against its hashes, and print each problem."""

    texts: bool = False
    """Also recall every document and check its text; this needs the model and takes as long as encoding did."""


@dataclass(frozen=True, kw_only=True)
class Forget(_WaitingStore):
    """Remove documents from a store, either all of them or none; `memlm compact` frees their space."""

    ids: Positional[tuple[str, ...]]
    """Ids of the documents, which are the paths they were stored from."""


@dataclass(frozen=True, kw_only=True)
class Compact(_WaitingStore):
    """Free the space of removed documents by writing the others into new files; readers can continue meanwhile."""


def recall(arguments: list[str]) -> None:
    """Print a document."""
    options = parse(Recall, arguments, command="recall")
    with open_texts(options.store, options.model) as store:
        out = sys.stdout.buffer
        if options.exact:
            for part in store.recall_parts(options.id):
                out.write(part)
        else:
            out.write(store.reading(options.id).encode(errors="replace"))
        out.flush()


def search(arguments: list[str]) -> None:
    """Print the nearest chunks."""
    options = parse(Search, arguments, command="search")
    with open_texts(options.store, options.model, search=True, retrieval=options.retrieval) as store:
        for hit in store.search(options.query, options.k, documents=options.document or None, prompt=options.prompt):
            text = store.text_of(hit)
            if options.json:
                print(json.dumps({**asdict(hit), "text": text}))
                continue
            chunk = str(hit.chunk) if hit.part is None else f"{hit.part}:{hit.chunk}"
            print(f"{hit.score:.4f}  {one_line(hit.id)} {chunk}  {one_line(text)}")


def stats(arguments: list[str]) -> None:
    """Print the size and the fidelity of a store."""
    options = parse(Stats, arguments, command="stats")
    from memlm.store import MemoryStore

    with MemoryStore.open(options.store) as store:
        header, stats = store.header, store.stats()
        low, chunks = store.chunks_below(options.fidelity)
    text = max(stats.text_bytes, 1)
    found: dict[str, float | int] = {
        **asdict(stats),
        "chunks_as_tokens": low,
        "share_as_tokens": low / max(chunks, 1),
        "store_bytes_per_byte": sum(f.stat().st_size for f in Path(options.store).rglob("*") if f.is_file()) / text,
        "correction_bytes_per_byte": stats.correction_bytes / text,
    }
    if options.compare:
        found |= _compressed_sizes(options.store)
    if options.json:
        print(json.dumps({**found, "bits": header.bits, "chunk_length": header.chunk_length}))
        return
    if header.slots is None:
        kept = (
            f"memories: {header.memories_per_chunk} x {header.numbers} numbers a chunk, {header.bits} bits each\n"
            f"fidelity: {100 * stats.fidelity:.2f} % of tokens come back from memory alone; {low} of {chunks} chunks "
            f"({100 * low / max(chunks, 1):.1f} %) are below {options.fidelity}: read as tokens"
        )
    elif header.slots.injection == "kv":
        heads = f"{header.slots.heads} heads of {header.numbers} numbers, {header.bits} bits each"
        kept = f"memories: {ratio_of(header.slots)}, keys and values of {header.slots.layers} layers with {heads}"
    else:
        kept = f"memories: {ratio_of(header.slots)}, a vector of {header.numbers} numbers, {header.bits} bits each"
    print(
        f"{stats.documents} documents, {stats.chunks} chunks of {header.chunk_length} tokens, {stats.tokens} tokens, "
        f"{stats.text_bytes} bytes of text\n"
        f"{kept}\n"
        f"bytes per byte of text: {found['store_bytes_per_byte']:.3f} in total, "
        f"{found['correction_bytes_per_byte']:.3f} of them {'corrections' if header.slots is None else 'text'}"
    )
    if options.compare:
        sizes = ", ".join(f"{name} {found[f'{name}_bytes_per_byte']:.3f}" for name in ("gzip", "xz", "zstd"))
        print(f"the same text as one stream: {sizes}")
    if stats.dead_chunks:
        print(f"{stats.dead_chunks} chunks of deleted documents; memlm compact {options.store} frees their space")


def _compressed_sizes(folder: str) -> dict[str, float]:
    """Return the bytes per byte of all texts as one stream, which suits compressors best."""
    from memlm.evaluation import compressor_costs

    with open_texts(folder, None) as texts:
        pieces = (part for entry in texts.store.documents() for part in texts.recall_parts(entry.id))
        return {f"{cost.name.split()[0]}_bytes_per_byte": cost.bits_per_byte / 8 for cost in compressor_costs(pieces)}


def verify(arguments: list[str]) -> None:
    """Check a store and print each problem."""
    options = parse(Verify, arguments, command="verify")
    from memlm.store import MemoryStore

    with progress_view(0, "document") as view:
        problems = MemoryStore.verify(options.store, wait=options.wait, progress=counted_by(view))
    problems += _text_problems(options) if options.texts and not problems else []
    for problem in problems:
        print(problem)
    if problems:
        raise DamagedStoreError(f"{len(problems)} problems in '{options.store}'; restore it from a copy.")
    print(f"{options.store}: every byte is as it was written.")


def _text_problems(options: Verify) -> list[str]:
    found: list[str] = []
    with open_texts(options.store, options.model) as store:
        for entry in store.store.documents():
            try:
                deque(store.recall_parts(entry.id), maxlen=0)
            except DamagedStoreError as error:
                found.append(str(error))
    return found


def forget(arguments: list[str]) -> None:
    """Remove documents and print how many are left."""
    options = parse(Forget, arguments, command="forget")
    from memlm.store import MemoryStore

    if not options.ids:
        raise StoreError("no ids; give at least one document.")
    with MemoryStore.open(options.store, write=True, wait=options.wait) as store:
        store.delete(options.ids)
        print(f"{len(set(options.ids))} removed, {len(store)} documents left in {options.store}")


def compact(arguments: list[str]) -> None:
    """Free the space of removed documents and print how many chunks they had."""
    options = parse(Compact, arguments, command="compact")
    from memlm.store import MemoryStore

    with MemoryStore.open(options.store, write=True, wait=options.wait) as store:
        dead = store.stats().dead_chunks
        with progress_view(sum(1 for _ in store.entries()), "document") as view:
            store.compact(progress=lambda done, _: view.update(done, ""))
    print(f"{dead} chunks of deleted documents are gone from {options.store}")


def ratio_of(slots: SlotFormat) -> str:
    """Return the tokens for each slot as text."""
    return f"a memory for {slots.tokens_per_memory:g} tokens"


@contextmanager
def progress_view(total: int, noun: str) -> Generator[ProgressView]:
    """Show progress while a block runs."""
    from memlm.training.loop.callbacks import ProgressView

    view = ProgressView(total, shown=True, noun=noun)
    if total:
        view.start(0)
    try:
        yield view
    finally:
        view.stop()


def counted_by(view: ProgressView) -> Callable[[int, int], None]:
    """Return a callback that shows how many of all are done, where the number of all is not known before."""

    def progress(done: int, total: int) -> None:
        if not view.total:
            view.total = total
            view.start(0)
        view.update(done, "")

    return progress


def open_texts(folder: str, model: str | None, *, search: bool = False, retrieval: str | None = None) -> TextStore:
    """Open a store for reading with the model in a folder, by default the one that it was made with.

    Args:
        folder: of the store.
        model: folder of the model.
        search: open the retrieval encoder, too.
        retrieval: folder or id of that encoder; by default where it was when the store was made.

    Raises:
        StoreError: the model is not there any more, or a retrieval encoder is given to a store without one.
        CheckpointError: the retrieval encoder is not on this machine.
    """
    from memlm.store import TextStore

    encoder = retrieval or (retrieval_of(folder) if search else None)
    place = model or model_of(folder)
    return TextStore.open(folder, place, retrieval=encoder)


def model_of(folder: str) -> str:
    """Return the folder of the model that a store was made with.

    Raises:
        StoreError: the model is not there any more.
    """
    from memlm.models.runtime import local_model
    from memlm.store import read_header

    header = read_header(Path(folder))
    hint = header.model
    of_hub = header.slots is not None and hint is not None and not Path(hint).is_absolute()
    if hint is None or not (of_hub or Path(hint).is_dir()):
        raise StoreError(f"the model of '{folder}' is not at '{hint}'; say where it is (--model RUN).")
    return local_model(hint, source=folder, remedy="name it, or one that you trust (--model PATH_OR_HUB_ID)")


def retrieval_of(folder: str) -> str | None:
    """Return the folder of the encoder whose vectors a store holds, None for a store of memories alone.

    Raises:
        CheckpointError: the encoder is not on this machine; a store never makes memlm ask the Hub.
    """
    from memlm.models.runtime import local_model
    from memlm.store import read_header

    hint = read_header(Path(folder)).retrieval_model
    return hint and local_model(
        hint, source=folder, remedy="say where it is (--retrieval), or download it (hf download)"
    )
