"""Throughput and memory of long texts, and search among many memories.

    python -m benchmarks.store stream --model runs/memory
    python -m benchmarks.store search

`stream` reads a text of five million tokens (the bundled speeches, repeated in random orders) in four ways, each in a
process of its own: the encoder alone on prepared tokens; a session that does not verify its memories; a session that
decodes every chunk to verify it; and a store, which decodes, corrects and writes. Growth of memory is the peak above
the memory of the process after a fiftieth of the text. `search` fills a store with random memories and searches it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import torch

from memlm.data import load_documents
from memlm.session import MemorySession
from memlm.store import ChunkCodec, MemoryStore, StoredDocument, StoreHeader, StoreSearch, TextStore, quantize
from memlm.store.codec import ROWS

WAYS = ("encoder", "session", "session, read back", "store")
_DOCUMENT_CHUNKS = 1000
_QUERIES = 21
T = TypeVar("T")


def long_text(characters: int) -> Iterator[str]:
    """Yield speeches in random orders until there are as many characters."""
    texts = [document.text for document in load_documents("sotu")]
    order = random.Random(0)  # noqa: S311  (no secret)
    while True:
        order.shuffle(texts)
        for text in texts:
            yield text[:characters]
            characters -= len(text)
            if characters <= 0:
                return


class Watch:
    """Measures time and memory while a text is read.

    Attributes:
        warm: characters after which memory counts as settled.
    """

    def __init__(self, characters: int) -> None:
        self.warm = characters // 50
        self.settled = self.peak = 0
        self.began = time.perf_counter()

    def pieces(self, characters: int) -> Iterator[str]:
        """Yield the text, and measure memory after each piece."""
        done = 0
        for piece in long_text(characters):
            yield piece
            done += len(piece)
            now = resident_bytes()
            self.peak = max(self.peak, now)
            if not self.settled and done >= self.warm:
                self.settled = now

    def figures(self, tokens: int) -> dict[str, float]:
        """Return the figures of a finished text."""
        seconds = time.perf_counter() - self.began
        growth = max(self.peak, resident_bytes()) - self.settled
        return {"tokens": tokens, "seconds": seconds, "growth": growth, "settled": self.settled}


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def by_encoder(model: str, tokens: int) -> dict[str, float]:
    """Time the encoder on random tokens, in the batches of sessions and stores."""
    codec = ChunkCodec.load(model)
    length = codec.chunk_length
    ids = torch.randint(2, codec.encoder.config.vocab_size, (ROWS, length))
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        codec.encoder(ids, mask)
        began = time.perf_counter()
        batches = max(1, tokens // (ROWS * length))
        for _ in range(batches):
            codec.encoder(ids, mask)
    return {"tokens": batches * ROWS * length, "seconds": time.perf_counter() - began, "growth": 0, "settled": 0}


def by_session(model: str, characters: int, *, fidelity: float) -> dict[str, float]:
    """Time a session, which forgets the oldest chunks where its decoder has no more positions."""
    session = MemorySession(model, fidelity=fidelity)
    watch = Watch(characters)
    session.read(watch.pieces(characters))
    found = session.stats()
    chunks = found.memories + found.as_tokens + found.forgotten
    return watch.figures(chunks * session.model.config.chunk_length + found.newest)


def by_store(model: str, characters: int) -> dict[str, float]:
    """Time a store that adds the text as one document."""
    with tempfile.TemporaryDirectory() as folder, TextStore.open(Path(folder) / "s", model, write=True) as store:
        watch = Watch(characters)
        with closing(store.add([("long", watch.pieces(characters))])) as told:
            list(told)
        found = watch.figures(0)
        return {**found, "tokens": store.store.stats().tokens}


def stream(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Time one way in this process."""
    if way == "encoder":
        return by_encoder(options.model, options.tokens)
    characters = int(options.tokens * options.characters_per_token)
    if way == "store":
        return by_store(options.model, characters)
    return by_session(options.model, characters, fidelity=0.0 if way == "session" else 0.98)


