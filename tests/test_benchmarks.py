"""Benchmarks still run: what they time changes under them."""

from __future__ import annotations

import argparse

import pytest
from benchmarks.memory import CASES, measure


@pytest.mark.parametrize("case", CASES)
def test_every_case_of_the_memory_benchmark_runs(case: str) -> None:
    options = argparse.Namespace(encoder=[(1, 32)], batch_size=2, repeats=1)
    assert measure(case, options)["seconds"] > 0
