"""Memory against full context: every figure is of what it says, at tiny sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from memlm.cli import main
from memlm.errors import ConfigError
from memlm.evaluation.efficiency import (
    Comparison,
    EfficiencySettings,
    Speed,
    compare_efficiency,
    measure,
    measurements_of,
)

TINY = EfficiencySettings(
    lengths=(32, 64),
    batch_sizes=(2,),
    chunk_length=8,
    slots_per_chunk=2,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    encoder_hidden_size=16,
    encoder_num_layers=1,
    bottleneck_size=8,
    prompt_tokens=3,
    new_tokens=2,
    threads=1,
)


@pytest.mark.parametrize(
    ("way", "length", "positions"), [("full", 64, 64), ("memory", 64, 8 * 2), ("full", 8, 8), ("memory", 8, 2)]
)
def test_the_cache_holds_what_the_decoder_reads(way: str, length: int, positions: int) -> None:
    found = measure(TINY, way, length, 2)
    # keys and values of two layers, two rows, fp32; the last of the tokens written is not in it
    assert found.kv_bytes == 2 * 2 * 2 * (positions + 3 + 2) * 16 * 4
    assert found.context_kv_bytes == 2 * 2 * 2 * positions * 16 * 4
    assert found.first_seconds > 0
    assert found.token_seconds > 0
    assert (found.encode_seconds > 0) == (way == "memory")


def test_ratios_say_how_many_times_better_memory_is() -> None:
    memory, full = Speed(1.0, 0.5, 0.1, 100, 50, 0), Speed(0.0, 6.0, 0.4, 800, 750, 0)
    one = Comparison(64, 2, memory, full)
    assert one.ratios == {
        "first_token": 12.0,
        "first_token_with_encoding": 4.0,
        "each_token": pytest.approx(4.0),
        "context_kv_bytes": 15.0,
        "kv_bytes": 8.0,
    }
    named = {m.name: m.value for m in measurements_of([one])}
    assert named["64_tokens/batch_2/ratio/first_token"] == 12.0
    assert named["64_tokens/batch_2/full_context/kv_bytes"] == 800


def test_a_length_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(ConfigError, match="a context of 33 tokens"):
        list(compare_efficiency(TINY.model_copy(update={"lengths": (33,)})))


def test_the_command_writes_table_picture_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speed = Speed(1.0, 0.5, 0.1, 100, 50, 0)
    found = [Comparison(length, 1, speed, Speed(0.0, 6.0, 0.4, 800, 750, 0)) for length in (256, 1024)]
    monkeypatch.setattr("memlm.cli.bench.compare_efficiency", lambda _: iter(found))
    assert main(["bench", "inference", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "12.0, 4.0, 4.0, 15.0, 8.0" in out
    assert (tmp_path / "efficiency.md").read_text(encoding="utf-8") == out
    assert (tmp_path / "efficiency.svg").read_text(encoding="utf-8").startswith("<svg")
    assert len((tmp_path / "measurements.jsonl").read_text(encoding="utf-8").splitlines()) == 34
