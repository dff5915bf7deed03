"""Figures against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from memlm.errors import DataError, UserError
from memlm.measurement import (
    Baseline,
    DocumentTally,
    Measurement,
    binomial_interval,
    bootstrap_interval,
    correct,
    exact_rows,
    measure_bits,
    measure_ratio,
    paper_nats,
    ratio_interval,
    retention,
    rows_with_targets,
    t_interval,
    uniform_nats,
    unigram_log_probabilities,
    unigram_nats,
    units_of,
)
from memlm.shapes import IGNORE_INDEX as X


def tally_of(*rows: tuple[int, float, float]) -> DocumentTally:
    index, sums, counts = (torch.tensor(column) for column in zip(*rows, strict=True))
    tally = DocumentTally(int(index.max()) + 1)
    tally.add(index, sums.double(), counts.double())
    return tally


def test_baselines_have_the_papers_values() -> None:
    assert uniform_nats(8000) == pytest.approx(8.987, abs=5e-4)
    assert paper_nats(8000) == pytest.approx(9.0285, abs=5e-5)
    for vocabulary, nats in ((4096, 8.359), (30_522, 10.368), (128_256, 11.803)):
        assert paper_nats(vocabulary) == pytest.approx(nats, abs=5e-4)
    generator = torch.Generator().manual_seed(0)
    logits = torch.rand(64, 8000, generator=generator)
    measured = torch.nn.functional.cross_entropy(logits, torch.zeros(64, dtype=torch.long))
    assert float(logits.logsumexp(1).mean() - 0.5) == pytest.approx(paper_nats(8000), abs=1e-3)
    assert float(measured) == pytest.approx(paper_nats(8000), abs=0.2)


def test_information_by_hand() -> None:
    assert retention(1.0, 4.0) == 0.75
    nats = tally_of(*[(i, 2 * (i + 1) * math.log(2), 1.0) for i in range(10)])
    sizes = tally_of(*[(i, i + 1.0, 1.0) for i in range(10)])
    per_byte = measure_bits("bits_per_byte", "bits/byte", nats, sizes, "s")
    assert (per_byte.value, per_byte.unit, per_byte.count) == (pytest.approx(2), "bits/byte", 10)
    assert (per_byte.low, per_byte.high) == (pytest.approx(2), pytest.approx(2))
    assert per_byte.exact_low is None
    probabilities = unigram_log_probabilities(torch.tensor([0, 1, 2])).exp()
    torch.testing.assert_close(probabilities, torch.tensor([1, 2, 3], dtype=torch.float64) / 6)
    assert float(unigram_nats(probabilities.log(), torch.tensor([2]))) == pytest.approx(math.log(2))
    with pytest.raises(UserError, match=r"the baseline \(0.0 nats\)"):
        retention(1.0, 0.0)
    with pytest.raises(UserError, match="vocabulary of 1"):
        uniform_nats(1)


def test_accuracy_leaves_out_what_is_not_asked() -> None:
    predicted, labels = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[1, 9, X], [4, 5, X]])
    assert correct(predicted, labels).tolist() == [[True, False, False], [True, True, False]]
    assert exact_rows(predicted, labels).tolist() == [False, True]
    assert rows_with_targets(torch.tensor([[X, X], [X, 1]])).tolist() == [0, 1]


def test_a_tally_divides_once_however_it_was_fed() -> None:
    whole, parts = DocumentTally(2), DocumentTally(2)
    index, sums, counts = torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 2, 5])
    whole.add(index, sums, counts)
    for i in range(3):
        parts.add(index[i : i + 1], sums[i : i + 1], counts[i : i + 1])
    assert whole.ratio() == parts.ratio() == 7 / 8
    assert whole.sums.tolist() == [1, 6]


def test_intervals_cover_what_they_should() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        values = generator.normal(3.0, 1.0, size=40)
        low, high = bootstrap_interval(values, np.ones(40), seed=trial)
        covered += low <= 3.0 <= high
    assert 85 <= covered <= 100
    assert bootstrap_interval(np.ones(5), np.ones(5)) == (1.0, 1.0)
    assert all(map(math.isnan, bootstrap_interval(np.zeros(2), np.zeros(2))))


def test_measurements_survive_a_line_of_json() -> None:
    m = Measurement(
        name="retention/uniform",
        value=0.5,
        unit="fraction",
        low=0.4,
        high=0.6,
        count=7,
        baseline=Baseline(name="uniform", value=8.987, unit="nats/token"),
        split="held_out",
        protocol="one_pass",
    )
    assert Measurement.from_json_line(m.to_json_line()) == m
    assert list(m.model_dump()) == [
        *("name", "value", "unit", "low", "high", "exact_low", "exact_high", "interval_note"),
        *("count", "baseline", "split", "protocol"),
    ]
    with pytest.raises(DataError, match="not a measurement"):
        Measurement.from_json_line('{"name": 3}')


def test_intervals_over_seeds_are_students() -> None:
    assert t_interval([0.5]) == (0.5, 0.5)
    low, high = t_interval([1.0, 2.0, 3.0])  # standard error 1 / sqrt(3), two degrees of freedom
    assert (low, high) == (pytest.approx(2 - 4.302652730 / 3**0.5), pytest.approx(2 + 4.302652730 / 3**0.5))
    many = [float(i % 2) for i in range(100)]
    assert t_interval(many)[1] == pytest.approx(0.5 + 1.984216952 * (25 / 99) ** 0.5 / 10)


def test_exact_intervals_have_the_published_values_and_cover_what_they_should() -> None:
    # Clopper and Pearson (1934); the ends for no and for all successes have a closed form
    assert binomial_interval(10, 20) == (pytest.approx(0.27195784), pytest.approx(0.72804216))
    assert binomial_interval(0, 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))
    assert binomial_interval(30, 30) == (pytest.approx(0.025 ** (1 / 30)), 1.0)
    for share in (0.02, 0.5, 0.9):
        weights = [math.comb(25, k) * share**k * (1 - share) ** (25 - k) for k in range(26)]
        ends = [binomial_interval(k, 25) for k in range(26)]
        assert sum(w for w, (low, high) in zip(weights, ends, strict=True) if low <= share <= high) >= 0.95


def test_intervals_resample_documents_or_pieces_or_say_why_not() -> None:
    many = tally_of(*[(i, i % 2, 1.0) for i in range(12)]).interval()
    assert many.note == "bootstrap over 12 documents"
    assert many.low is not None
    few = tally_of(*[(i // 30, float(i % 2), 1.0) for i in range(90)])
    assert few.interval().note == "bootstrap over 21 pieces of 3 documents"
    units = units_of(few.document_index, few.row_sums, few.row_counts, 3)
    assert units.counts.tolist() == [5, 4, 4, 5, 4, 4, 4] * 3  # consecutive rows of one document
    assert units.sums.sum() == few.sums.sum()
    tiny = tally_of((0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, 1.0))
    record = measure_ratio("token_accuracy", "fraction", tiny, "s")
    assert (record.low, record.high) == (None, None)
    assert record.interval_note == "no interval: 3 pieces of 2 documents, fewer than 10"
    assert (record.exact_low, record.exact_high) == binomial_interval(2, 3)


def test_rows_that_resemble_their_neighbours_make_pieces_wider_than_rows() -> None:
    # one document whose rows are all right in one half and all wrong in the other
    one = tally_of(*[(0, float(i < 100), 1.0) for i in range(200)])
    low, high = one.interval().low, one.interval().high
    alone = bootstrap_interval(one.row_sums, one.row_counts)
    assert low is not None
    assert high is not None
    assert high - low > 2 * (alone[1] - alone[0])
    assert ratio_interval(units_of(one.document_index, one.row_sums, one.row_counts, 1)).note.endswith(
        "20 pieces of 1 document"
    )
