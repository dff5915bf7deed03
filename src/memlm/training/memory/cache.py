"""Memories of a frozen encoder: computed once per corpus, on disk, read by every later epoch and stage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.chunking import split
from memlm.data import PackedRows
from memlm.errors import CheckpointError
from memlm.files import read_json, read_tensors, write_file_atomic, write_tensors_atomic
from memlm.models import MemoryModelForCausalLM
from memlm.models.runtime import ShortAttentionInFp32, weights_fingerprint
from memlm.training.loop import distributed

_ROWS = 64
"""Encoded at once: few enough that a processor's cache holds what passes between layers (LOG.md)."""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class MemoryCache:
    """Memories that the encoder wrote for every chunk of every row.

    Attributes:
        memories: (rows, chunks, memories, numbers).
        blank: (memories, numbers), of a chunk of blanks.
    """

    memories: Float[Tensor, "rows chunks memories numbers"]
    blank: Float[Tensor, "memories numbers"]

    def of(
        self, objective: str, rows: Int[Tensor, " chosen"], distances: Int[Tensor, " chosen"]
    ) -> Float[Tensor, "chosen chunks memories numbers"]:
        """Return the memories of the chunks of an objective's inputs; blanks begin at their distance."""
        found = self.memories[rows]
        if objective == "copy":
            half = found.shape[1] // 2
            return torch.cat([found[:, :half], found[:, :half]], dim=1)
        if objective == "blank_copy":
            blank = torch.arange(found.shape[1]) >= distances[:, None]
            return torch.where(blank[..., None, None], self.blank, found)
        return found


def build_memory_cache(
    model: MemoryModelForCausalLM,
    rows: PackedRows,
    folder: Path,
    *,
    blank_id: int,
    bf16: bool = False,
    progress: Progress | None = None,
) -> MemoryCache:
    """Return memories that are read from `folder`, or computed and written to it.

    Args:
        model: model whose encoder computes the memories.
        rows: rows of one length, whole chunks.
        folder: folder of the cache.
        blank_id: token of blanks.
        bf16: the encoder runs in bf16 autocast, as it would in the steps of a run in that precision.
        progress: called after each batch with the number of rows done.

    Raises:
        CheckpointError: the folder holds memories of another encoder or of other text.
    """
    expected = {"encoder": weights_fingerprint(model.encoder), "text": _rows_fingerprint(rows), "rows": len(rows)}
    record, tensors = folder / "memories.json", folder / "memories.safetensors"
    if record.is_file() and tensors.is_file():
        found = read_json(record)
        for name, value in expected.items():
            if found.get(name) != value:
                raise CheckpointError(
                    f"memories kept in '{folder}' are of another {name} ({str(found.get(name))[:12]}, "
                    f"not {str(value)[:12]}); remove that folder to compute them again."
                )
        return MemoryCache(**read_tensors(tensors))
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16), ShortAttentionInFp32():
        kept = _compute(model, rows, blank_id, progress)

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors_atomic(tensors, vars(kept))
        # the record last: where it is, the memories are whole
        write_file_atomic(record, json.dumps(expected, indent=2) + "\n")

    distributed.first_does(write)
    return kept


@torch.no_grad()
def _compute(model: MemoryModelForCausalLM, rows: PackedRows, blank_id: int, progress: Progress | None) -> MemoryCache:
    """Compute a share of the rows in each process, and return all of them."""
    training, length = model.training, model.config.chunk_length
    model.eval()
    own = torch.arange(len(rows)).tensor_split(distributed.count())[distributed.rank()]
    parts: list[Tensor] = []
    for batch in rows.select(own).batches(_ROWS):
        chunks = split(batch.input_ids, batch.attention_mask, chunk_length=length, pad_token_id=blank_id)
        parts.append(model.encode_chunks(chunks.input_ids.to(model.device), chunks.attention_mask.to(model.device)))
        if progress is not None:
            progress(min(len(rows), distributed.count() * sum(map(len, parts))))
    blanks = torch.full((1, 1, length), blank_id, device=model.device)
    blank = model.encode_chunks(blanks, torch.ones_like(blanks))[0, 0]
    model.train(training)
    empty = blank.new_zeros(0, rows.input_ids.shape[1] // length, *blank.shape)
    memories = distributed.gathered(torch.cat([empty, *parts]).float().cpu())
    return MemoryCache(memories.contiguous(), blank.float().cpu().contiguous())


def _rows_fingerprint(rows: PackedRows) -> str:
    digest = hashlib.sha256(str(tuple(rows.input_ids.shape)).encode())
    for tensor in (rows.input_ids, rows.attention_mask):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
