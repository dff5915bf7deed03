"""Linear readings of a vector, in closed form: which words its text has, and which token stands at each position.

Words are read by ridge regression, and tokens by linear discriminant analysis, from standardised vectors. Neither needs
a training that could fail, and what they find on held-out documents is a lower bound of what the vectors hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.data import Passages
from memlm.data.words import words_of
from memlm.measurement import DocumentTally

_FREQUENT = 0.05
"""Share of the training passages in which a word occurs that is too common to be a content word."""
_LEAST = 2
"""Training passages in which a word must occur to be read."""
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Weights of the squared solution, relative to the number of training passages."""
_SHRINKAGES, _LEAST_SPREAD = (1.0, 10.0), 1e-2
"""Vectors that pull a class's mean to that of all, and the least variance within classes beside 1 of all vectors."""
_NAMED = 64
"""Greatest number of words that are named for a text."""
_ROWS = 256
"""Vectors that are read at once."""


class Ridge:
    """Ridge regressions of many targets on the same vectors.

    Args:
        vectors: (rows, numbers), of the training passages.
    """

    def __init__(self, vectors: Float[Tensor, "rows numbers"]) -> None:
        self.mean, spread = vectors.float().mean(0), vectors.float().std(0)
        # a number that is always the same says nothing, and would be divided by nothing
        self.scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0.0)
        self.vectors = self.standardised(vectors)
        self.products = self.vectors.T @ self.vectors

    def standardised(self, vectors: Float[Tensor, "rows numbers"]) -> Float[Tensor, "rows numbers"]:
        """Return vectors whose numbers have the mean 0 and the spread 1 over training passages."""
        return (vectors.float() - self.mean) * self.scale

    def weights(
        self, rows: Int[Tensor, " ones"], targets: Int[Tensor, " ones"], num_targets: int, ridge: float
    ) -> Float[Tensor, "numbers targets"]:
        """Return the weights that predict targets of which some are 1 and all others 0.

        Args:
            rows: the row of each 1.
            targets: the target of each 1.
            num_targets: number of targets.
            ridge: weight of the squared solution, relative to the number of rows.
        """
        sums = self.vectors.new_zeros(num_targets, self.vectors.shape[1]).index_add_(0, targets, self.vectors[rows])
        penalty = ridge * len(self.vectors) * torch.eye(len(self.products))
        return torch.linalg.solve((self.products + penalty).double(), sums.T.double()).float()


@dataclass(frozen=True)
class ContentWords:
    """The words that are read: neither so common that they can be guessed, nor seen only once in training.

    Attributes:
        words: those that can be named, with their index.
        shares: (words,), the share of training passages in which each occurs.
        common: words that are left out everywhere.
    """

    words: dict[str, int]
    shares: Float[Tensor, " words"]
    common: frozenset[str]

    @classmethod
    def of(cls, texts: Sequence[str]) -> ContentWords:
        """Collect the words of training passages."""
        counts = Counter(word for text in texts for word in set(words_of(text)))
        common = frozenset(word for word, count in counts.items() if count > _FREQUENT * len(texts))
        known = sorted(word for word, count in counts.items() if count >= _LEAST and word not in common)
        shares = torch.tensor([counts[word] / max(1, len(texts)) for word in known])
        return cls({word: index for index, word in enumerate(known)}, shares, common)

    def indices(self, text: str) -> tuple[list[int], int]:
        """Return the words of a text that can be named, and the number of all its content words."""
        found = set(words_of(text)) - self.common
        return sorted(self.words[word] for word in found if word in self.words), len(found)


