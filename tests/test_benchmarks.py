"""Benchmarks still run: what they time changes under them."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.ask_documents import Options as AskOptions
from benchmarks.ask_documents import main as ask_documents
from benchmarks.ask_documents import subjects
from benchmarks.attention import Options as AttentionOptions
from benchmarks.attention import seconds
from benchmarks.audit import main as audit_notes
from benchmarks.beyond_positions import Options as BeyondOptions
from benchmarks.beyond_positions import main as ask_beyond
from benchmarks.context_gain import Options as GainOptions
from benchmarks.context_gain import main as share_of_the_gain
from benchmarks.injections import Options as InjectionOptions
from benchmarks.injections import main as compare_injections
from benchmarks.long_document import Options as LongOptions
from benchmarks.long_document import main as read_long_document
from benchmarks.long_document import planted
from benchmarks.memory import CASES, peak_of, time_pair
from benchmarks.planted_facts import Options as FactOptions
from benchmarks.planted_facts import main as recall_facts
from benchmarks.processes import Options, rate, trained
from benchmarks.rivals import Options as RivalOptions
from benchmarks.rivals import main as compare_rivals
from benchmarks.slot_codes import Options as CodeOptions
from benchmarks.slot_codes import main as compare_codes
from benchmarks.slot_seconds import Options as SlotOptions
from benchmarks.slot_seconds import main as seconds_of_slots
from benchmarks.store import STEPS, WAYS, search, smallest_model, step, stream

from memlm.errors import DataError
from memlm.evaluation.memory.context_gain import ContextGainSettings
from memlm.session import AskSettings
from memlm.store import MemoryStore
from tests.training.test_pretrained import decoder  # noqa: F401 (a fixture)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("pair", [CASES[:2], CASES[2:]])
def test_every_case_of_the_memory_benchmark_runs(pair: tuple[str, str], precision: str) -> None:
    options = argparse.Namespace(encoder=[(1, 32)], batch_size=2, repeats=3, precision=precision)
    found = time_pair(*pair, options)
    assert found["low"] <= found["ratio"] <= found["high"]
    assert min(found[case] for case in pair) > 0
    assert peak_of(pair[0], options)["peak"] > 1e6


def test_attention_is_timed() -> None:
    options = AttentionOptions(positions=16, repeats=1)
    assert min(seconds(20, torch.bfloat16, options)) >= 0


def test_search_is_timed() -> None:
    found = search(argparse.Namespace(chunks=2500, numbers=8))
    assert found["bytes on disk per byte of int8 vectors"] > 1


@pytest.mark.parametrize("per_commit", [0, 7])
def test_every_step_of_many_documents_is_timed(per_commit: int, tmp_path: Path) -> None:
    model = str(smallest_model(tmp_path / "model"))
    options = argparse.Namespace(model=model, count=250, per_commit=per_commit, store=str(tmp_path / "s"))
    found = {name: step(name, options) for name in STEPS}
    assert min(figures["seconds"] for figures in found.values()) > 0
    assert min(figures["peak"] for figures in found.values()) > 2**26
    with MemoryStore.open(tmp_path / "s") as store:
        assert len(store) == 25
        assert len(store.segments()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_a_long_text_is_timed(way: str, memory_run: Path) -> None:
    options = argparse.Namespace(model=str(memory_run), tokens=3000, characters_per_token=2.0)
    found = stream(way, options)
    assert found["tokens"] > 1000
    assert found["seconds"] > 0


def test_processes_are_timed(corpus: Path, tmp_path: Path) -> None:
    flags = ("training.batch_size=4", "data.vocab_size=300", "data.held_out=0.2")
    options = Options(steps=20, text=str(corpus), changes=flags)
    for processes in (1, 2):
        log = trained(options, tmp_path / str(processes), processes=processes)
        assert [line["step"] for line in log] == [10, 20]
        assert rate(log) > 0


def test_codes_of_slots_are_compared(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = ContextGainSettings(rows=3, context=64, window=4, scored=4, ratios=(2, 16), batch_size=2)
    compare_codes(CodeOptions(str(decoder), text=str(corpus), mode="chunks", measure=measure))
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = ["not rounded", "16 bits", "8 bits", "4 bits"]
    assert [row[0].strip() for row in rows] == ["", "alone", "full", *names, *names]
    # with random weights, 16 bits change next to nothing
    assert all(abs(float(row[3])) < 5 for row in rows if row[0].strip() == "16 bits")


def test_the_share_of_the_gain_is_printed_and_kept(
    decoder: Path,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = ContextGainSettings(rows=3, context=64, window=4, scored=4, ratios=(2, 16), batch_size=2)
    kept = tmp_path / "kept.jsonl"
    options = GainOptions(str(decoder), text=str(corpus), split="all", measure=measure, kept=str(kept))
    share_of_the_gain(options)
    first, size = capsys.readouterr().out, kept.stat().st_size
    share_of_the_gain(options)
    assert capsys.readouterr().out == first
    assert kept.stat().st_size == size
    names = [line.split("|")[1].strip() for line in first.splitlines() if line.startswith("| ")]
    assert {"truncation", "joint", "joint, another text's", "chunks", "chunks over truncation"} <= set(names)


def test_injections_are_trained_and_compared(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = ContextGainSettings(rows=3, context=64, window=4, scored=4, ratios=(2, 16))
    sizes = {"steps": 2, "chunk_length": 16, "num_chunks": 3, "repeats": 1, "measure": measure}
    compare_injections(InjectionOptions(str(decoder), text=str(corpus), **sizes))
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0].strip() for row in rows] == ["", "truncation", "kv", "input", "layer", "code"]
    numbers = {row[0].strip(): float(row[3]) for row in rows[2:]}
    # two layers with keys and values of 8 numbers each, and slots for the first token and 8 memories of 64 tokens
    assert numbers == {"kv": 2 * 2 * 8 * 9 / 64, "input": 16 / 8, "layer": 16 / 8, "code": 16 / 8}
    assert all(row[4].strip() != "0" and float(row[5]) >= 0 for row in rows[2:])


def test_seconds_of_slots_are_measured(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"tokens": 64, "prompt": 4, "chunk_length": 16, "num_chunks": 2, "new_tokens": 2, "repeats": 1}
    seconds_of_slots(SlotOptions(str(decoder), text=str(corpus), **sizes))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 7
    # two layers with keys and values of 8 numbers and a bias in fp32, and a slot for the first token
    assert f"cache: {2 * 17 * 4 * 9:,} bytes behind memories, {2 * 17 * 4 * 65:,} behind all" in lines[-1]


def test_passages_beyond_the_positions_are_asked_for(
    decoder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"rows": 2, "tokens": 1800, "max_positions": 800, "begun": 4, "scored": 4}
    ask_beyond(BeyondOptions(str(decoder), **sizes))
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows == ["", "no memories", "oldest forgotten", "oldest overlap", "positions for all"]


def rows_of(printed: str) -> list[list[str]]:
    """Return the cells of a printed table."""
    return [[cell.strip() for cell in x.split("|")[1:-1]] for x in printed.splitlines() if x.startswith("| ")]


def test_planted_facts_are_asked_for(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"rows": 5, "context": 128, "window": 4, "scored": 1, "ratios": (1, 4), "batch_size": 2}
    measure = ContextGainSettings(**sizes, baselines=("truncation",))
    recall_facts(FactOptions(str(decoder), text=str(corpus), split="all", modes=("joint",), measure=measure))
    _, *rows = rows_of(capsys.readouterr().out)
    kinds = [f"{name} / {ratio}" for ratio in (1, 4) for name in ("truncation", "joint", "joint, another text's")]
    assert [row[0] for row in rows] == ["nothing", "all tokens", *kinds]
    scores = {row[0]: row[1:3] for row in rows}
    # one memory for each token is what all tokens are
    assert scores["joint / 1"] == scores["truncation / 1"] == scores["all tokens"]


def test_documents_are_asked_in_every_way(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sizes = {"num_documents": 2, "tokens": 400, "questions": 2, "absent": 2}
    ask_documents(AskOptions(str(decoder), text=str(corpus), split="all", **sizes))
    printed = capsys.readouterr().out
    _, *rows = rows_of(printed)
    assert "of 2 stated facts" in printed
    assert "of 2 absent ones" in printed
    inputs = {row[0]: float(row[3]) for row in rows}
    assert list(inputs) == list(AskOptions(str(decoder)).ways)
    assert inputs["nothing"] < inputs["the same prompt alone"] < inputs["ask"]
    assert inputs["memories only"] < inputs["ask"]


def test_more_facts_than_wordings_are_refused() -> None:
    with pytest.raises(DataError, match="questions and absent .217. must not exceed 216"):
        subjects(AskOptions("", questions=200, absent=17))


_EVICTED = """
import json, sys
job = json.load(open(sys.argv[2]))
for name in job["presses"]:
    for count in job["counts"]:
        for number, row in enumerate(job["rows"]):
            print(json.dumps(dict(kind="row", number=number, name=name, count=count, nats=float(count))))
        for number, question in enumerate(job["questions"]):
            nats = [float(choice != question["choices"][0]) for choice in question["choices"]]
            print(json.dumps(dict(kind="question", number=number, name=name, count=count, nats=nats)))
    print(json.dumps(dict(kind="seconds", name=name, seconds=0.5)))
