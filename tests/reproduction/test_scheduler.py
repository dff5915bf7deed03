"""Jobs in other processes: in order of need, errors handed on, each with its share of the cores."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from memlm.errors import DataError
from memlm.reproduction.scheduler import run_side_by_side


def note(job: str, *, folder: Path) -> None:
    began = time.time()
    time.sleep(0.2)
    record = {"began": began, "ended": time.time(), "threads": torch.get_num_threads(), "pid": os.getpid()}
    (folder / job).write_text(json.dumps(record))
    if job == "bad":
        raise DataError("no text.")


def needs(job: str) -> str | None:
    return {"b": "a", "c": "elsewhere"}.get(job)


def test_jobs_wait_for_what_they_need_and_share_the_cores(tmp_path: Path) -> None:
    looks: list[int] = []
    work = partial(note, folder=tmp_path)
    order = list(run_side_by_side(["b", "a", "c"], work, needs=needs, workers=2, watch=lambda: looks.append(1)))
    assert sorted(order) == ["a", "b", "c"]
    assert looks
    found = {job: json.loads((tmp_path / job).read_text()) for job in order}
    assert found["b"]["began"] >= found["a"]["ended"]
    assert all(record["pid"] != os.getpid() for record in found.values())
    assert {record["threads"] for record in found.values()} == {max(1, (os.cpu_count() or 1) // 2)}


def test_what_goes_wrong_in_another_process_is_said_here(tmp_path: Path) -> None:
    work = partial(note, folder=tmp_path)
    with pytest.raises(DataError, match="no text"):
        list(run_side_by_side(["bad", "a", "b"], work, needs=needs, workers=1, watch=lambda: None))
    assert not (tmp_path / "b").exists()
