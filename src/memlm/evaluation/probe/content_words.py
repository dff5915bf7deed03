"""Content words that can be read from a vector, by logistic regression.

The regression begins in closed form: a word's log-odds under linear discriminants of the vectors with and without it,
where the difference of the means is that of ridge regression, drawn to zero for rare words. Some passes over the
training passages, with noise on the vectors, follow as long as validation passages gain. What is named on held-out
documents is a lower bound of what the vectors hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memlm.data import Passages
from memlm.data.words import name_words_of, words_of
from memlm.evaluation.probe.linear import Ridge
from memlm.measurement import DocumentTally

_FREQUENT = 0.05
"""Share of the training passages in which a word occurs that is too common to be a content word."""
_LEAST = 2
"""Training passages in which a word must occur to be read."""
_RIDGES = (1e-2, 1.0)
"""Weights of the squared solution, relative to the number of training passages."""
_RARE = 32.0
"""Passages without difference that are counted to those of each word."""
_SCALES = (0.25, 0.5, 1.0)
"""Factors of the differences of the means, which are too large where numbers of a vector say the same of a word."""
_NAMED = 64
"""Greatest number of words that are named for a text."""
_ROWS = 256
"""Vectors that are read, or learnt from, at once."""
_NOISE = 1.0
"""Standard deviation of the noise on standardised vectors."""
_LEARNING_RATE, _PATIENCE = 1e-3, 2
"""Peak learning rate of Adam, and the passes without a better F1 of validation passages after which training stops."""


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

    def sums(self, passages: dict[str, Passages], *, width: int, seed: int) -> dict[str, Float[Tensor, "_ numbers"]]:
        """Return vectors that a linear reading can read: the sum of a random vector for each word that can be named.

        Args:
            passages: by part.
            width: numbers of a vector.
            seed: of the random vectors.
        """
        draw = torch.Generator().manual_seed(seed)
        table = torch.randn(len(self.words), width, generator=draw)
        found: dict[str, Tensor] = {}
        for part, texts in passages.items():
            rows, words = _ones(texts.texts, self)
            found[part] = torch.zeros(len(texts), width).index_add_(0, rows, table[words])
        return found


class Ranked(NamedTuple):
    """The likeliest words of some texts.

    Attributes:
        scores: (texts, words), from high to low.
        right: (texts, words), True for words that the text has.
        counts: (texts,), the number of content words of each text, those never seen in training among them.
        seen: (texts,), the number of those that were seen in training and can be named.
        names: (texts, words), True for words that are part of a name in the text.
        name_counts: (texts,), the number of content words of each text that are part of a name.
    """

    scores: Float[Tensor, "texts words"]
    right: Bool[Tensor, "texts words"]
    counts: Int[Tensor, " texts"]
    seen: Int[Tensor, " texts"]
    names: Bool[Tensor, "texts words"]
    name_counts: Int[Tensor, " texts"]

    def best_threshold(self) -> tuple[float, float]:
        """Return the score from which on words are named, so that F1 is best, and that F1."""
        scores, order = self.scores.flatten().sort(descending=True)
        hits = self.right.flatten()[order].cumsum(0)
        f1 = 2 * hits / (torch.arange(1, len(scores) + 1) + self.counts.sum())
        best = int(f1.argmax())
        return float(scores[best]), float(f1[best])

    def tallies(self, threshold: float, documents: Passages) -> dict[str, DocumentTally]:
        """Return precision, recall and F1 of the words with at least a score, and recall of seen words and of names."""
        named = self.scores >= threshold
        hits, named_counts = (self.right & named).sum(1), named.sum(1)
        ratios = {
            "word_f1": (2 * hits, named_counts + self.counts),
            "word_precision": (hits, named_counts),
            "word_recall": (hits, self.counts),
            "seen_word_recall": (hits, self.seen),
            "name_recall": ((self.names & named).sum(1), self.name_counts),
        }
        found = {name: DocumentTally(len(documents.document_ids)) for name in ratios}
        for name, (sums, counts) in ratios.items():
            found[name].add(documents.document_index, sums, counts)
        return found


class WordModel(NamedTuple):
    """Log-odds of each word, linear in a standardised vector.

    Attributes:
        weights: (numbers, words).
        offsets: (words,).
    """

    weights: Float[Tensor, "numbers words"]
    offsets: Float[Tensor, " words"]

    def rank(self, vectors: Float[Tensor, "texts numbers"], passages: Passages, words: ContentWords) -> Ranked:
        """Return the likeliest words of passages, by their standardised vectors."""
        count = min(_NAMED, len(words.words))
        parts = [(part @ self.weights + self.offsets).topk(count) for part in vectors.split(_ROWS)]
        scores, indices = (torch.cat([part[i] for part in parts]) for i in (0, 1))
        return Ranked(scores, *_right(indices, passages, words))


def read_words(
    vectors: dict[str, Float[Tensor, "_ numbers"]],
    passages: dict[str, Passages],
    words: ContentWords,
    *,
    passes: int,
    seed: int = 0,
) -> tuple[dict[str, DocumentTally], dict[str, DocumentTally]]:
    """Name content words of held-out passages.

    Penalty, scale, number of passes and threshold are those with the best F1 on validation passages.

    Args:
        vectors: of the train, validation and held_out passages, by part.
        passages: by part.
        words: that can be named.
        passes: greatest number of passes over the training passages; 0 for the closed form alone.
        seed: of the order of passages and of the noise.

    Returns:
        Precision, recall and F1 behind the texts' own vectors, and behind those of other texts.
    """
    ridge = Ridge(vectors["train"])
    seen = _ones(passages["train"].texts, words)
    validation = ridge.standardised(vectors["validation"])
    best, threshold, highest = _constant(ridge, words), float("inf"), 0.0

    def consider(model: WordModel) -> bool:
        nonlocal best, threshold, highest
        found, f1 = model.rank(validation, passages["validation"], words).best_threshold()
        better = f1 > highest
        if better:
            best, threshold, highest = WordModel(*(part.clone() for part in model)), found, f1
        return better

    for model in _discriminants(ridge, *seen, words):
        consider(model)
    waited = 0
    for model in _logistic(best, ridge, *seen, passes=passes, seed=seed):
        waited = 0 if consider(model) else waited + 1
        if waited >= _PATIENCE:
            break
    held_out = ridge.standardised(vectors["held_out"])
    own, another = (
        best.rank(rows, passages["held_out"], words) for rows in (held_out, held_out.roll(len(held_out) // 2, 0))
    )
    return own.tallies(threshold, passages["held_out"]), another.tallies(threshold, passages["held_out"])


def guess_words(passages: dict[str, Passages], words: ContentWords) -> dict[str, DocumentTally]:
    """Name the same words for every held-out passage: the commonest, as many as are best on validation passages."""
    most = words.shares.topk(min(_NAMED, len(words.words)))

    def ranked(part: str) -> Ranked:
        found = _right(most.indices.expand(len(passages[part]), -1), passages[part], words)
        return Ranked(most.values.expand(len(found[0]), -1), *found)

    return ranked("held_out").tallies(ranked("validation").best_threshold()[0], passages["held_out"])


def _constant(ridge: Ridge, words: ContentWords) -> WordModel:
    return WordModel(torch.zeros(len(ridge.mean), len(words.words)), _log_odds(words))


def _log_odds(words: ContentWords) -> Float[Tensor, " words"]:
    return words.shares.clamp(1e-6, 1 - 1e-6).logit()


def _discriminants(
    ridge: Ridge, rows: Int[Tensor, " ones"], targets: Int[Tensor, " ones"], words: ContentWords
) -> Iterator[WordModel]:
    """Yield log-odds in closed form, with several penalties and scales."""
    counts = torch.bincount(targets, minlength=len(words.words))
    for penalty, scale in product(_RIDGES, _SCALES):
        solved = ridge.weights(rows, targets, len(words.words), penalty) / words.shares.clamp(min=1e-6)
        weights = scale * solved * counts / (counts + _RARE)
        squares = (weights * (ridge.products @ weights)).sum(0) / len(ridge.vectors)
        yield WordModel(weights, _log_odds(words) - squares / 2)


def _logistic(
    start: WordModel, ridge: Ridge, rows: Int[Tensor, " ones"], targets: Int[Tensor, " ones"], *, passes: int, seed: int
) -> Iterator[WordModel]:
    """Yield the model after each pass over the training passages; it is changed by the next pass."""
    draw = torch.Generator().manual_seed(seed)
    model = WordModel(*(part.clone() for part in start))
    owned = targets.split(torch.bincount(rows, minlength=len(ridge.vectors)).tolist())
    optimizer = torch.optim.Adam(model, lr=_LEARNING_RATE)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, passes))
    for _ in range(passes):
        for batch in torch.randperm(len(ridge.vectors), generator=draw).split(_ROWS):
            vectors = ridge.vectors[batch]
            vectors = vectors + _NOISE * torch.randn(vectors.shape, generator=draw)
            _set_gradients(model, vectors, [owned[row] for row in batch.tolist()])
            optimizer.step()
        slower.step()
        yield model


def _set_gradients(model: WordModel, vectors: Float[Tensor, "rows numbers"], owned: Sequence[Tensor]) -> None:
    """Set the gradients of the cross-entropy of each word's presence, without a graph of as many numbers."""
    errors = (vectors @ model.weights).add_(model.offsets).sigmoid_()
    row = torch.arange(len(owned)).repeat_interleave(torch.tensor([len(words) for words in owned]))
    errors[row, torch.cat(list(owned))] -= 1
    model.weights.grad = vectors.T @ errors / len(vectors)
    model.offsets.grad = errors.mean(0)


