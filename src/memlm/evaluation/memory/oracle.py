"""Oracle memory, scored fairly: what a memory saves, less what it costs to keep (paper's notes, 1.3 and 2.3).

normalised cross-entropy = cross-entropy + numbers x bits x ln 2 / tokens of the chunk, in nats per token. Padding does
not count among the tokens; a short chunk's memory costs as much as a full one's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memlm.chunking import split
from memlm.data import PackedRows
from memlm.evaluation.figures import ratio_of
from memlm.measurement import DocumentTally, Measurement, target_mask
from memlm.models import MemoryModelForCausalLM
from memlm.objectives import next_token, token_nats
from memlm.store.quantize import rounded

_ROWS = 64
ROUNDED = {"fp16": 16, "int8": 8, "int4": 4}
"""Kinds of rounding, and bits of a number kept so."""


@torch.inference_mode()
def oracle_measurements(model: MemoryModelForCausalLM, rows: PackedRows, *, split_name: str) -> list[Measurement]:
    """Cross-entropy of next tokens from rounded memories, as it is and with the memories' own bits.

    Args:
        model: of the oracle layout.
        rows: documents of at most the model's length.
        split_name: of the text.
    """
    model.eval()
    found: list[Measurement] = []
    for kind, bits in ROUNDED.items():
        nats, whole = DocumentTally(len(rows.document_ids)), DocumentTally(len(rows.document_ids))
        for batch in rows.batches(_ROWS):
            task = next_token(batch.input_ids, batch.attention_mask)
            lost, chunks = _read(model, batch, task.labels, kind)
            tokens = target_mask(task.labels).sum(1)
            cost = chunks * _numbers(model) * bits * math.log(2)
            nats.add(batch.document_index, lost, tokens)
            whole.add(batch.document_index, lost + cost, tokens)
        for name, tally in (("cross_entropy", nats), ("normalised_cross_entropy", whole)):
            found.append(ratio_of(f"{name}/{kind}", "nats/token", tally, int(tally.count), split_name))
    return found


def _numbers(model: MemoryModelForCausalLM) -> int:
    writer = model.config.encoder_config
    return int(writer.memories_per_chunk * writer.bottleneck_size)


def _read(model: MemoryModelForCausalLM, batch: PackedRows, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Nats of each row from memories rounded so, and its chunks that hold text."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    memories = rounded(model.encode(ids, mask).cpu(), kind)
    logits = model(ids, mask, memories=memories.to(model.device)).logits.cpu()
    length = model.config.chunk_length
    chunks = split(batch.input_ids, batch.attention_mask, chunk_length=length, pad_token_id=0).attention_mask
    return token_nats(logits, labels).double().sum(1), chunks.bool().any(-1).sum(1).double()
