"""Every function of the Python interface answers hostile arguments with a MemlmError of one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.training.test_pretrained import decoder  # noqa: F401  # pyright: ignore[reportUnusedImport]


def test_anything_else_is_a_sentence_and_a_bare_string_is_one_text(
    finished_run: Path,
    memory_run: Path,
    decoder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    places = [str(place) for place in (tmp_path, finished_run, memory_run, decoder)]
    command = [sys.executable, "-m", "tests.trust.bad_arguments", *places]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rows"] >= 1000
    assert found["wrong"] == []
    assert found["different"] == []
