"""Bits per byte of memories at several precisions, and of general compressors on the same text."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterable, Sequence

from memlm.measurement import Cost
from memlm.store import Bits, bits_per_vector

_BLOCK = 2**25
"""Bytes in each call of zstd: several times its window at level 19."""
_SMALLEST_WINDOW = 4096
"""Bytes of the smallest window that xz accepts."""


def memory_costs(*, chunks: int, memories_per_chunk: int, numbers: int, text_bytes: int) -> list[Cost]:
    """Return the cost of memories at fp16, int8 and int4, scales included; the model itself is not counted.

    Args:
        chunks: the number of chunks.
        memories_per_chunk: vectors per chunk.
        numbers: components of a vector.
        text_bytes: bytes of the text in UTF-8.
    """
    widths: tuple[tuple[str, Bits], ...] = (("memory fp16", 16), ("memory int8", 8), ("memory int4", 4))
    vectors = chunks * memories_per_chunk
    return [Cost(name, vectors * bits_per_vector(numbers, bits) / text_bytes) for name, bits in widths]


def compressor_costs(pieces: Iterable[bytes]) -> list[Cost]:
    """Return the cost of gzip -9, xz -9e and zstd -19 on a text as one stream, where repetitions may be far apart."""
    zipped, xz = zlib.compressobj(9, wbits=31), lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    packed = [0, 0, 0]
    block, size = bytearray(), 0
    for piece in pieces:
        size += len(piece)
        packed[0] += len(zipped.compress(piece))
        packed[1] += len(xz.compress(piece))
        block += piece
        if len(block) >= _BLOCK:
            packed[2] += _zstd_bytes(block)
            block.clear()
    packed[0] += len(zipped.flush())
    packed[1] += len(xz.flush())
    packed[2] += _zstd_bytes(block)
    names = ("gzip -9, whole text", "xz -9e, whole text", "zstd -19, whole text")
    return [Cost(name, 8 * count / max(size, 1)) for name, count in zip(names, packed, strict=True)]


def _zstd_bytes(block: bytearray) -> int:
    # comes with datasets; Python's own is only in 3.14
    import pyarrow as pa

    return pa.Codec("zstd", compression_level=19).compress(bytes(block)).size if block else 0


def chunkwise_costs(chunks: Sequence[str]) -> list[Cost]:
    """Return the cost of gzip and xz on each chunk alone, as a memory encodes each chunk alone."""
    contents = [chunk.encode() for chunk in chunks if chunk]
    size = sum(map(len, contents))
    zipped = sum(len(gzip.compress(c, 9, mtime=0)) for c in contents)
    packed = sum(map(_bare_xz_bytes, contents))
    return [
        Cost("gzip -9, chunk by chunk", 8 * zipped / size),
        Cost("xz -9e, chunk by chunk", 8 * packed / size),
    ]


def _bare_xz_bytes(content: bytes) -> int:
    # the raw format: headers and checksums would dominate a short chunk. A window as large as the chunk gives the same
    # bytes as the preset's 64 MiB, which take 40 ms to allocate
    window = max(_SMALLEST_WINDOW, len(content))
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return len(lzma.compress(content, format=lzma.FORMAT_RAW, filters=raw))
