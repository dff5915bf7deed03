"""Initial weights of a probe: whitening fitted to training vectors, and the directions that predict each position best.

After whitening, the correlation C = Z'Y / n of the vector with the (scaled, centred) token indicators of a position
has as its leading left singular vectors the directions that tell its tokens apart best (canonical correlation,
Fisher's discriminants). With thousands of tokens and few passages most of C is noise, so it is taken twice, from
either half of the passages: noise of the halves is unrelated, and the leading eigenvectors of C_a C_b' are what both
agree on. Position t starts with the r leading ones, its map with what least squares makes of them, shrunk by how far
the halves agree, onto random token embeddings that are the same at every position, so that the layers behind meet one
code everywhere. The head's bias starts at the tokens' log-frequencies, so that a vector without information starts at
the unigram floor.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memlm.models.probe.modeling import PRIOR_WEIGHT, ProbeDecoder, TokenPrior
from memlm.shapes import IGNORE_INDEX

_RARE, _RARE_IN_TEXTS = 8.0, 32.0
_SHARED = 64
_QUIET = 0.2
"""Scale of the first output layer of a decoder that reads tokens."""
_TOKENS = 0.5
"""Root mean square of the tokens' first vectors where another model's are known."""
_SPREAD = 1e-6
"""Directions with less than this share of the largest variance hold rounding noise, and are left out."""


@torch.no_grad()
def start_from_vectors(
    model: ProbeDecoder, vectors: Float[Tensor, "rows numbers"], labels: Int[Tensor, "rows tokens"], *, seed: int
) -> None:
    """Fit whitening, maps and head to training vectors and their labels.

    Args:
        model: changed in place.
        vectors: (rows, numbers), of the training passages only.
        labels: (rows, tokens), classes; IGNORE_INDEX where there is no target.
        seed: of the random embeddings.
    """
    model.whitening.mean, model.whitening.matrix = whitening_of(vectors)
    vocabulary, width = model.lm_head.weight.shape
    embeddings = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(seed)) * width**-0.5
    target_mask = labels != IGNORE_INDEX
    counts = torch.bincount(labels[target_mask], minlength=vocabulary).double() + 0.5
    shares = counts / counts.sum()
    model.lm_head.bias.copy_(shares.log())
    # what a decoder reads of tokens is noise at first, which its output layer should not say loudly
    model.lm_head.weight.copy_(embeddings * (1.0 if model.prior is None else _QUIET))
    if not bool(model.whitening.matrix.any()):
        _read_nothing(model)
        return
    white = model.whitening(vectors)
    centred = embeddings[labels.masked_fill(~target_mask, 0)] - shares.float() @ embeddings
    targets = torch.where(target_mask[..., None], centred, 0.0)
    if model.prior is not None:
        _start_prior(model.prior, white, labels)
    # the prior of a decoder that reads tokens says which ones occur, so that the shared layer begins with nothing
    directions, maps = _least_squares(white, labels, targets.mean(1), shares, 0 if model.prior is not None else _SHARED)
    model.readout.shared.weight.copy_((directions @ maps).T * width**0.5)
    targets = targets - (white @ directions @ maps)[:, None]
    rank = model.readout.directions.shape[-1]
    for position in range(labels.shape[1]):
        rows = target_mask[:, position]
        given = (white[rows], labels[rows, position : position + 1], targets[rows, position])
        directions, maps = _least_squares(*given, shares, rank)
        model.readout.directions[position] = directions
        model.readout.maps[position] = maps * width**0.5


@torch.no_grad()
def start_from_language(
    model: ProbeDecoder,
    language: ProbeDecoder,
    vectors: Float[Tensor, "rows numbers"],
    labels: Int[Tensor, "rows tokens"],
) -> None:
    """Start a decoder that reads tokens as one that has learnt to write without vectors, and fit its prior to vectors.

    The readout begins with nothing, so that training starts at what the other one writes, moved by the prior.

    Args:
        model: changed in place.
        language: of the same size.
        vectors: (rows, numbers), of the training passages only.
        labels: (rows, tokens), classes; IGNORE_INDEX where there is no target.
    """
    model.load_state_dict(language.state_dict())
    model.whitening.mean, model.whitening.matrix = whitening_of(vectors)
    _read_nothing(model)
    if model.prior is not None:
        model.prior.init_own_weights()
        _start_prior(model.prior, model.whitening(vectors), labels)


@torch.no_grad()
def start_tokens(tokens: nn.Embedding, table: Float[Tensor, "classes numbers"]) -> None:
    """Start the vectors of the tokens that a decoder reads as another model's, brought to its width.

    Args:
        tokens: the decoder's table, changed in place.
        table: a vector of each class; rows of zeros leave the decoder's as they are.
    """
    width = tokens.embedding_dim
    known = table.any(1)
    centred = table[known].double() - table[known].double().mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)
    narrow = centred @ directions.flip(1)[:, :width]
    narrow = nn.functional.pad(narrow, (0, width - narrow.shape[1]))
    scale = _TOKENS / narrow.square().mean().sqrt().clamp(min=1e-12)
    tokens.weight[: len(table)][known] = (narrow * scale).to(tokens.weight.dtype)


def _read_nothing(model: ProbeDecoder) -> None:
    """Let the readout give zeros, and the directions that it will learn from be random."""
    model.readout.init_own_weights()
    for weight in (model.readout.maps, model.readout.shared.weight):
        weight.zero_()


def _start_prior(prior: TokenPrior, white: Float[Tensor, "rows numbers"], labels: Int[Tensor, "rows tokens"]) -> None:
    """Set the prior to log-odds of linear discriminants between texts with and without a token.

    In whitened numbers, a token's direction is the mean of its texts' vectors, drawn to zero for rare ones.
    """
    size = len(prior.offsets)
    rows = torch.arange(len(labels))[:, None].expand_as(labels)
    pairs = (rows * size + labels)[labels != IGNORE_INDEX].unique()
    row, token = pairs // size, pairs % size
    sums = torch.zeros(size, white.shape[1]).index_add_(0, token, white[row])
    means = sums / (torch.bincount(token, minlength=size) + _RARE_IN_TEXTS)[:, None]
    prior.table.weight.copy_(means)
    prior.offsets.copy_(-PRIOR_WEIGHT / 2 * means.square().sum(1))


def _least_squares(
    white: Float[Tensor, "rows numbers"],
    labels: Int[Tensor, "rows tokens"],
    targets: Float[Tensor, "rows width"],
    shares: Float[Tensor, " vocabulary"],
    rank: int,
) -> tuple[Float[Tensor, "numbers rank"], Float[Tensor, "rank width"]]:
    """Return the `rank` directions that tell tokens apart best, and the shrunken least-squares map to the targets.

    `white` is whitened, with a mean of zero, so that the indicators of tokens need no centring. `shares` are those of
    each token in the training passages. Directions beyond the first that tell anything apart are zeros.
    """
    # a token seen a few times only says more about its passages than about the vectors
    scale = (shares + _RARE / max(labels.numel(), 1)).rsqrt()
    first, second = (_correlation(white[i::2], labels[i::2], scale) for i in (0, 1))
    both = first.T @ second
    values, vectors = torch.linalg.eigh(both + both.T)
    vectors, values = vectors.flip(1)[:, :rank], values.flip(0)[:rank] / 2
    strength = ((first + second) @ vectors / 2).square().sum(0)
    agreement = (values / strength.clamp(min=1e-30)).clamp(0, 1)
    missing = rank - vectors.shape[1]
    directions = nn.functional.pad(vectors, (0, missing)).float()
    agreement = nn.functional.pad(agreement, (0, missing)).float()
    return directions, agreement[:, None] * ((white @ directions).T @ targets / max(len(white), 1))


def _correlation(white: Tensor, labels: Tensor, scale: Tensor) -> Float[Tensor, "vocabulary numbers"]:
    sums = torch.zeros(len(scale), white.shape[1], dtype=torch.float64)
    for tokens in labels.T:
        rows = tokens != IGNORE_INDEX
        sums.index_add_(0, tokens[rows], white[rows].double())
    return sums * scale[:, None] / max(labels.numel(), 1)


def whitening_of(
    vectors: Float[Tensor, "rows numbers"],
) -> tuple[Float[Tensor, " numbers"], Float[Tensor, "numbers numbers"]]:
    """Return the mean, and the matrix that brings the covariance to one; directions without spread become zero."""
    if bool((vectors == vectors[:1]).all()):
        return vectors[0].clone(), torch.zeros(vectors.shape[1], vectors.shape[1])
    exact = vectors.double()
    mean = exact.mean(0)
    spread = exact.std(0, correction=0)
    # number by number first: a few of an LLM's hidden numbers are a thousand times wider than the rest
    scales = torch.where(spread > 1e-12 + 1e-9 * mean.abs(), spread.clamp(min=1e-300).reciprocal(), 0.0)
    standard = (exact - mean) * scales
    values, directions = torch.linalg.eigh(standard.T @ standard / len(vectors))
    kept = torch.where(values > _SPREAD * values.max().clamp(min=1e-30), values.clamp(min=1e-300).rsqrt(), 0.0)
    return mean.float(), (scales[:, None] * directions * kept @ directions.T).float()
