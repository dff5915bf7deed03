"""`memlm stats`: how much a store holds, and how faithfully."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from memlm.cli.arguments import parse


@dataclass(frozen=True)
class Stats:
    """How much a store holds, how faithful its memories are, and what its text takes elsewhere."""

    store: Positional[str]
    """Folder of the store."""
    fidelity: float = 0.98
    """Chunks whose memories give back a smaller share of their tokens are read as tokens by sessions."""
    compare: bool = False
    """Beside gzip, xz and zstd of the same text, which is recalled for it."""
    json: bool = False
    """Print JSON on stdout, and nothing else there."""


def run(arguments: list[str]) -> None:
    """Parse, count, print."""
    import json

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
        "store_bytes_per_byte": _size(Path(options.store)) / text,
        "correction_bytes_per_byte": stats.correction_bytes / text,
    }
    if options.compare:
        found |= _compared(options.store)
    if options.json:
        print(json.dumps({**found, "bits": header.bits, "chunk_length": header.chunk_length}))
        return
    print(
        f"{stats.documents} documents, {stats.chunks} chunks of {header.chunk_length} tokens, {stats.tokens} tokens, "
        f"{stats.text_bytes} bytes of text\n"
        f"memories: {header.memories_per_chunk} x {header.numbers} numbers a chunk, {header.bits} bits each\n"
        f"fidelity: {100 * stats.fidelity:.2f} % of tokens come back from memory alone; "
        f"{low} of {chunks} chunks ({100 * low / max(chunks, 1):.1f} %) are below {options.fidelity}: read as tokens\n"
        f"bytes per byte of text: {found['store_bytes_per_byte']:.3f} all together, "
        f"{found['correction_bytes_per_byte']:.3f} of them corrections"
    )
    if options.compare:
        sizes = ", ".join(f"{name} {found[f'{name}_bytes_per_byte']:.3f}" for name in ("gzip", "xz", "zstd"))
        print(f"the same text as one stream: {sizes}")
    if stats.dead_chunks:
        print(f"{stats.dead_chunks} chunks of deleted documents; memlm compact {options.store} gives their space back")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _compared(folder: str) -> dict[str, float]:
    """All texts as one, which is what compressors are best at."""
    from memlm.cli.stores import open_texts
    from memlm.evaluation import compressor_costs

    with open_texts(folder, None) as texts:
        pieces = (part for entry in texts.store.documents() for part in texts.recall_parts(entry.id))
        return {f"{cost.name.split()[0]}_bytes_per_byte": cost.bits_per_byte / 8 for cost in compressor_costs(pieces)}
