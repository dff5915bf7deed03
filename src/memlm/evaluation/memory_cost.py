"""What memories take on disk, beside general compressors on the same text.

gzip and xz are lossless and are given the whole text, their best case; gzip also passage by passage, one chunk at a
time as a memory is. A memory's bits mean something only beside its token accuracy, which stands elsewhere.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from memlm.data import PackedRows, decode_ids
from memlm.errors import UserError
from memlm.inference import stored_bytes
from memlm.models import TextAutoencoderConfig


@dataclass(frozen=True)
class MemoryCost:
    """Bytes that one way of keeping a text takes.

    Attributes:
        name: "memory/fp16", "memory/int8", "memory/int4", "gzip -9/whole_text", "gzip -9/per_passage" or
            "xz -9e/whole_text".
        num_bytes: what is kept, scales included.
        text_bytes: UTF-8 bytes of the text.
    """

    name: str
    num_bytes: int
    text_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits kept for each byte of text; plain text is 8."""
        return 8 * self.num_bytes / self.text_bytes


def memory_costs(
    rows: PackedRows, config: TextAutoencoderConfig, tokenizer: PreTrainedTokenizerBase
) -> list[MemoryCost]:
    """Every way of keeping the text of these rows.

    Raises:
        UserError: rows without text.
    """
    texts = _texts(rows, tokenizer)
    whole = "".join(texts).encode()
    if not whole:
        raise UserError(f"{len(rows)} rows hold 0 bytes of text; give text to compare with.")
    vectors = len(rows) * config.memories_per_chunk
    kept = {
        f"memory/{name}": stored_bytes(vectors, config.bottleneck_size, bits)
        for name, bits in _WIDTHS.items()
    }
    kept["gzip -9/whole_text"] = _gzip(whole)
    kept["gzip -9/per_passage"] = sum(_gzip(text) for text in _passages(rows, tokenizer))
    kept["xz -9e/whole_text"] = len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME))
    return [MemoryCost(name, size, len(whole)) for name, size in kept.items()]


_WIDTHS = {"fp16": 16, "int8": 8, "int4": 4}


def _gzip(content: bytes) -> int:
    return len(gzip.compress(content, 9, mtime=0))


def _texts(rows: PackedRows, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Documents put together from their rows, so that no character is cut."""
    tokens: dict[int, list[int]] = {}
    for owner, ids, mask in zip(
        rows.document_index.tolist(), rows.input_ids, rows.attention_mask.bool(), strict=True
    ):
        tokens.setdefault(owner, []).extend(ids[mask].tolist())
    return [decode_ids(tokenizer, ids) for ids in tokens.values()]


def _passages(rows: PackedRows, tokenizer: PreTrainedTokenizerBase) -> Iterator[bytes]:
    """The text of each row; a character cut by a row's end counts as U+FFFD, a byte more or two."""
    for ids, mask in zip(rows.input_ids, rows.attention_mask.bool(), strict=True):
        yield decode_ids(tokenizer, ids[mask].tolist()).encode()
