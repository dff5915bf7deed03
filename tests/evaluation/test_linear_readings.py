"""Linear readings find what is there, and nothing where there is nothing; verdicts say which it was."""

from __future__ import annotations

import re

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SlowRidge
from torch import Tensor

from memlm.data import Passages
from memlm.data.words import name_words_of, words_of
from memlm.evaluation.probe.content_words import (
    ContentWords,
    Ranked,
    WordModel,
    _set_gradients,  # pyright: ignore[reportPrivateUsage]
    guess_words,
    read_words,
)
from memlm.evaluation.probe.linear import Discriminant, Ridge
from memlm.evaluation.probe.verdict import headline, readings
from memlm.measurement import Measurement

SIZES = {"train": 600, "validation": 100, "held_out": 200}
_STARTS, _ENDS = ("ka", "lo", "mi", "nu", "pe", "qua"), [f"{a}{b}" for a in "rstvwxyzbd" for b in "ae"]
WORDS = [start + end for start in _STARTS for end in _ENDS]
NUMBERS = 150
NO_NAMES = torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2)


def passages(seed: int = 0) -> dict[str, Passages]:
    """Each text has five of 120 words, and words that all texts have."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for part, count in SIZES.items():
        rows = [torch.randperm(len(WORDS), generator=draw)[:5].tolist() for _ in range(count)]
        texts = tuple(f"the {' and the '.join(WORDS[i] for i in row)}" for row in rows)
        found[part] = Passages(texts, torch.arange(count) % 20, tuple(map(str, range(20))))
    return found


def bags(texts: dict[str, Passages], *, noise: float = 0.01) -> dict[str, Tensor]:
    """Vectors that are the sum of a vector of each word."""
    draw = torch.Generator().manual_seed(1)
    table = torch.randn(len(WORDS), NUMBERS, generator=draw)
    rows = {part: [[WORDS.index(w) for w in words_of(t) if w in WORDS] for t in p.texts] for part, p in texts.items()}
    sums = {part: torch.stack([table[row].sum(0) for row in found]) for part, found in rows.items()}
    return {part: x + noise * torch.randn(x.shape, generator=draw) for part, x in sums.items()}


def rare(texts: dict[str, Passages]) -> ContentWords:
    words = ContentWords.of(texts["train"].texts)
    assert {"the", "and"} <= words.common
    return words


def test_words_are_told_apart_in_every_script() -> None:
    assert words_of("Don't stop: 12 Äpfel, zwei-fach!") == ["don't", "stop", "12", "äpfel", "zwei", "fach"]
    assert words_of("東京都は") == ["東京", "京都", "都は"]


def test_names_are_capitalised_words_within_a_sentence() -> None:
    text = 'The old Mill by River Łódź, Anna said. Peace came to B. "Who?" asked Émile; Jo'
    assert name_words_of(text) == {"mill", "river", "łódź", "anna", "émile", "jo"}


def test_weights_are_those_of_a_slow_ridge_regression() -> None:
    vectors = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    ridge = Ridge(vectors)
    rows, targets = torch.tensor([0, 3, 3, 7, 20]), torch.tensor([0, 0, 1, 1, 2])
    table = torch.zeros(50, 3)
    table[rows, targets] = 1
    slow = SlowRidge(alpha=0.1 * 50).fit(ridge.vectors.numpy(), table.numpy())
    torch.testing.assert_close(ridge.weights(rows, targets, 3, 0.1).T, torch.tensor(slow.coef_), rtol=1e-4, atol=1e-5)


def test_classes_are_those_of_a_slow_discriminant_analysis() -> None:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(1, 5, (400,), generator=draw)
    vectors = torch.randn(5, 8, generator=draw)[targets] + 0.7 * torch.randn(400, 8, generator=draw)
    found = Discriminant.of(vectors, targets, 6, 0.0).predict(vectors)
    slow = LinearDiscriminantAnalysis(solver="lsqr").fit(vectors.numpy(), targets.numpy()).predict(vectors.numpy())
    assert (found.numpy() == slow).mean() > 0.97
    assert int(found.min()) > 0


def test_the_threshold_is_the_best_of_all() -> None:
    scores = torch.tensor([[3.0, 1.0], [2.0, 0.5]])
    ranked = Ranked(scores, torch.tensor([[True, False], [True, True]]), torch.tensor([2, 2]), torch.ones(2), *NO_NAMES)
    tried = {t: 2 * (ranked.right & (scores >= t)).sum() / ((scores >= t).sum() + 4) for t in (3.0, 2.0, 1.0, 0.5)}
    threshold, f1 = ranked.best_threshold()
    assert f1 == pytest.approx(float(max(tried.values())))
    assert tried[threshold] == max(tried.values())


@pytest.mark.parametrize("passes", [0, 4])
def test_words_of_bags_are_named_and_those_of_noise_are_not(passes: int) -> None:
    texts = passages()
    words = rare(texts)
    own, another = read_words(bags(texts), texts, words, passes=passes)
    assert own["word_f1"].ratio() > 0.9
    assert another["word_f1"].ratio() < 0.25
    draw = torch.Generator().manual_seed(5)
    noise = {part: torch.randn(count, NUMBERS, generator=draw) for part, count in SIZES.items()}
    constant = {part: torch.ones(count, NUMBERS) for part, count in SIZES.items()}
    guess = guess_words(texts, words)["word_f1"]
    for empty in (noise, constant):
        found, _ = read_words(empty, texts, words, passes=passes)
        assert found["word_f1"].ratio() < (guess.interval().high or 0.0) + 0.03


def test_gradients_are_those_of_a_slow_logistic_regression() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors, weights, offsets = (torch.randn(*shape, generator=draw) for shape in ((3, 5), (5, 4), (4,)))
    model = WordModel(weights, offsets)
    _set_gradients(model, vectors, [torch.tensor([0, 2]), torch.tensor([], dtype=torch.long), torch.tensor([3])])
    slow = WordModel(weights.clone().requires_grad_(), offsets.clone().requires_grad_())
    table = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]])
    logits = vectors @ slow.weights + slow.offsets
    (torch.nn.functional.binary_cross_entropy_with_logits(logits, table, reduction="sum") / 3).backward()
    torch.testing.assert_close(model.weights.grad, slow.weights.grad)
    torch.testing.assert_close(model.offsets.grad, slow.offsets.grad)


def test_passes_over_the_training_passages_are_kept_where_they_gain() -> None:
    texts = passages()
    noisy = bags(texts, noise=2.0)
    closed, trained = (read_words(noisy, texts, rare(texts), passes=n)[0]["word_f1"].ratio() for n in (0, 8))
    assert trained >= closed - 0.01
    assert read_words(noisy, texts, rare(texts), passes=8)[0]["word_f1"].ratio() == trained


def test_sums_of_word_vectors_can_be_read() -> None:
    texts = passages()
    words = rare(texts)
    sums = words.sums(texts, width=NUMBERS, seed=0)
    first, second = (words.indices(text)[0] for text in texts["train"].texts[:2])
    table = torch.randn(len(WORDS), NUMBERS, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sums["train"][0], table[first].sum(0))
    torch.testing.assert_close(sums["train"][1], table[second].sum(0))
    assert read_words(sums, texts, words, passes=0)[0]["word_f1"].ratio() > 0.9


def test_recall_of_names_counts_words_of_names_alone() -> None:
    texts = passages()
    held_out = texts["held_out"]
    capital = tuple(re.sub(r"(\w+)$", lambda last: last[0].title(), text) for text in held_out.texts)
    named = {**texts, "held_out": Passages(capital, held_out.document_index, held_out.document_ids)}
    own, another = read_words(bags(texts), named, rare(texts), passes=0)
    last = [words_of(text)[-1] for text in capital]
    assert own["name_recall"].count == sum(word not in rare(texts).common for word in last)
    assert own["name_recall"].ratio() > 0.9 > 0.3 > another["name_recall"].ratio()
    assert read_words(bags(texts), texts, rare(texts), passes=0)[0]["name_recall"].count == 0


def test_words_that_training_never_saw_count_as_missed() -> None:
    texts = passages()
    held_out = texts["held_out"]
    longer = tuple(f"{text} unseen" for text in held_out.texts)
    own, _ = read_words(bags(texts), {**texts, "held_out": held_out}, rare(texts), passes=0)
    more, _ = read_words(
        bags(texts),
        {**texts, "held_out": Passages(longer, held_out.document_index, held_out.document_ids)},
        rare(texts),
        passes=0,
    )
    assert more["seen_word_recall"].ratio() == own["seen_word_recall"].ratio()
    assert more["word_recall"].sums.sum() == own["word_recall"].sums.sum()
    assert more["word_recall"].count == own["word_recall"].count + SIZES["held_out"]
    assert more["word_precision"].ratio() == own["word_precision"].ratio()


def figure(name: str, value: float, width: float | None = 0.01) -> Measurement:
    low, high = (None, None) if width is None else (value - width, value + width)
    return Measurement(
        name=name, value=value, unit="fraction", low=low, high=high, count=9, split="8 tokens", protocol=""
    )


@pytest.mark.parametrize(
    ("values", "passages", "status", "reason"),
    [
        ({"": 0.5, "guess": 0.1, "shuffled_memory": 0.1, "word_sums": 0.9}, 5000, "found", ""),
        ({"": 0.1, "guess": 0.1, "shuffled_memory": 0.1, "word_sums": 0.9}, 5000, "nothing found", ""),
        ({"": 0.1, "guess": 0.1, "shuffled_memory": 0.1, "word_sums": 0.3}, 5000, "inconclusive", "did not learn"),
        ({"": 0.1, "guess": 0.1, "shuffled_memory": 0.1, "word_sums": 0.9}, 100, "inconclusive", "100 training"),
        ({"": 0.1, "guess": 0.1, "shuffled_memory": 0.1, "autoencoder": 0.9}, 5000, "inconclusive", "no positive"),
    ],
)
def test_a_verdict_rests_on_controls(values: dict[str, float], passages: int, status: str, reason: str) -> None:
    found = readings(
        [figure("word_f1" + (name and f"/{name}"), value) for name, value in values.items()], "8 tokens", passages
    )
    assert [reading.status for reading in found] == [status]
    assert reason in found[0].reason
    said = headline(found, encoder="e", numbers=4, length=8, passages=passages)
    assert {"found": "At least 50.0 %", "nothing found": "Nothing was found", "inconclusive": "Inconclusive"}[
        status
    ] in said


def test_without_intervals_nothing_is_concluded() -> None:
    [found] = readings([figure("word_f1", 0.9, None), figure("word_f1/guess", 0.1, None)], "8 tokens", 5000)
    assert found.status == "inconclusive"


@pytest.mark.parametrize(
    ("untrained", "said"),
    [
        (0.2, "so training adds to what can be read."),
        (0.49, "so this is no effect of training."),
        (None, "gives 10.0 %."),
    ],
)
def test_what_can_be_read_and_what_training_put_there_are_two_statements(untrained: float | None, said: str) -> None:
    figures = [figure("word_f1", 0.5), figure("word_f1/guess", 0.1)]
    figures += [] if untrained is None else [figure("word_f1/untrained", untrained)]
    [found] = readings(figures, "8 tokens", 5000)
    assert found.status == "found"
    sentence = headline([found], encoder="e", numbers=4, length=8, passages=5000)
    assert sentence.startswith("At least 50.0 % of the content words")
    assert sentence.endswith(said)
