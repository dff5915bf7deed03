"""Reconstruction from memories: predictions for rows of tokens, counted per document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.measurement import (
    DocumentTally,
    Measurement,
    constant_nats,
    correct,
    exact_rows,
    measure_bits,
    measure_ratio,
    measure_retention,
    paper_nats,
    rows_with_targets,
    target_mask,
    uniform_nats,
)
from memlm.models import ProbeDecoder, TextAutoencoder
from memlm.objectives import reconstruction, token_nats
from memlm.store import Bits, dequantize, quantize

_LOGITS = 2**26


@dataclass(frozen=True)
class ReconstructionScores:
    """Sums and counts of one pass over rows.

    Attributes:
        tokens: correct tokens over targets.
        chunks: chunks with every token correct over chunks.
        nats: summed cross-entropy over targets.
        num_correct_at: (tokens,) correct predictions by position.
        num_targets_at: (tokens,) targets by position.
        predictions: (rows, tokens), the likeliest token at each position.
    """

    tokens: DocumentTally
    chunks: DocumentTally
    nats: DocumentTally
    num_correct_at: Int[Tensor, " tokens"]
    num_targets_at: Int[Tensor, " tokens"]
    predictions: Int[Tensor, "rows tokens"]

    def accuracy_by_position(self) -> list[float]:
        """Return the share of correct tokens at each position of a chunk, as far as any row reaches."""
        reached = self.num_targets_at > 0
        return (self.num_correct_at[reached].double() / self.num_targets_at[reached]).tolist()


def reconstruct(
    model: TextAutoencoder,
    rows: PackedRows,
    *,
    memories: Float[Tensor, "rows memories numbers"] | None = None,
    bits: Bits | None = None,
    batch_size: int | None = None,
) -> ReconstructionScores:
    """Decode the memories of every row and count what is correct.

    Args:
        model: in its own precision; it is put into evaluation mode.
        rows: chunks of at most the model's length.
        memories: the memories of the rows; encoded here where None.
        bits: the number of bits that memories are rounded to before decoding.
        batch_size: rows at once; by default as many as keep the logits within a quarter of a gibibyte.
    """
    memories = encode_rows(model, rows) if memories is None else memories
    kept = memories if bits is None else dequantize(quantize(memories, bits)).to(memories.dtype)
    return score_decoder(model, rows, kept, batch_size=batch_size)


@torch.inference_mode()
def score_decoder(
    model: TextAutoencoder | ProbeDecoder,
    rows: PackedRows,
    memories: Float[Tensor, rows * memory],
    *,
    batch_size: int | None = None,
) -> ReconstructionScores:
    """Score what a decoder writes from the memory of each row; arguments as for `reconstruct`."""
    model.eval()
    length = rows.input_ids.shape[1]
    batch_size = batch_size or max(1, min(256, _LOGITS // (length * model.config.vocab_size)))
    tokens, chunks, nats = (DocumentTally(len(rows.document_ids)) for _ in range(3))
    num_correct_at = torch.zeros(length, dtype=torch.long)
    num_targets_at = torch.zeros_like(num_correct_at)
    predictions: list[Tensor] = []
    for batch, part in zip(rows.batches(batch_size), memories.split(batch_size), strict=True):
        labels = reconstruction(batch.input_ids, batch.attention_mask).labels
        logits = model.decode(part.to(model.device))[:, :length].cpu()
        predicted, targets = logits.argmax(-1), target_mask(labels)
        count_correct(tokens, chunks, batch, predicted, labels)
        nats.add(batch.document_index, token_nats(logits, labels).double().sum(1), targets.sum(1))
        num_correct_at += correct(predicted, labels).sum(0)
        num_targets_at += targets.sum(0)
        predictions.append(predicted)
    return ReconstructionScores(tokens, chunks, nats, num_correct_at, num_targets_at, torch.cat(predictions))


def count_correct(
    tokens: DocumentTally,
    rows: DocumentTally,
    batch: PackedRows,
    predicted: Int[Tensor, "rows tokens"],
    labels: Int[Tensor, "rows tokens"],
) -> None:
    """Add correct tokens, and rows with every target correct, to their documents."""
    counts = target_mask(labels).sum(1)
    tokens.add(batch.document_index, correct(predicted, labels).sum(1), counts)
    rows.add(batch.document_index, (exact_rows(predicted, labels) & (counts > 0)).long(), rows_with_targets(labels))


@torch.inference_mode()
def encode_rows(
    model: TextAutoencoder, rows: PackedRows, *, batch_size: int = 256
) -> Float[Tensor, "rows memories numbers"]:
    """Return the memories of every row."""
    model.eval()
    device = model.device
    parts = [model.encode(b.input_ids.to(device), b.attention_mask.to(device)) for b in rows.batches(batch_size)]
    return torch.cat(parts)


@torch.inference_mode()
def blank_memory_nats(model: TextAutoencoder, rows: PackedRows) -> DocumentTally:
    """Return the cross-entropy when every memory is zero: what the decoder knows of the language alone.

    The decoder then writes the same for every row, so one row is decoded.
    """
    config = model.eval().config
    blank = torch.zeros(1, config.memories_per_chunk, config.bottleneck_size, device=model.device, dtype=model.dtype)
    nats_at = -model.decode(blank)[0].float().log_softmax(-1).cpu()
    return per_document(rows, nats_at[torch.arange(rows.input_ids.shape[1]), rows.input_ids].double())


def per_document(rows: PackedRows, values: Tensor) -> DocumentTally:
    """Sum values (rows, tokens) of readable tokens by document."""
    tally = DocumentTally(len(rows.document_ids))
    tally.add(rows.document_index, (values * rows.attention_mask).sum(1), rows.attention_mask.sum(1))
    return tally


def reconstruction_measurements(
    tokens: DocumentTally,
    chunks: DocumentTally,
    nats: DocumentTally,
    split: str,
    *,
    numbers: DocumentTally,
    unigram: DocumentTally,
    vocabulary: int,
    baselines: Mapping[str, DocumentTally],
    text_bytes: DocumentTally | None = None,
) -> list[Measurement]:
    """Measure accuracy, exact match, cross-entropy, bits and retention against every baseline, each with its interval.

    Args:
        tokens: correct tokens over targets.
        chunks: chunks with every token correct over chunks.
        nats: summed cross-entropy over targets.
        split: the name of the text.
        numbers: sums of the numbers in the rows' memories.
        unigram: cross-entropy under the frequencies of training tokens.
        vocabulary: the number of tokens that are predicted among.
        baselines: other cross-entropies that retention is measured against, by name.
        text_bytes: sums of the bytes of the targets; without them there are no bits per byte.
    """
    found = [
        measure_ratio("token_accuracy", "fraction", tokens, split),
        measure_ratio("exact_match", "fraction", chunks, split),
        measure_ratio("cross_entropy", "nats/token", nats, split),
    ]
    if text_bytes is not None:
        found.append(measure_bits("bits_per_byte", "bits/byte", nats, text_bytes, split))
    found.append(measure_bits("bits_per_dim", "bits/number", unigram.minus(nats), numbers, split))
    every = {
        "uniform": constant_nats(nats, uniform_nats(vocabulary)),
        "paper": constant_nats(nats, paper_nats(vocabulary)),
        "unigram": unigram,
        **baselines,
    }
    return found + [measure_retention(name, nats, tally, split) for name, tally in every.items()]
