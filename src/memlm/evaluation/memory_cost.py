"""What memories cost beside the text: bits per byte at several widths, next to general compressors of the same text."""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Sequence
from dataclasses import dataclass

from memlm.inference import Bits, bits_per_vector


@dataclass(frozen=True)
class Cost:
    """Bits that a way of keeping a text takes for each byte of it."""

    name: str
    bits_per_byte: float


def memory_costs(*, chunks: int, memories_per_chunk: int, numbers: int, text_bytes: int) -> list[Cost]:
    """Memories at fp16, int8 and int4, scales included; the model itself is not counted."""
    widths: tuple[tuple[str, Bits], ...] = (("memory fp16", 16), ("memory int8", 8), ("memory int4", 4))
    vectors = chunks * memories_per_chunk
    return [Cost(name, vectors * bits_per_vector(numbers, bits) / text_bytes) for name, bits in widths]


def compressor_costs(texts: Sequence[str]) -> list[Cost]:
    """Gzip -9 and xz -9e of all texts together, which may use repetitions that lie far apart."""
    content = "".join(texts).encode()
    packed = {
        "gzip -9, whole text": gzip.compress(content, 9, mtime=0),
        "xz -9e, whole text": lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
    }
    return [Cost(name, 8 * len(out) / len(content)) for name, out in packed.items()]


def chunkwise_costs(chunks: Sequence[str]) -> list[Cost]:
    """Gzip and xz of each chunk alone, as a memory stands for each chunk alone."""
    contents = [chunk.encode() for chunk in chunks if chunk]
    size = sum(map(len, contents))
    zipped = sum(len(gzip.compress(c, 9, mtime=0)) for c in contents)
    # the barest container that xz offers: a chunk is too short to carry headers and checksums
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    packed = sum(len(lzma.compress(c, format=lzma.FORMAT_RAW, filters=raw)) for c in contents)
    return [
        Cost("gzip -9, chunk by chunk", 8 * zipped / size),
        Cost("xz -9e, chunk by chunk", 8 * packed / size),
    ]
