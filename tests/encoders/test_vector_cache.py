"""Vectors are computed once, found again, and never mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memlm.encoders import vector_cache as store
from memlm.encoders.vector_cache import embed
from memlm.errors import CheckpointError, DataError

TEXTS = [f"text number {i} " * (1 + i % 5) for i in range(20)]


class Counting:
    """Vectors that name their text; counts how many it wrote, and may break."""

    name = "counting"
    width = 2

    def __init__(self, fingerprint: str = "a", *, break_after: int | None = None, value: float = 1.0) -> None:
        self.fingerprint = fingerprint
        self.break_after = break_after
        self.value = value
        self.written = 0

    def encode(self, texts: Sequence[str]) -> Tensor:
        if self.break_after is not None and self.written >= self.break_after:
            raise KeyboardInterrupt
        self.written += len(texts)
        return torch.tensor([[float(hash(t) % 1000), self.value] for t in texts])


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SHARD", 6)


def test_the_second_time_nothing_is_encoded(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    vectors = embed(first, TEXTS, cache=tmp_path)
    assert torch.equal(vectors, Counting().encode(TEXTS))
    assert torch.equal(embed(second, TEXTS, cache=tmp_path), vectors)
    assert (first.written, second.written) == (20, 0)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(Counting(break_after=12), TEXTS, cache=tmp_path)
    rest = Counting()
    assert torch.equal(embed(rest, TEXTS, cache=tmp_path), Counting().encode(TEXTS))
    assert rest.written == 8


def test_other_encoders_and_texts_have_their_own_place(tmp_path: Path) -> None:
    embed(Counting("a"), TEXTS, cache=tmp_path)
    other = Counting("b", value=2.0)
    assert bool((embed(other, TEXTS, cache=tmp_path)[:, 1] == 2.0).all())
    fewer = Counting("a")
    embed(fewer, TEXTS[:-1], cache=tmp_path)
    assert fewer.written == 19
    assert len(list(tmp_path.iterdir())) == 3


def test_damage_is_named_and_nothing_else_is_touched(tmp_path: Path) -> None:
    embed(Counting(), TEXTS, cache=tmp_path)
    shard = sorted(tmp_path.rglob("shard-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="shard-000001"):
        embed(Counting(), TEXTS, cache=tmp_path)
    folder = shard.parent
    record = (folder / "vectors.json").read_text()
    (folder / "vectors.json").write_text(record.replace('"encoder": "a"', '"encoder": "z"'))
    with pytest.raises(CheckpointError, match=r"another encoder \(z, not a\)"):
        embed(Counting(), TEXTS, cache=tmp_path)


def test_nan_is_refused_before_it_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"NaN or infinity for 6 of 6 texts"):
        embed(Counting(value=float("nan")), TEXTS, cache=tmp_path)
    assert not list(tmp_path.rglob("shard-*"))