class Ranked(NamedTuple):
    """The likeliest words of some texts.

    Attributes:
        scores: (texts, words), from high to low.
        right: (texts, words), True for words that the text has.
        counts: (texts,), the number of content words of each text, those never seen in training among them.
    """

    scores: Float[Tensor, "texts words"]
    right: Bool[Tensor, "texts words"]
    counts: Int[Tensor, " texts"]

    def best_threshold(self) -> tuple[float, float]:
        """Return the score from which on words are named, so that F1 is best, and that F1."""
        scores, order = self.scores.flatten().sort(descending=True)
        hits = self.right.flatten()[order].cumsum(0)
        f1 = 2 * hits / (torch.arange(1, len(scores) + 1) + self.counts.sum())
        best = int(f1.argmax())
        return float(scores[best]), float(f1[best])

    def tallies(self, threshold: float, documents: Passages) -> dict[str, DocumentTally]:
        """Return precision, recall and F1 of the words with at least a score."""
        named = self.scores >= threshold
        hits, named_counts = (self.right & named).sum(1), named.sum(1)
        ratios = {
            "word_f1": (2 * hits, named_counts + self.counts),
            "word_precision": (hits, named_counts),
            "word_recall": (hits, self.counts),
        }
        found = {name: DocumentTally(len(documents.document_ids)) for name in ratios}
        for name, (sums, counts) in ratios.items():
            found[name].add(documents.document_index, sums, counts)
        return found


