"""The result of an evaluation: measurements, and the passages and costs that a report shows beside them."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.measurement import Cost, Measurement, Passage, SavedPassage
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
    return [Cost("gzip -9, chunk by chunk", 8 * zipped / size), Cost("xz -9e, chunk by chunk", 8 * packed / size)]


def _bare_xz_bytes(content: bytes) -> int:
    # the raw format: headers and checksums would dominate a short chunk. A window as large as the chunk gives the same
    # bytes as the preset's 64 MiB, which take 40 ms to allocate
    window = max(_SMALLEST_WINDOW, len(content))
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}]
    return len(lzma.compress(content, format=lzma.FORMAT_RAW, filters=raw))


_PASSAGES = 5
Decode = Callable[[Sequence[int]], str]
"""Function from token ids to text."""
Report = Callable[[str], None]
"""Function that is told which part of an evaluation begins."""


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        measurements: all figures.
        accuracy_by_position: token accuracy at each position of a chunk.
        passages: texts beside what was decoded from their memories.
        costs: bits per byte of the memories and of general compressors.
        saved: texts and what memories saved at each of their tokens.
    """

    measurements: list[Measurement]
    accuracy_by_position: list[float]
    passages: list[Passage]
    costs: list[Cost]
    saved: list[SavedPassage] = field(default_factory=list)


def passages_of(decode: Decode, rows: PackedRows, returned: Int[Tensor, "rows tokens"]) -> list[Passage]:
    """Return full chunks at even distances, chosen by position and never by score, beside the returned tokens."""
    full = rows.attention_mask.all(1).nonzero().flatten()
    if not len(full):
        return []
    chosen = full[torch.linspace(0, len(full) - 1, min(_PASSAGES, len(full))).long()].unique()
    return [_passage(decode, rows, returned, int(row)) for row in chosen]


def saved_passage(name: str, decode: Decode, ids: Sequence[int], nats: Sequence[float]) -> SavedPassage:
    """Return what was saved at each token, or at several tokens that are one character together."""
    pieces: list[tuple[str, float]] = []
    run: list[int] = []
    saved = 0.0
    for token, value in zip(ids, nats, strict=True):
        run, saved = [*run, token], saved + value
        text = decode(run)
        if "\ufffd" not in text:
            pieces.append((text, saved))
            run, saved = [], 0.0
    return SavedPassage(name, [*pieces, (decode(run), saved)] if run else pieces)


def _passage(decode: Decode, rows: PackedRows, returned: Int[Tensor, "rows tokens"], row: int) -> Passage:
    original, given = rows.input_ids[row].tolist(), returned[row].tolist()
    pieces: list[tuple[str, str, bool]] = []
    before: list[int] = []
    after: list[int] = []
    for a, b in zip(original, given, strict=True):
        before.append(a)
        after.append(b)
        texts = decode(before), decode(after)
        if "\ufffd" in texts[0]:
            continue  # half a character: wait for the rest of it
        pieces.append((*texts, before == after))
        before, after = [], []
    if before:
        pieces.append((decode(before), decode(after), before == after))
    return Passage(rows.document_ids[int(rows.document_index[row])], pieces)
