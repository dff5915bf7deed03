"""Initial weights of a probe: whitening fitted to training vectors, and the most telling directions of each position.

After whitening, the correlation C = Z'Y / n of the vector with the (scaled, centred) token indicators of a position
has as its leading left singular vectors the directions that tell its tokens apart best (canonical correlation,
Fisher's discriminants). With thousands of tokens and few passages most of C is noise, so it is taken twice, from
either half of the passages: noise of the halves is unrelated, and the leading eigenvectors of C_a C_b' are what both
agree on. Position t starts with the r leading ones, its map with what least squares makes of them, shrunk by how far
the halves agree, onto random token embeddings that are the same at every position, so that the layers behind meet one
code everywhere. The head's bias starts at the tokens' log-frequencies: a vector that holds nothing starts at the
unigram floor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memlm.models.probe.modeling import ProbeDecoder
from memlm.shapes import IGNORE_INDEX

_RARE = 8.0
_SHARED = 64
_SPREAD = 1e-6
"""Directions with less than this share of the largest variance hold rounding noise, and are left out."""


@torch.no_grad()
def start_from_vectors(
    model: ProbeDecoder, vectors: Float[Tensor, "rows numbers"], labels: Int[Tensor, "rows tokens"], *, seed: int
) -> None:
    """Fit whitening, maps and head to training vectors and what they are asked for.

    Args:
        model: changed in place.
        vectors: (rows, numbers), of the training passages only.
        labels: (rows, tokens), classes; IGNORE_INDEX where nothing is asked.
        seed: of the random embeddings.
    """
    mean, matrix = whitening_of(vectors)
    model.whitening.mean.copy_(mean)
    model.whitening.matrix.copy_(matrix)
    vocabulary, width = model.lm_head.weight.shape
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(vocabulary, width, generator=generator) * width**-0.5
    asked = labels != IGNORE_INDEX
    counts = torch.bincount(labels[asked], minlength=vocabulary).double() + 0.5
    shares = counts / counts.sum()
    model.lm_head.bias.copy_(shares.log())
    model.lm_head.weight.copy_(embeddings)
    white = model.whitening(vectors)
    usual = shares.float() @ embeddings
    classes = labels.masked_fill(~asked, 0)
    wanted = torch.where(asked[..., None], embeddings[classes] - usual, 0.0)
    common = least_squares(white, labels, wanted.mean(1), shares, _SHARED)
    model.readout.shared.weight.copy_((common[0] @ common[1]).T * width**0.5)
    wanted = wanted - (white @ common[0] @ common[1])[:, None]
    rank = model.readout.directions.shape[-1]
    for position in range(labels.shape[1]):
        here = asked[:, position]
        rows = (white[here], labels[here, position : position + 1], wanted[here, position])
        directions, maps = least_squares(*rows, shares, rank)
        model.readout.directions[position] = directions
        model.readout.maps[position] = maps * width**0.5


def least_squares(
    white: Float[Tensor, "rows numbers"],
    labels: Int[Tensor, "rows tokens"],
    wanted: Float[Tensor, "rows width"],
    shares: Float[Tensor, " vocabulary"],
    rank: int,
) -> tuple[Float[Tensor, "numbers rank"], Float[Tensor, "rank width"]]:
    """Directions that tell these tokens apart best, and the shrunken least-squares map from them to what is wanted."""
    directions, agreement = telling_directions(white, labels, shares, rank)
    found = (white @ directions).T @ wanted / max(len(white), 1)
    return directions, agreement[:, None] * found


def telling_directions(
    white: Float[Tensor, "rows numbers"],
    labels: Int[Tensor, "rows tokens"],
    shares: Float[Tensor, " vocabulary"],
    rank: int,
) -> tuple[Float[Tensor, "numbers rank"], Float[Tensor, " rank"]]:
    """The `rank` directions of whitened vectors that tell these tokens apart best, and how far both halves agree.

    Args:
        white: rows of mean zero, so that the indicators need no centring.
        labels: tokens of each row, in any order; IGNORE_INDEX where there is none.
        shares: of each token in the training passages.
        rank: directions wanted; zeros where there are fewer.
    """
    # a token seen a few times only says more about its passages than about the vectors
    scale = (shares + _RARE / max(labels.numel(), 1)).rsqrt()
    first, second = (_correlation(white[i::2], labels[i::2], scale) for i in (0, 1))
    both = first.T @ second
    values, directions = torch.linalg.eigh(both + both.T)
    directions, values = directions.flip(1)[:, :rank], values.flip(0)[:rank] / 2
    strength = ((first + second) @ directions / 2).square().sum(0)
    agreement = (values / strength.clamp(min=1e-30)).clamp(0, 1)
    missing = rank - directions.shape[1]
    return nn.functional.pad(directions, (0, missing)).float(), nn.functional.pad(agreement, (0, missing)).float()


def _correlation(white: Tensor, labels: Tensor, scale: Tensor) -> Float[Tensor, "vocabulary numbers"]:
    sums = torch.zeros(len(scale), white.shape[1], dtype=torch.float64)
    for tokens in labels.T:
        there = tokens != IGNORE_INDEX
        sums.index_add_(0, tokens[there], white[there].double())
    return sums * scale[:, None] / max(labels.numel(), 1)


def whitening_of(
    vectors: Float[Tensor, "rows numbers"],
) -> tuple[Float[Tensor, " numbers"], Float[Tensor, "numbers numbers"]]:
    """Mean, and the matrix that brings the covariance to one; directions without spread become zero."""
    exact = vectors.double()
    mean = exact.mean(0)
    spread = exact.std(0, correction=0)
    # number by number first: a few of an LLM's hidden numbers are a thousand times wider than the rest
    scales = torch.where(spread > 1e-12 + 1e-9 * mean.abs(), spread.clamp(min=1e-300).reciprocal(), 0.0)
    standard = (exact - mean) * scales
    values, directions = torch.linalg.eigh(standard.T @ standard / len(vectors))
    kept = torch.where(values > _SPREAD * values.max().clamp(min=1e-30), values.clamp(min=1e-300).rsqrt(), 0.0)
    return mean.float(), (scales[:, None] * directions * kept @ directions.T).float()