def compare_streams(options: argparse.Namespace) -> None:
    """Print a row for each way."""
    options.characters_per_token = characters_per_token(options.model)
    print(f"{torch.get_num_threads()} threads, fp32, {options.model}")
    print("| read by | tokens | seconds | tokens/s | share of the first | memory, MB | growth, MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    alone = 0.0
    for way in options.ways:
        found = _apart(way, options)
        rate = found["tokens"] / found["seconds"]
        alone = alone or rate
        print(
            f"| {way} | {found['tokens']:,.0f} | {found['seconds']:.1f} | {rate:,.0f} | {100 * rate / alone:.0f} % | "
            f"{found['settled'] / 1e6:.0f} | {found['growth'] / 1e6:.0f} |",
            flush=True,
        )


def characters_per_token(model: str) -> float:
    """Return the mean number of characters of a token in the bundled text."""
    text = "".join(long_text(2**18))
    return len(text) / len(ChunkCodec.load(model).tokens([text])[0])


def _apart(way: str, options: argparse.Namespace) -> dict[str, float]:
    flags = ["--model", options.model, "--tokens", str(options.tokens), "--way", way]
    command = [sys.executable, "-m", "benchmarks.store", "stream", *flags]
    command += ["--characters-per-token", str(options.characters_per_token)]
    # this very module, with flags that argparse has checked
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)  # noqa: S603


def fill(folder: Path, *, chunks: int, numbers: int) -> None:
    """Write a store of random memories without texts."""
    header = StoreHeader(
        encoder="0" * 64,
        decoder="0" * 64,
        tokenizer="0" * 64,
        chunk_length=16,
        memories_per_chunk=1,
        numbers=numbers,
        bits=8,
    )
    MemoryStore.create(folder, header)
    generator = torch.Generator().manual_seed(0)
    with MemoryStore.open(folder, write=True) as store:
        for first in range(0, chunks, 64 * _DOCUMENT_CHUNKS):
            starts = range(first, min(chunks, first + 64 * _DOCUMENT_CHUNKS), _DOCUMENT_CHUNKS)
            store.add([_document(i, min(_DOCUMENT_CHUNKS, chunks - i), numbers, generator) for i in starts])


def _document(first: int, chunks: int, numbers: int, generator: torch.Generator) -> StoredDocument:
    counts = torch.full((chunks,), 16, dtype=torch.int32)
    return StoredDocument(
        id=f"chunks from {first}",
        memories=quantize(torch.randn(chunks, 1, numbers, generator=generator), 8),
        tokens=counts,
        num_correct=counts,
        corrections=b"",
        text_sha256=hashlib.sha256(b"").hexdigest(),
        text_bytes=0,
    )


def search(options: argparse.Namespace) -> dict[str, float]:
    """Return the figures of searches in one store."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "s"
        _, filling = timed(lambda: fill(folder, chunks=options.chunks, numbers=options.numbers))
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        store, opening = timed(lambda: MemoryStore.open(folder))
        with store:
            found, reading = timed(lambda: StoreSearch(store))
            queries = torch.randn(_QUERIES, 1, options.numbers, generator=torch.Generator().manual_seed(1))
            seconds = [timed(lambda query=query: found.nearest(query, 10))[1] for query in queries]
    raw = options.chunks * options.numbers
    return {
        "fill, s": filling,
        "open, s": opening,
        "first read of all vectors, s": reading,
        "open and ready to search, s": opening + reading,
        "top 10, ms (median)": 1e3 * statistics.median(seconds),
        "top 10, ms (slowest)": 1e3 * max(seconds),
        "bytes on disk per byte of int8 vectors": size / raw,
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of a call and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    reading = commands.add_parser("stream", help="a long text, read in four ways")
    reading.add_argument("--model", required=True, help="folder of a trained memory model")
    reading.add_argument("--tokens", type=int, default=5_000_000, help="of the text, about")
    reading.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS, help="in this order; all by default")
    reading.add_argument("--way", choices=WAYS, help="one way alone, as JSON")
    reading.add_argument("--characters-per-token", type=float, help="of the text; measured by default")
    asking = commands.add_parser("search", help="many memories, searched")
    asking.add_argument("--chunks", type=int, default=1_000_000, help="memories")
    asking.add_argument("--numbers", type=int, default=128, help="of each memory")
    options = parser.parse_args()
    if options.what == "stream" and options.way:
        print(json.dumps(stream(options.way, options)))
    elif options.what == "stream":
        compare_streams(options)
    else:
        print(f"{torch.get_num_threads()} threads, {options.chunks:,} memories of {options.numbers} numbers")
        for name, value in search(options).items():
            print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