def _ones(texts: Iterable[str], words: ContentWords) -> tuple[Int[Tensor, " ones"], Int[Tensor, " ones"]]:
    """Return the rows, in order, and the words of a table of which word each text has."""
    pairs = [(row, word) for row, text in enumerate(texts) for word in words.indices(text)[0]]
    table = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _right(
    named: Int[Tensor, "texts words"], passages: Passages, words: ContentWords
) -> tuple[Bool[Tensor, "_ _"], Int[Tensor, " _"], Int[Tensor, " _"], Bool[Tensor, "_ _"], Int[Tensor, " _"]]:
    """Return what `Ranked` holds beside scores: which of the named words each text has, and how many there are."""
    known = [words.indices(text) for text in passages.texts]
    names = [name_words_of(text) - words.common for text in passages.texts]
    own = [[words.words[word] for word in found if word in words.words] for found in names]
    right, of_names = (_among(named, rows) for rows in ([row for row, _ in known], own))
    sizes = ([count for _, count in known], [len(row) for row, _ in known], [len(found) for found in names])
    counts, seen, name_counts = map(torch.tensor, sizes)
    return right, counts, seen, of_names, name_counts


def _among(named: Int[Tensor, "texts words"], known: Sequence[Sequence[int]]) -> Bool[Tensor, "texts words"]:
    pairs = zip(named, known, strict=True)
    return torch.stack([torch.isin(row, torch.tensor(own, dtype=torch.long)) for row, own in pairs])
