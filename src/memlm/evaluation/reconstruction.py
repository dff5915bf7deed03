"""Rows in, the same rows out: what an autoencoder gives back, token by token.

One pass and the most likely token at every position: the decoder sees memories only, so there is no teacher forcing.
Sums are kept per document and divided once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.data import PackedRows
from memlm.inference import dequantize, quantize
from memlm.measurement import DocumentTally, asked, asked_rows, correct, exact_rows
from memlm.models import TextAutoencoder
from memlm.objectives import reconstruction, token_nats

Progress = Callable[[int, int], None]
"""Called with how many rows are done and how many there are."""

LOGITS_AT_ONCE: Final = 2**26
"""Numbers of logits held at once at most (256 MiB); a large vocabulary makes batches smaller."""


@dataclass(frozen=True)
class ReconstructionScores:
    """What came back for every row; R rows of T tokens.

    Attributes:
        rows: what was read.
        labels: (R, T), what was asked for.
        predictions: (R, T), the most likely token.
        nats: (R, T), cross-entropy, zero where nothing was asked.
    """

    rows: PackedRows
    labels: Int[Tensor, "rows tokens"]
    predictions: Int[Tensor, "rows tokens"]
    nats: Float[Tensor, "rows tokens"]

    @property
    def asked(self) -> Bool[Tensor, "rows tokens"]:
        """Where a token was asked for."""
        return asked(self.labels)

    def token_accuracy(self) -> DocumentTally:
        """Right tokens over asked tokens."""
        return self.tally(correct(self.predictions, self.labels).sum(1), self.asked.sum(1))

    def exact_match(self) -> DocumentTally:
        """Rows entirely right over rows that ask for anything."""
        counted = asked_rows(self.labels)
        return self.tally(exact_rows(self.predictions, self.labels).long() * counted, counted)

    def cross_entropy(self) -> DocumentTally:
        """Nats over asked tokens."""
        return self.tally(self.nats.double().sum(1), self.asked.sum(1))

    def tally(self, sums: Tensor, counts: Tensor) -> DocumentTally:
        """Any sums and counts per row (R,), by document."""
        tally = DocumentTally(len(self.rows.document_ids))
        tally.add(self.rows.document_index, sums, counts)
        return tally

    def accuracy_by_position(self) -> list[float]:
        """Share right at each place in the chunk (T values); NaN where no row asks."""
        right = correct(self.predictions, self.labels).sum(0).double()
        return (right / self.asked.sum(0)).tolist()


def reconstruct(
    model: TextAutoencoder,
    rows: PackedRows,
    *,
    batch_size: int = 256,
    bits: int | None = None,
    progress: Progress | None = None,
) -> ReconstructionScores:
    """Encode and decode every row, in the parameters' precision.

    Args:
        model: put in evaluation mode meanwhile.
        rows: one chunk each.
        batch_size: rows at once; fewer where their logits would exceed LOGITS_AT_ONCE.
        bits: round memories to this many bits per number in between; None leaves them as they are.
        progress: called after each batch.

    Raises:
        UserError: rows longer than a chunk.
        ConfigError: bits other than 16, 8 or 4.
    """
    labels = reconstruction(rows.input_ids, rows.attention_mask).labels
    predictions = torch.empty_like(labels)
    nats = torch.empty(labels.shape)
    done = 0
    with evaluating(model):
        for batch in rows.batches(bounded_batch(model, batch_size)):
            here = slice(done, done + len(batch))
            predictions[here], nats[here] = _reconstruct_batch(model, batch, labels[here], bits)
            done = here.stop
            if progress is not None:
                progress(done, len(rows))
    return ReconstructionScores(rows, labels, predictions, nats)


def _reconstruct_batch(
    model: TextAutoencoder, batch: PackedRows, labels: Tensor, bits: int | None
) -> tuple[Tensor, Tensor]:
    device = model.device
    memories = model.encode(batch.input_ids.to(device), batch.attention_mask.to(device))
    if bits is not None:
        memories = dequantize(quantize(memories, bits)).to(memories.dtype)
    logits = model.decode(memories)[:, : labels.shape[1]]
    return logits.argmax(-1).cpu(), token_nats(logits, labels.to(logits.device)).cpu()


def blank_memory_nats(
    model: TextAutoencoder, labels: Int[Tensor, "rows tokens"]
) -> Float[Tensor, "rows tokens"]:
    """Cross-entropy of each label when the decoder reads a memory of zeros: what it knows of language by itself.

    Labels that ask for nothing give zero.
    """
    config = model.config
    with evaluating(model):
        blank = torch.zeros(1, config.memories_per_chunk, config.bottleneck_size, device=model.device)
        table = model.decode(blank.to(model.dtype))[0].float().log_softmax(-1).cpu()
    places = torch.arange(labels.shape[1]).expand_as(labels)
    return -table[places, labels.clamp(min=0)] * asked(labels)


def bounded_batch(model: TextAutoencoder, batch_size: int) -> int:
    """Rows at once so that their logits stay within LOGITS_AT_ONCE."""
    per_row = model.config.chunk_length * model.config.vocab_size
    return max(1, min(batch_size, LOGITS_AT_ONCE // per_row))


@contextmanager
def evaluating(model: TextAutoencoder) -> Generator[None]:
    """Evaluation mode without gradients; the mode before comes back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
