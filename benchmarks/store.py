"""Throughput and memory of long texts, search among many memories, and stores of many documents.

    python -m benchmarks.store stream --model runs/memory
    python -m benchmarks.store search
    python -m benchmarks.store documents --count 200000

`stream` reads a text of five million tokens (the bundled speeches, repeated in random orders) in four ways, each in a
process of its own: the encoder alone on prepared tokens; a session that does not verify its memories; a session that
decodes every chunk to verify it; and a store, which decodes, corrects and writes. Growth of memory is the peak above
the memory of the process after a fiftieth of the text. `search` fills a store with random memories and searches it.
`documents` writes many short texts into a store, checks it, searches it, forgets half of them and compacts it. Each
step is a process of its own, and its memory is the peak of that process, libraries included. By default the model is
untrained and as small as models are, since the store is what is timed: nearly every token of such a store is kept as a
correction.
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
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from memlm.data import load_documents, train_tokenizer
from memlm.models import TextAutoencoder, TextAutoencoderConfig
from memlm.session import MemorySession
from memlm.store import ChunkCodec, MemoryStore, StoredDocument, StoreHeader, StoreSearch, TextStore, quantize
from memlm.store.codec import ROWS

WAYS = ("encoder", "session", "session, read back", "store")
_DOCUMENT_CHUNKS = 1000
_QUERIES = 21
_ONE_BY_ONE = 100
_CHARACTERS = 64
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
    return in_a_process(["stream", *flags, "--characters-per-token", str(options.characters_per_token)])


def in_a_process(arguments: list[str]) -> dict[str, float]:
    """Run this module with these arguments, and return the figures that it prints."""
    command = [sys.executable, "-m", "benchmarks.store", *arguments]
    # this very module, with flags that argparse has checked
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)  # noqa: S603


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


def smallest_model(folder: Path) -> Path:
    """Write an untrained autoencoder of a few thousand weights with a tokenizer, and return its folder."""
    tokenizer = train_tokenizer([next(long_text(2**15))], vocab_size=512)
    sizes = {"hidden_size": 16, "num_heads": 2, "num_encoder_layers": 1, "num_decoder_layers": 1}
    config = TextAutoencoderConfig(vocab_size=len(tokenizer), chunk_length=32, bottleneck_size=16, **sizes)
    TextAutoencoder(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def short_texts(count: int) -> Iterator[tuple[str, list[str]]]:
    """Yield ids and texts, all different, of some sixty characters each."""
    text = next(long_text(2**15))
    for number in range(count):
        first = number * 7 % (len(text) - _CHARACTERS)
        yield f"notes.jsonl/{number}", [f"{number} {text[first : first + _CHARACTERS]}"]


def write_documents(folder: Path, options: argparse.Namespace) -> None:
    """Store the texts; with `per_commit`, so many in each commit, which writes a file of its own."""
    with TextStore.open(folder, options.model, write=True) as texts:
        documents = short_texts(options.count)
        while group := list(islice(documents, options.per_commit or options.count)):
            deque(texts.add(group), maxlen=0)


def search_documents(folder: Path, options: argparse.Namespace) -> None:
    """Find the chunks of one text among all."""
    with TextStore.open(folder, options.model) as texts:
        name, (text,) = next(short_texts(1))
        for hit in texts.search(text):
            texts.text_of(hit)
        if texts.recall(name) != text:
            raise SystemExit(f"{name} came back as another text.")


def forget_half(folder: Path, options: argparse.Namespace) -> None:
    """Forget every second document in one commit."""
    with MemoryStore.open(folder, write=True) as store:
        store.delete([name for number, (name, _) in enumerate(short_texts(options.count)) if number % 2])


def forget_one_by_one(folder: Path, options: argparse.Namespace) -> None:
    """Forget a hundred documents in a commit each."""
    names = [name for number, (name, _) in enumerate(short_texts(options.count)) if number and number % 2 == 0]
    with MemoryStore.open(folder, write=True) as store:
        for name in names[:_ONE_BY_ONE]:
            store.delete([name])


def compact_documents(folder: Path, _options: argparse.Namespace) -> None:
    """Free the space of the documents that were forgotten."""
    with MemoryStore.open(folder, write=True) as store:
        store.compact()


def verify_documents(folder: Path, _options: argparse.Namespace) -> None:
    """Check every byte of the store."""
    if problems := MemoryStore.verify(folder):
        raise SystemExit(problems[0])


def list_documents(folder: Path, _options: argparse.Namespace) -> None:
    """Count documents and chunks of low fidelity, as `memlm stats` does."""
    with MemoryStore.open(folder) as store:
        store.stats()
        store.chunks_below(0.98)


STEPS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "write": write_documents,
    "verify": verify_documents,
    "stats": list_documents,
    "search": search_documents,
    "forget half": forget_half,
    f"forget {_ONE_BY_ONE} more, one by one": forget_one_by_one,
    "compact": compact_documents,
    "verify again": verify_documents,
    "search again": search_documents,
}


def step(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one step in this process; return its seconds and the peak of the process's memory in bytes (Linux)."""
    began = time.process_time()
    _, seconds = timed(lambda: STEPS[name](Path(options.store), options))
    cpu_seconds = time.process_time() - began
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {"seconds": seconds, "CPU seconds": cpu_seconds, "peak": 1024 * int(peak)}


def many_documents(options: argparse.Namespace) -> None:
    """Print a row for each step."""
    with tempfile.TemporaryDirectory() as parent:
        store = Path(parent) / "s"
        model = options.model or str(smallest_model(Path(parent) / "model"))
        flags = ["--store", str(store), "--model", model, "--count", str(options.count)]
        print(f"{options.count:,} documents, {model if options.model else 'an untrained model'}")
        print("| step | seconds | CPU seconds | peak memory, MB | files of segments | store, MB |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in STEPS:
            found = in_a_process(["documents", *flags, "--per-commit", str(options.per_commit), "--step", name])
            sizes = [file.stat().st_size for file in store.rglob("*") if file.is_file()]
            files = sum(1 for _ in (store / "segments").iterdir())
            row = f"{found['seconds']:.1f} | {found['CPU seconds']:.1f} | {found['peak'] / 1e6:.0f}"
            row += f" | {files} | {sum(sizes) / 1e6:.0f}"
            print(f"| {name} | {row} |", flush=True)


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
    many = commands.add_parser("documents", help="many short texts: written, searched, forgotten, compacted")
    many.add_argument("--count", type=int, default=200_000, help="documents")
    many.add_argument("--per-commit", type=int, default=0, help="documents of each commit; by default as remember does")
    many.add_argument("--model", help="folder of a trained model; by default a small untrained one")
    many.add_argument("--store", help="of one step alone")
    many.add_argument("--step", choices=STEPS, help="one step alone, as JSON")
    options = parser.parse_args()
    if options.what == "documents" and options.step:
        print(json.dumps(step(options.step, options)))
    elif options.what == "documents":
        many_documents(options)
    elif options.what == "stream" and options.way:
        print(json.dumps(stream(options.way, options)))
    elif options.what == "stream":
        compare_streams(options)
    else:
        print(f"{torch.get_num_threads()} threads, {options.chunks:,} memories of {options.numbers} numbers")
        for name, value in search(options).items():
            print(f"| {name} | {value:.3f} |")


if __name__ == "__main__":
    main()
