"""Retrieval beside retention: how well the vectors of sentences find those of the passages that hold them.

A query is a sentence of a held-out passage, and all held-out passages are searched for the one that it comes from.
Passages are rounded as a database stores them; queries are not stored and stay as they are.
"""

from __future__ import annotations

import re

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from memlm.data import Passages
from memlm.data.words import words_of
from memlm.encoders import Encoder
from memlm.measurement import DocumentTally, Measurement, measure_ratio

NDCG = "ndcg@10"
_FOUND = 10
"""Passages that a search returns."""
_LEAST = 4
"""Words of the shortest query."""
_ROWS = 256
"""Queries that are searched for at once."""
_END = re.compile(r"(?<=[.!?;])\s+")


def queries(passages: Passages) -> tuple[list[str], Int[Tensor, " queries"]]:
    """Return the longest sentence of each passage that has several, and the rows of those passages.

    Sentences that the passage cuts count; those of fewer than four words are not asked for.
    """
    found: list[tuple[str, int]] = []
    for row, text in enumerate(passages.texts):
        sentences = _END.split(text.strip())
        longest = max(sentences, key=len)
        if len(sentences) > 1 and len(words_of(longest)) >= _LEAST:
            found.append((longest, row))
    return [text for text, _ in found], torch.tensor([row for _, row in found], dtype=torch.long)


def ndcg(
    asked: Float[Tensor, "queries numbers"], stored: Float[Tensor, "passages numbers"], own: Int[Tensor, " queries"]
) -> Float[Tensor, " queries"]:
    """Return nDCG@10 of each query, whose one relevant passage is its own: 1 / log2(1 + rank) among the first ten.

    Passages as near as the own one stand before it.
    """
    given, kept = F.normalize(asked, dim=1), F.normalize(stored, dim=1)
    ranks = [
        (scores >= scores.gather(1, rows[:, None])).sum(1)
        for part, rows in zip(given.split(_ROWS), own.split(_ROWS), strict=True)
        for scores in [part @ kept.T]
    ]
    rank = torch.cat([torch.empty(0, dtype=torch.long), *ranks])
    return torch.where(rank <= _FOUND, 1 / (1 + rank.clamp(min=1)).float().log2(), 0.0)


def retrieval_measurements(
    encoder: Encoder, passages: Passages, stored: Float[Tensor, "passages numbers"], split: str
) -> list[Measurement]:
    """Measure how well sentences find the passages that they come from; nothing where no passage has two sentences.

    Args:
        encoder: of the queries; where it has a way of its own to encode them, that is used.
        passages: that are searched.
        stored: their vectors, rounded as they are stored.
        split: the name of the passages.
    """
    texts, own = queries(passages)
    if not texts:
        return []
    encode = getattr(encoder, "encode_query", encoder.encode)
    tally = DocumentTally(len(passages.document_ids))
    found = ndcg(encode(texts), stored, own)
    tally.add(passages.document_index[own], found, torch.ones(len(found)))
    return [measure_ratio(NDCG, "fraction", tally, split, protocol="search")]
