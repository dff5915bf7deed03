"""The commands on stores of memories: remember, recall, search, stats, verify, forget and compact."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from memlm.cli.arguments import parse
from memlm.errors import ConfigError, DamagedStoreError, DataError, StoreError

if TYPE_CHECKING:
    from memlm.store import TextStore
    from memlm.store.text_store import EncodeBatches
    from memlm.training.loop.callbacks import ProgressView


@dataclass(frozen=True, kw_only=True)
class Remember:
    """Store text files as memories, with the corrections that make every file exact.

    The path of a file is its id in the store. Files that are stored already are not encoded again, and the same command
    continues where an earlier one was stopped. Under torchrun, on one machine or several, all processes encode; the
    files and the store are those of the first process.

      memlm remember notes/*.md --store notes.mem --model runs/demo
    """

    paths: Positional[tuple[str, ...]]
    """Text files in UTF-8."""
    store: str = "memories.mem"
    """Folder of the store; it is created if it does not exist."""
    model: str | None = None
    """Folder of a trained run; by default the one that the store was made with."""
    bits: Literal[16, 8, 4] | None = None
    """Bits of a stored number in a new store; 8 by default."""
    replace: bool = False
    """Replace stored texts that have the same path and another content."""
    retrieval: str | None = None
    """In a new store, search vectors of this encoder (a folder or an id) instead of the memories."""
    workers: int = 1
    """Number of processes that encode; they share the cores."""
    wait: float = 0.0
    """Seconds to wait while another process writes to the store."""


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
    wait: float = 0.0
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
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of chunks to print."""
    document: tuple[str, ...] = ()
    """Search only the documents with these ids."""
    json: bool = False
    """Print one JSON object per line."""


@dataclass(frozen=True, kw_only=True)
class Stats(_Store):
    """Print the size of a store, the fidelity of its memories, and the bytes it needs per byte of text."""

    fidelity: float = 0.98
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


def remember(arguments: list[str]) -> None:
    """Encode text files into a store, and print the number of files by outcome."""
    options = parse(Remember, arguments, command="remember")
    from memlm.store import TextStore, read_header
    from memlm.training.loop.distributed import launched

    if options.workers < 1:
        raise ConfigError(f"--workers ({options.workers}) must be at least 1.")
    if launched() and options.workers > 1:
        raise ConfigError(f"--workers ({options.workers}) is for one process; under torchrun start more processes.")
    if int(os.environ.get("RANK", "0")):
        _serve(options)
        return
    paths = _files(options.paths)
    stored = read_header(Path(options.store)) if Path(options.store).exists() else None
    model = options.model or (model_of(options.store) if stored else None)
    retrieval = options.retrieval or (stored.retrieval_model if stored else None)
    if model is None:
        raise ConfigError("a new store needs a model; give --model RUN, the folder of a trained run.")
    with TextStore.open(
        options.store, model, write=True, bits=options.bits, retrieval=retrieval, wait=options.wait
    ) as store:
        outcomes = _add(store, paths, options, Path(model))
        stats = store.store.stats()
    counts = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items() if count)
    print(f"{counts}; {stats.documents} documents in {options.store}, {100 * stats.fidelity:.2f} % of tokens by memory")


def _add(store: TextStore, paths: list[Path], options: Remember, model: Path) -> dict[str, int]:
    from memlm.data.corpus import stream_file
    from memlm.training import Interrupted
    from memlm.training.loop.distributed import joined

    outcomes = {"written": 0, "replaced": 0, "unchanged": 0}
    documents = ((str(path), stream_file(path)) for path in paths)
    add = partial(store.add, documents, replace=options.replace, encode=_parallel_encoder(store, options, model))
    size = sum(path.stat().st_size for path in paths)
    try:
        with _progress(size, "byte") as view, joined(), closing(add(progress=_speed(view))) as results:
            for result in results:
                outcomes[result.outcome] += 1
    except KeyboardInterrupt:
        raise Interrupted("stopped; what was stored is kept, and the same command continues.") from None
    return outcomes


def _parallel_encoder(store: TextStore, options: Remember, model: Path) -> EncodeBatches | None:
    from memlm.store import encode_over_ranks, encode_with_workers
    from memlm.training.loop.distributed import launched

    header, workers = store.store.header, options.workers
    if launched():
        return partial(encode_over_ranks, codec=store.codec, header=header, retrieval=store.retrieval)
    if workers > 1:
        retrieval = header.retrieval_model
        return partial(encode_with_workers, model=model, header=header, retrieval=retrieval, workers=workers)
    return None


def _speed(view: ProgressView) -> Callable[[int, int], None]:
    """Return a callback that shows bytes done and tokens encoded per second."""
    done, tokens, began = 0, 0, time.monotonic()

    def progress(size: int, encoded: int) -> None:
        nonlocal done, tokens
        done, tokens = done + size, tokens + encoded
        view.update(done, f"{tokens / max(time.monotonic() - began, 1e-9):,.0f} tokens/s")

    return progress


def _serve(options: Remember) -> None:
    """Encode for the first process of a launcher."""
    from memlm.encoders import open_encoder
    from memlm.store import ChunkCodec, serve_rank
    from memlm.training.loop.distributed import joined

    if options.model is None:
        raise ConfigError("under torchrun every process needs the model; give --model RUN.")
    codec = ChunkCodec.load(options.model)
    retrieval = None if options.retrieval is None else open_encoder(options.retrieval)
    with joined():
        serve_rank(codec, retrieval)


def _files(names: tuple[str, ...]) -> list[Path]:
    if not names:
        raise DataError("no files; give at least one text file.")
    paths = [Path(name) for name in names]
    for path in paths:
        if not path.is_file():
            raise DataError(f"'{path}' is {'a folder; give its files' if path.is_dir() else 'not there'}.")
    return paths


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
    with open_texts(options.store, options.model, retrieval=True) as store:
        for hit in store.search(options.query, options.k, documents=options.document or None):
            text = store.text_of(hit)
            if options.json:
                print(json.dumps({**asdict(hit), "text": text}))
                continue
            chunk = str(hit.chunk) if hit.part is None else f"{hit.part}:{hit.chunk}"
            print(f"{hit.score:.4f}  {hit.id} {chunk}  {_one_line(text)}")


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
    print(
        f"{stats.documents} documents, {stats.chunks} chunks of {header.chunk_length} tokens, {stats.tokens} tokens, "
        f"{stats.text_bytes} bytes of text\n"
        f"memories: {header.memories_per_chunk} x {header.numbers} numbers a chunk, {header.bits} bits each\n"
        f"fidelity: {100 * stats.fidelity:.2f} % of tokens come back from memory alone; "
        f"{low} of {chunks} chunks ({100 * low / max(chunks, 1):.1f} %) are below {options.fidelity}: read as tokens\n"
        f"bytes per byte of text: {found['store_bytes_per_byte']:.3f} in total, "
        f"{found['correction_bytes_per_byte']:.3f} of them corrections"
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

    with _progress(0, "document") as view:

        def progress(done: int, total: int) -> None:
            if not view.total:
                view.total = total
                view.start(0)
            view.update(done, "")

        problems = MemoryStore.verify(options.store, wait=options.wait, progress=progress)
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
        with _progress(sum(1 for _ in store.entries()), "document") as view:
            store.compact(progress=lambda done, _: view.update(done, ""))
    print(f"{dead} chunks of deleted documents are gone from {options.store}")


@contextmanager
def _progress(total: int, noun: str) -> Generator[ProgressView]:
    from memlm.training.loop.callbacks import ProgressView

    view = ProgressView(total, shown=True, noun=noun)
    if total:
        view.start(0)
    try:
        yield view
    finally:
        view.stop()


def open_texts(folder: str, model: str | None, *, retrieval: bool = False) -> TextStore:
    """Open a store for reading with the model in a folder, by default the one that it was made with."""
    from memlm.store import TextStore, read_header

    encoder = read_header(Path(folder)).retrieval_model if retrieval else None
    return TextStore.open(folder, model or model_of(folder), retrieval=encoder)


def model_of(folder: str) -> str:
    """Return the folder of the model that a store was made with.

    Raises:
        StoreError: the model is not there any more.
    """
    from memlm.store import read_header

    hint = read_header(Path(folder)).model
    if hint is None or not Path(hint).is_dir():
        raise StoreError(f"the model of '{folder}' is not at '{hint}'; say where it is (--model RUN).")
    return hint


def _one_line(text: str) -> str:
    """Return a text on one line without characters that move the cursor or change colours of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))