"""


def test_memories_are_compared_with_rivals(
    decoder: Path,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = ContextGainSettings(rows=3, context=96, window=4, scored=4, ratios=(2, 16))
    worker, python = tmp_path / "evicted.py", tmp_path / "environment" / "bin" / "python"
    worker.write_text(_EVICTED)
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{worker}" "$@"\n')
    python.chmod(0o755)
    sizes = {"facts": 2, "presses": ("Knorm",), "environment": str(tmp_path / "environment"), "measure": measure}
    compare_rivals(RivalOptions(str(decoder), text=str(corpus), split="all", **sizes))
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    ours = ["memlm, joint", "memlm, chunks", "Attention Matching, replayed queries", "truncation", "found passages"]
    every = [*ours, "Knorm"]
    assert [row[0] for row in rows] == ["", *every, "", *every[1:], "", *every, "", *every]
    assert rows[0] == ["", "2", "16"]
    dense, sparse = (float(cell) for cell in rows[12][1:])
    # what the stand-in says of 48 and of 6 entries, less what joint memories lose
    assert dense - sparse == pytest.approx(48 - 6, abs=3)
    # keys and values of 8 numbers in two layers; memories have biases and positions, too
    entries = {row[0]: row[1:] for row in rows[-6:]}
    assert entries["Knorm"] == ["0.50", "64", "64.0"]
    assert entries["truncation"][1] == "64"
    assert float(entries["truncation"][2]) < 10
    _, cached, stored = map(float, entries["memlm, joint"])
    assert 64 < cached < 80
    assert stored < cached / 2


def test_without_an_environment_of_kvpress_the_other_ways_are_compared(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measure = ContextGainSettings(rows=3, context=32, window=4, scored=4, ratios=(1, 4))
    compare_rivals(RivalOptions(str(decoder), text=str(corpus), split="all", facts=0, presses=(), measure=measure))
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    shares = {row[0]: row[1] for row in rows[1:6]}
    # as many entries as tokens lose nothing; a fit loses its ridge
    for name, loses in {"memlm, joint": 0.2, "truncation": 0.2, "Attention Matching, replayed queries": 10}.items():
        assert float(shares[name]) == pytest.approx(100, abs=loses)
    assert not any("Planted" in line for line in lines)


def test_facts_are_planted_at_their_depths() -> None:
    options = LongOptions("", depths=(0, 50, 100), facts=2)
    text, facts = planted(". ".join(f"sentence {i}" for i in range(200)) + ".", options)
    assert [depth for depth, _ in facts] == [0, 0, 50, 50, 100, 100]
    for depth, fact in facts:
        places = [found.start() / len(text) for found in re.finditer(f" {fact.words[fact.right]}", text)]
        assert any(place == pytest.approx(depth / 100, abs=0.05) for place in places)


def test_a_long_document_is_kept_on_disk_and_asked(
    decoder: Path,  # noqa: F811
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reading = AskSettings(slots=64)
    sizes = {"tokens": 1500, "depths": (0, 100), "facts": 1, "reading": reading}
    read_long_document(LongOptions(str(decoder), text=str(corpus), split="all", **sizes))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["a quarter", "all"]
    for line in lines[:2]:
        assert re.search(r"encoded in \d+\.\d s; \d+ MiB resident .*; \d+\.\d MiB on disk", line)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[0] == ["", "0 %", "100 %", "all", "first token, s"]
    assert [row[0] for row in rows[1:]] == ["with the question", "all alike"]


@pytest.mark.filterwarnings("ignore")
def test_an_audit_of_made_up_notes(finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--encoder", str(finished_run), "--notes", "60", "--length", "8", "--size", "small"]
    audit_notes([*arguments, "--writer-steps", "2", "--no-controls", "--out", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if line.startswith("8 tokens")][:4] == [
        "8 tokens",
        "8 tokens, fp16",
        "8 tokens, int8",
        "8 tokens, binary",
    ]
    assert "| unseen names | " in told
    assert len((tmp_path / "out" / "notes.jsonl").read_text().splitlines()) == 60