def read_words(
    vectors: dict[str, Float[Tensor, "_ numbers"]], passages: dict[str, Passages], words: ContentWords
) -> tuple[dict[str, DocumentTally], dict[str, DocumentTally]]:
    """Name content words of held-out passages.

    A word's score is its prediction over the spread of what is predicted, so that rare words can be named, too. The
    ridge and the threshold are those with the best F1 on validation passages.

    Args:
        vectors: of the train, validation and held_out passages, by part.
        passages: by part.
        words: that can be named.

    Returns:
        Precision, recall and F1 behind the texts' own vectors, and behind those of other texts.
    """
    ridge = Ridge(vectors["train"])
    spread = (words.shares * (1 - words.shares)).sqrt().clamp(min=1e-6)
    rows, targets = _ones(passages["train"].texts, words)
    best: tuple[float, float, Tensor] = (0.0, float("inf"), torch.zeros(len(ridge.mean), len(words.words)))
    for weight in _RIDGES:
        weights = ridge.weights(rows, targets, len(words.words), weight) / spread
        threshold, f1 = _ranked(ridge, weights, vectors["validation"], passages["validation"], words).best_threshold()
        if f1 > best[0]:
            best = (f1, threshold, weights)
    _, threshold, weights = best
    held_out = passages["held_out"]
    own = _ranked(ridge, weights, vectors["held_out"], held_out, words)
    another = _ranked(ridge, weights, vectors["held_out"].roll(len(held_out) // 2, 0), held_out, words)
    return own.tallies(threshold, held_out), another.tallies(threshold, held_out)


def guess_words(passages: dict[str, Passages], words: ContentWords) -> dict[str, DocumentTally]:
    """Name the same words for every held-out passage: the commonest, as many as are best on validation passages."""
    most = words.shares.topk(min(_NAMED, len(words.words)))

    def ranked(part: str) -> Ranked:
        right, counts = _right(most.indices.expand(len(passages[part]), -1), passages[part], words)
        return Ranked(most.values.expand(len(right), -1), right, counts)

    return ranked("held_out").tallies(ranked("validation").best_threshold()[0], passages["held_out"])


def _ones(texts: Iterable[str], words: ContentWords) -> tuple[Int[Tensor, " ones"], Int[Tensor, " ones"]]:
    """Return the rows and the words of a table of which word each text has."""
    pairs = [(row, word) for row, text in enumerate(texts) for word in words.indices(text)[0]]
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _ranked(
    ridge: Ridge,
    weights: Float[Tensor, "numbers words"],
    vectors: Float[Tensor, "texts numbers"],
    passages: Passages,
    words: ContentWords,
) -> Ranked:
    parts = [(ridge.standardised(part) @ weights).topk(min(_NAMED, len(words.words))) for part in vectors.split(_ROWS)]
    right, counts = _right(torch.cat([part.indices for part in parts]), passages, words)
    return Ranked(torch.cat([part.values for part in parts]), right, counts)


def _right(
    named: Int[Tensor, "texts words"], passages: Passages, words: ContentWords
) -> tuple[Bool[Tensor, "texts words"], Int[Tensor, " texts"]]:
    """Return whether each text has the words that are named for it, and its number of content words."""
    known = [words.indices(text) for text in passages.texts]
    right = [torch.isin(row, torch.tensor(own, dtype=torch.long)) for row, (own, _) in zip(named, known, strict=True)]
    return torch.stack(right), torch.tensor([count for _, count in known])


def read_positions(
    vectors: dict[str, Float[Tensor, "_ numbers"]], labels: dict[str, Int[Tensor, "_ tokens"]], num_classes: int
) -> Bool[Tensor, "passages tokens"]:
    """Return whether a linear reading of each position finds the held-out token; False for padding.

    Args:
        vectors: of the train, validation and held_out passages, by part.
        labels: the target class of each token by part, below 0 for padding.
        num_classes: number of classes.
    """
    ridge = Ridge(vectors["train"])
    found = [_position(ridge, vectors, column, num_classes) for column in _columns(labels)]
    return torch.stack(found, 1)


def _columns(labels: dict[str, Int[Tensor, "_ tokens"]]) -> Iterator[dict[str, Int[Tensor, " _"]]]:
    for position in range(labels["train"].shape[1]):
        yield {part: ids[:, position] for part, ids in labels.items()}


def _position(
    ridge: Ridge, vectors: dict[str, Tensor], labels: dict[str, Tensor], num_classes: int
) -> Bool[Tensor, " passages"]:
    [rows] = (labels["train"] >= 0).nonzero(as_tuple=True)
    best, found = -1.0, torch.zeros(len(labels["held_out"]), dtype=torch.bool)
    for shrinkage in _SHRINKAGES:
        classes = Discriminant.of(ridge.vectors[rows], labels["train"][rows], num_classes, shrinkage)
        right = {
            part: classes.predict(ridge.standardised(vectors[part])) == labels[part]
            for part in ("validation", "held_out")
        }
        share = float(right["validation"].float().mean())
        if share > best:
            best, found = share, right["held_out"]
    return found


class Discriminant(NamedTuple):
    """Linear discriminant analysis: classes with means of their own and one covariance.

    Attributes:
        weights: (numbers, classes).
        offsets: (classes,).
    """

    weights: Float[Tensor, "numbers classes"]
    offsets: Float[Tensor, " classes"]

    @classmethod
    def of(
        cls, vectors: Float[Tensor, "rows numbers"], targets: Int[Tensor, " rows"], num_classes: int, shrinkage: float
    ) -> Discriminant:
        """Fit classes to standardised vectors; each mean counts `shrinkage` vectors more, which are zero."""
        counts = torch.bincount(targets, minlength=num_classes).float()
        sums = vectors.new_zeros(num_classes, vectors.shape[1]).index_add_(0, targets, vectors)
        means = sums / (counts + shrinkage).clamp(min=1e-9)[:, None]
        within = vectors.T @ vectors - means.T @ sums
        within += _LEAST_SPREAD * len(vectors) * torch.eye(len(within))
        weights = torch.linalg.solve(within.double() / len(vectors), means.T.double()).float()
        offsets = (counts / len(targets)).clamp(min=1e-9).log() - (means * weights.T).sum(1) / 2
        # class 0 stands for tokens that no training passage has
        return cls(weights, offsets.masked_fill(torch.arange(num_classes) == 0, -torch.inf))

    def predict(self, vectors: Float[Tensor, "rows numbers"]) -> Int[Tensor, " rows"]:
        """Return the likeliest class of each standardised vector."""
        return torch.cat([(part @ self.weights + self.offsets).argmax(1) for part in vectors.split(_ROWS)])
