"""Benchmarks still run: what they time changes under them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from benchmarks.memory import CASES, measure
from benchmarks.store import WAYS, search, stream


@pytest.mark.parametrize("case", CASES)
def test_every_case_of_the_memory_benchmark_runs(case: str) -> None:
    options = argparse.Namespace(encoder=[(1, 32)], batch_size=2, repeats=1)
    assert measure(case, options)["seconds"] > 0


def test_search_is_timed() -> None:
    found = search(argparse.Namespace(chunks=2500, numbers=8))
    assert found["bytes on disk per byte of int8 vectors"] > 1


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_a_long_text_is_timed(way: str, memory_run: Path) -> None:
    options = argparse.Namespace(model=str(memory_run), tokens=3000, characters_per_token=2.0)
    found = stream(way, options)
    assert found["tokens"] > 1000
    assert found["seconds"] > 0
