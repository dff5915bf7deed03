"""The decoder and the documents that benchmarks of pretrained decoders measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memlm.data import Document, load_documents, split_documents
from memlm.models.runtime import Device, device_of
from memlm.models.slots import MemoryDecoder


@dataclass(frozen=True)
class Decoder:
    """A decoder, and where it computes."""

    decoder: str
    """Folder or Hub id of a decoder, or folder of a run that trained one to write memories."""
    device: Device = "auto"
    """Device of the decoder; a GPU where there is one by default."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the decoder's weights."""

    def load(self, path: str | None = None, **options: Any) -> MemoryDecoder:
        """Return the decoder, or that of another path."""
        given = {"dtype": self.dtype, "device_map": device_of(self.device), **options}
        return MemoryDecoder.from_pretrained(path or self.decoder, **given)


@dataclass(frozen=True)
class Source(Decoder):
    """A decoder, and documents that it reads."""

    text: str = "sotu"
    """Text source; the figures are of its held-out documents."""
    split: Literal["held_out", "validation", "all"] = "held_out"
    """Documents: held_out, validation for choices, or all of a text that nothing was trained or chosen on."""

    def documents(self) -> Sequence[Document]:
        """Return the documents of the split."""
        documents = load_documents(self.text)
        return documents if self.split == "all" else getattr(split_documents(documents), self.split)
