"""Encoders side by side: queries and their ranks against a slow search, and the command on small encoders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from memlm.cli import main
from memlm.data import Document, Passages, TrainValTestSplit
from memlm.encoders import HuggingFaceEncoder, open_encoder
from memlm.evaluation.probe.dataset import dataset_of_documents
from memlm.evaluation.probe.metrics import ndcg, queries
from memlm.evaluation.probe.retention import _table_of  # pyright: ignore[reportPrivateUsage]
from tests.conftest import WORDS
from tests.encoders.embedders import WIDTH, byte_tokenizer, embedder

POOLED = ("Pooling", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True})


def test_queries_are_the_longest_sentences_of_passages_that_have_several() -> None:
    texts = ("a b c d. e f g h i j", "one sentence of many words here", "x. y z", "Who is there now? I am.")
    found, rows = queries(Passages(texts, torch.zeros(4, dtype=torch.long), ("a",)))
    assert found == ["e f g h i j", "Who is there now?"]
    assert rows.tolist() == [0, 3]


def test_gains_are_those_of_a_slow_search() -> None:
    draw = torch.Generator().manual_seed(0)
    stored, own = torch.randn(40, 5, generator=draw), torch.randperm(40, generator=draw)[:30]
    asked = stored[own] + torch.randn(30, 5, generator=draw)
    found = ndcg(asked, stored, own)
    for query, passage, gain in zip(asked, own.tolist(), found.tolist(), strict=True):
        scores = [float(torch.cosine_similarity(query, other, dim=0)) for other in stored]
        rank = 1 + sum(score > scores[passage] for score in scores)
        assert gain == pytest.approx(1 / math.log2(1 + rank) if rank <= 10 else 0.0)
    assert 0 < float((found == 0).sum()) < 30
    # what is the same everywhere finds nothing
    assert float(ndcg(asked, torch.ones(40, 5), own).max()) == 0


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prose")
    for i in range(12):
        draw = torch.Generator().manual_seed(i)
        words = [WORDS[j] for j in torch.randint(len(WORDS), (300,), generator=draw).tolist()]
        sentences = [" ".join([*words[j : j + 4], words[j].title()]) + "." for j in range(0, 300, 5)]
        (folder / f"{i}.txt").write_text(" ".join(sentences))
    return folder


SMALL = "--size small --length 12 --passages 60 --held-out-passages 40 --steps 2 --word-passes 1"


def test_encoders_are_compared(
    prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEMLM_CACHE", str(tmp_path / "cache"))
    first, second = (embedder(tmp_path / name, POOLED, backbone=name) for name in ("bert", "mpnet"))
    given = ["probe-compare", "--encoders", first, second, "--roundings", "none", "binary", "--text", str(prose)]
    given += [*SMALL.split(), "--writer-steps", "3", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    told = capsys.readouterr()
    assert [line.split()[0] for line in told.out.splitlines()[1:9:2]] == ["bert", "bert", "mpnet", "mpnet"]
    assert all(word in told.out for word in ("usable bits", "nDCG@10", "as they are", "binary", "Passages are found"))
    assert max(map(len, told.out.splitlines()[:9])) <= 80
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<table class="summary">' in page
    assert page.count("<svg") == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()]
    rows = {(line["split"], line["name"]): line["value"] for line in lines}
    assert {split for split, _ in rows} == {
        f"{name}, {kind}" for name in ("bert", "mpnet") for kind in ("none", "binary")
    }
    for name in ("usable_bits", "usable_share", "ndcg@10", "usable_bits/shuffled_memory"):
        assert ("bert, none", name) in rows
    assert rows["bert, none", "ndcg@10"] > rows["bert, binary", "ndcg@10"] > 0
    # the first row alone, which is there already
    assert main([*given[:3], "--roundings", "none", *given[7:], "--json"]) == 0
    again = {
        (line["split"], line["name"]): line["value"] for line in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert again == {key: value for key, value in rows.items() if key[0] == "bert, none"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ("--encoders is empty",)),
        (["--encoders", "RUN", "--length", "9"], ("--length (9)", "one chunk (8)")),
        (["--encoders", "x", "x"], ("names one encoder twice",)),
        (["--encoders", "RUN", "--roundings", "none", "none"], ("--roundings", "twice")),
        (["--encoders", "RUN", "--roundings", "int2"], ("int2", "binary")),
        (["--encoders", "RUN", "--length", "8", "--passages", "3"], ("passages (3)",)),
        (["--encoders", "RUN", "--text", "nowhere.txt"], ("no text at 'nowhere.txt'",)),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    words: tuple[str, ...],
    prose: Path,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(finished_run) if word == "RUN" else word for word in arguments]
    text = [] if "--text" in given else ["--text", str(prose)]
    assert main(["probe-compare", *given, *text, "--out", str(tmp_path / "out")]) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memlm: error")]
    assert all(word in line for word in words)


def test_a_table_of_tokens_is_the_encoders_own_where_passages_are_its_tokens(tmp_path: Path) -> None:
    encoder = open_encoder(embedder(tmp_path / "bert", POOLED, backbone="bert"))
    assert isinstance(encoder, HuggingFaceEncoder)
    table = _table_of(encoder, encoder.tokenizer)
    assert table is not None
    documents = TrainValTestSplit(*((Document("a", " ".join(WORDS) * 9),) for _ in range(3)))
    limits = {"train": 4, "validation": 2, "held_out": 2}
    dataset = dataset_of_documents(documents, encoder.tokenizer, length=8, limits=limits, seed=0, table=table)
    data = dataset.language_data(WIDTH)
    assert len(data.train_labels) > limits["train"]  # all training text, not only the passages that have vectors
    assert data.table is not None
    assert torch.equal(data.table[1:], table[dataset.vocabulary.ids])
    assert not data.table[0].any()
    assert _table_of(encoder, byte_tokenizer()) is None
