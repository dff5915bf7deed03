"""Sums and counts per document, added up batch by batch and divided once at the end."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from memlm.measurement.interval import bootstrap_interval


class DocumentTally:
    """A ratio of sums, kept apart by document so that intervals can resample documents.

    Batches of one document may come in any number of pieces: a mean of means never arises.
    """

    def __init__(self, num_documents: int) -> None:
        self.sums = np.zeros(num_documents)
        self.counts = np.zeros(num_documents)

    def add(
        self,
        document_index: Int[Tensor, " rows"],
        sums: Float[Tensor, " rows"] | Int[Tensor, " rows"],
        counts: Float[Tensor, " rows"] | Int[Tensor, " rows"],
    ) -> None:
        """Add each row's sum and count to its document."""
        index = document_index.cpu().numpy()
        np.add.at(self.sums, index, sums.detach().to("cpu", torch.float64).numpy())
        np.add.at(self.counts, index, counts.detach().to("cpu", torch.float64).numpy())

    @property
    def count(self) -> float:
        """Everything counted."""
        return float(self.counts.sum())

    def ratio(self) -> float:
        """Sum over count; NaN where nothing was counted."""
        return float(self.sums.sum() / self.counts.sum()) if self.count else float("nan")

    def interval(self, *, seed: int = 0) -> tuple[float, float]:
        """95 % bootstrap interval of the ratio over documents."""
        return bootstrap_interval(self.sums, self.counts, seed=seed)
