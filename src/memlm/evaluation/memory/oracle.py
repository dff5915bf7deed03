"""Oracle memories, which see the chunk that they help to predict: their cross-entropy plus their own size.

normalised cross-entropy = cross-entropy + numbers x bits x ln 2 / tokens of the chunk, in nats per token. Padding is
not counted among the tokens; a short chunk's memory is as large as a full one's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memlm.chunking import split
from memlm.data import PackedRows
from memlm.measurement import DocumentTally, Measurement, measure_ratio, target_mask
from memlm.models import MemoryModelForCausalLM
from memlm.objectives import next_token, token_nats
from memlm.store.quantize import rounded

_ROWS = 64
BITS = {"fp16": 16, "int8": 8, "int4": 4}
"""Bits of each number by kind of rounding."""


@torch.inference_mode()
def oracle_measurements(model: MemoryModelForCausalLM, rows: PackedRows, *, split_name: str) -> list[Measurement]:
    """Measure the cross-entropy of next tokens from rounded memories, without and with the bits of the memories.

    Args:
        model: a memory model of the oracle layout.
        rows: documents of at most the model's length.
        split_name: the name of the text.
    """
    model.eval()
    encoder = model.config.encoder_config
    numbers = int(encoder.memories_per_chunk * encoder.bottleneck_size)
    found: list[Measurement] = []
    for kind, bits in BITS.items():
        nats, normalised = DocumentTally(len(rows.document_ids)), DocumentTally(len(rows.document_ids))
        for batch in rows.batches(_ROWS):
            task = next_token(batch.input_ids, batch.attention_mask)
            lost, chunks = _read(model, batch, task.labels, kind)
            tokens = target_mask(task.labels).sum(1)
            nats.add(batch.document_index, lost, tokens)
            normalised.add(batch.document_index, lost + chunks * numbers * bits * math.log(2), tokens)
        for name, tally in (("cross_entropy", nats), ("normalised_cross_entropy", normalised)):
            found.append(measure_ratio(f"{name}/{kind}", "nats/token", tally, split_name))
    return found


def _read(model: MemoryModelForCausalLM, batch: PackedRows, labels: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return the nats of each row given rounded memories, and its number of chunks with text; both (rows,)."""
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    memories = rounded(model.encode(ids, mask).cpu(), kind)
    logits = model(ids, mask, memories=memories.to(model.device)).logits.cpu()
    length = model.config.chunk_length
    chunks = split(batch.input_ids, batch.attention_mask, chunk_length=length, pad_token_id=0).attention_mask
    return token_nats(logits, labels).double().sum(1), chunks.bool().any(-1).sum(1).double()
