"""Reconstruction from memories: predictions for rows of tokens, counted per document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.measurement import DocumentTally, correct, exact_rows, rows_with_targets, target_mask
from memlm.models import ProbeDecoder, TextAutoencoder
from memlm.objectives import reconstruction, token_nats
from memlm.store import Bits, dequantize, quantize

Progress = Callable[[int, int], None]
_LOGITS = 2**26


@dataclass(frozen=True)
class ReconstructionScores:
    """Sums and counts of one pass over rows.

    Attributes:
        tokens: right tokens over asked tokens.
        chunks: chunks with every token right over chunks.
        nats: summed cross-entropy over asked tokens.
        num_correct_at: (tokens,) right predictions by position.
        num_targets_at: (tokens,) asked tokens by position.
        predictions: (rows, tokens), the likeliest token at each position.
    """

    tokens: DocumentTally
    chunks: DocumentTally
    nats: DocumentTally
    num_correct_at: Int[Tensor, " tokens"]
    num_targets_at: Int[Tensor, " tokens"]
    predictions: Int[Tensor, "rows tokens"]

    def accuracy_by_position(self) -> list[float]:
        """Share of right tokens at each position of a chunk, as far as any row reaches."""
        reached = self.num_targets_at > 0
        return (self.num_correct_at[reached].double() / self.num_targets_at[reached]).tolist()


@torch.inference_mode()
def reconstruct(
    model: TextAutoencoder,
    rows: PackedRows,
    *,
    memories: Float[Tensor, "rows memories numbers"] | None = None,
    bits: Bits | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ReconstructionScores:
    """Decode the memories of every row, count what is right.

    Args:
        model: in its own precision; it is put into evaluation mode.
        rows: chunks of at most the model's length.
        memories: what the rows were encoded to; encoded here where None.
        bits: round the memories to so many bits before decoding.
        batch_size: rows at once; by default as many as keep the logits within a quarter of a gibibyte.
        progress: called with rows done and rows in all.
    """
    batch_size = batch_size or _rows_at_once(model.config.chunk_length, model.config.vocab_size)
    if memories is None:
        memories = encode_rows(model, rows, batch_size=batch_size)
    kept = memories if bits is None else dequantize(quantize(memories, bits)).to(memories.dtype)
    return score_decoder(model, rows, kept, batch_size=batch_size, progress=progress)


@torch.inference_mode()
def score_decoder(
    model: TextAutoencoder | ProbeDecoder,
    rows: PackedRows,
    memories: Float[Tensor, rows * memory],
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> ReconstructionScores:
    """Score what a decoder writes from the memory of each row; arguments as for `reconstruct`."""
    model.eval()
    batch_size = batch_size or _rows_at_once(rows.input_ids.shape[1], model.config.vocab_size)
    documents = len(rows.document_ids)
    tallies = [DocumentTally(documents) for _ in range(3)]
    num_correct_at = torch.zeros(rows.input_ids.shape[1], dtype=torch.long)
    num_targets_at = torch.zeros_like(num_correct_at)
    predictions: list[Tensor] = []
    for batch, part in zip(rows.batches(batch_size), memories.split(batch_size), strict=True):
        labels = reconstruction(batch.input_ids, batch.attention_mask).labels
        logits = model.decode(part.to(model.device))[:, : labels.shape[1]].cpu()
        predicted = logits.argmax(-1)
        _count(tallies, batch, predicted, labels, token_nats(logits, labels))
        num_correct_at += correct(predicted, labels).sum(0)
        num_targets_at += target_mask(labels).sum(0)
        predictions.append(predicted)
        if progress is not None:
            progress(sum(map(len, predictions)), len(rows))
    return ReconstructionScores(
        tallies[0], tallies[1], tallies[2], num_correct_at, num_targets_at, torch.cat(predictions)
    )


@torch.inference_mode()
def encode_rows(
    model: TextAutoencoder, rows: PackedRows, *, batch_size: int = 256
) -> Float[Tensor, "rows memories numbers"]:
    """Memories of every row."""
    model.eval()
    device = model.device
    parts = [model.encode(b.input_ids.to(device), b.attention_mask.to(device)) for b in rows.batches(batch_size)]
    return torch.cat(parts)


@torch.inference_mode()
def blank_memory_nats(model: TextAutoencoder, rows: PackedRows) -> DocumentTally:
    """Cross-entropy when every memory is zero: what the decoder knows of the language alone.

    The decoder then writes the same for every row, so one row is decoded.
    """
    config = model.eval().config
    blank = torch.zeros(1, config.memories_per_chunk, config.bottleneck_size, device=model.device, dtype=model.dtype)
    nats_at = -model.decode(blank)[0].float().log_softmax(-1).cpu()
    tokens = rows.input_ids.shape[1]
    nats = nats_at[torch.arange(tokens), rows.input_ids] * rows.attention_mask
    tally = DocumentTally(len(rows.document_ids))
    tally.add(rows.document_index, nats.double().sum(1), rows.attention_mask.sum(1))
    return tally


def _rows_at_once(tokens: int, vocabulary: int) -> int:
    return max(1, min(256, _LOGITS // (tokens * vocabulary)))


def _count(
    tallies: list[DocumentTally],
    batch: PackedRows,
    predicted: Int[Tensor, "rows tokens"],
    labels: Int[Tensor, "rows tokens"],
    nats: Float[Tensor, "rows tokens"],
) -> None:
    counts = target_mask(labels).sum(1)
    exact: Bool[Tensor, " rows"] = exact_rows(predicted, labels) & (counts > 0)
    tallies[0].add(batch.document_index, correct(predicted, labels).sum(1), counts)
    tallies[1].add(batch.document_index, exact.long(), rows_with_targets(labels))
    tallies[2].add(batch.document_index, nats.double().sum(1), counts)
