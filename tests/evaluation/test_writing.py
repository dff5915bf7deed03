"""Readings by a decoder that writes: bits against a twin without the vector, and texts against slow comparisons."""

from __future__ import annotations

import math
from collections import Counter
from difflib import SequenceMatcher
from typing import Any

import pytest
import torch
from torch import Tensor

from memlm.data import PackedRows
from memlm.evaluation.probe.verdict import headline, readings
from memlm.evaluation.probe.writing import (
    Writing,
    common_subsequence,
    common_tokens,
    information_measurements,
    score_writer,
    text_measurements,
)
from memlm.measurement import DocumentTally, Measurement
from memlm.models import ProbeConfig, ProbeDecoder

COUNT, LENGTH = 24, 5


def rows(ids: Tensor, mask: Tensor | None = None) -> PackedRows:
    documents = torch.arange(len(ids)) % 12
    return PackedRows(ids, torch.ones_like(ids) if mask is None else mask, documents, tuple(map(str, range(12))))


def draw(*shape: int, seed: int = 0, highest: int = 6) -> Tensor:
    return torch.randint(1, highest, shape, generator=torch.Generator().manual_seed(seed))


def tally(nats: float) -> DocumentTally:
    found = DocumentTally(12)
    found.add(torch.arange(COUNT) % 12, torch.linspace(nats - 1, nats + 1, COUNT), torch.ones(COUNT))
    return found


def slow_subsequence(first: list[int], second: list[int]) -> int:
    if not first or not second:
        return 0
    if first[0] == second[0]:
        return 1 + slow_subsequence(first[1:], second[1:])
    return max(slow_subsequence(first[1:], second), slow_subsequence(first, second[1:]))


def test_shared_tokens_and_subsequences_are_those_of_slow_counts() -> None:
    first, second = draw(40, 6, seed=1), draw(40, 6, seed=2)
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    assert common_tokens(first, second).tolist() == [sum((Counter(a) & Counter(b)).values()) for a, b in pairs]
    assert common_subsequence(first, second).tolist() == [slow_subsequence(a, b) for a, b in pairs]
    assert common_subsequence(first, first).tolist() == [6] * 40
    assert SequenceMatcher(None, *pairs[0]).find_longest_match().size <= common_subsequence(first, second)[0]


def test_written_texts_are_cut_at_their_passages_lengths() -> None:
    ids = draw(COUNT, LENGTH)
    mask = torch.ones_like(ids)
    mask[::2, 3:] = 0
    written = ids.clone()
    written[::2, 3:] = 99  # behind the end
    found = {m.name: m.value for m in text_measurements("", rows(ids, mask), written, "5 tokens", beams=1)}
    for name in ("written_token_f1", "written_rouge_l", "written_exact_match"):
        assert found[name] == 1
        assert found[f"{name}/shuffled_memory"] < 0.9


def test_a_protocol_says_how_texts_were_written() -> None:
    ids = draw(COUNT, LENGTH)
    for beams, protocol in ((1, "greedy"), (4, "beam_search_4")):
        assert {m.protocol for m in text_measurements("", rows(ids), ids, "5 tokens", beams=beams)} == {protocol}
    control = text_measurements("word_sums", rows(ids), ids, "5 tokens", beams=1)
    assert [m.name.partition("/")[2] for m in control] == ["word_sums"] * 3


def test_bits_are_what_the_vector_saves() -> None:
    writing = Writing(tally(20.0), tally(50.0), torch.empty(0, LENGTH).long())
    found = {m.name: m for m in information_measurements("", writing, tally(40.0), tally(60.0), "5 tokens")}
    assert found["usable_bits"].value == pytest.approx(20 / math.log(2))
    assert found["usable_share"].value == pytest.approx(0.5)
    assert found["usable_share/shuffled_memory"].value == pytest.approx(-0.25)
    assert found["usable_share/language"].value == pytest.approx(1 / 3)
    assert found["usable_bits"].protocol == "teacher_forced"
    control = information_measurements("untrained", writing, tally(40.0), tally(60.0), "5 tokens")
    assert [m.name for m in control] == ["usable_bits/untrained", "usable_share/untrained"]


def verdict(own: float, *, without: float = 40.0, unigram: float = 60.0, sums: float | None = 20.0) -> str:
    def measured(name: str, nats: float) -> list[Measurement]:
        writing = Writing(tally(nats), tally(without + 5), torch.empty(0, LENGTH).long())
        return information_measurements(name, writing, tally(without), tally(unigram), "5 tokens")

    figures = measured("", own) + ([] if sums is None else measured("word_sums", sums))
    return headline(readings(figures, "5 tokens", 5000), encoder="e", numbers=4, length=5, passages=5000)


def test_a_verdict_is_of_bits_and_needs_a_decoder_that_learnt_to_write() -> None:
    assert verdict(30.0).startswith("At least 25.0 % of the information (14.4 of 57.7 bits) of a 5-token passage")
    assert verdict(42.0).startswith("Nothing was found")
    assert "reads 2.5 %" in verdict(42.0, sums=39.0)
    assert "no positive control" in verdict(42.0, sums=None)
    assert "did not learn to write: it saves 0.5 %" in verdict(30.0, without=59.7)


def test_scores_are_of_each_passage_and_of_another_texts_vector() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 6,
        "length": LENGTH,
        "vector_size": 8,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
    }
    model = ProbeDecoder(ProbeConfig(**sizes, reads_tokens=True, backbone="llama", learned_positions=True)).eval()
    ids, vectors = draw(COUNT, LENGTH), torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0))
    found = score_writer(model, rows(ids), vectors, beams=1)
    slow = [
        -model.teacher_forced(vectors[i : i + 1], ids[i : i + 1])[0].log_softmax(-1)[torch.arange(LENGTH), ids[i]].sum()
        for i in range(COUNT)
    ]
    assert found.nats.row_sums == pytest.approx(torch.stack(slow).detach().numpy(), rel=1e-4)
    other = score_writer(model, rows(ids), vectors.roll(COUNT // 2, 0), beams=0)
    assert other.nats.row_sums == pytest.approx(found.shuffled_nats.row_sums)
    assert found.texts.shape == ids.shape
    assert len(other.texts) == 0
