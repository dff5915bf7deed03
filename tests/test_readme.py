"""The first lines of the README are typed as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_first_thirty_lines_run(tmp_path: Path) -> None:
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    shell, python = (re.search(rf"```{kind}\n(.*?)```", first, re.DOTALL) for kind in ("bash", "python"))
    assert shell is not None
    assert python is not None
    # the environment the tests run in stands for the one that the first two lines make
    lines = shell.group(1).splitlines()
    assert lines[0].startswith("bash scripts/setup")
    assert lines[1].startswith("source .venv/bin/activate")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "set -e\n" + "\n".join(lines[2:])
    run = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "gives back" in run.stdout
    assert (tmp_path / "runs/quick/report.html").is_file()
    typed = subprocess.run(
        [sys.executable, "-c", python.group(1)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert typed.returncode == 0, typed.stderr
    returned, share = typed.stdout.splitlines()
    assert returned.startswith("['")
    assert float(share.strip("[]")) > 0.5


def test_scripts_are_there_and_can_be_run() -> None:
    for name in (
        "scripts/setup",
        "scripts/setup-transformers",
        "scripts/check",
        "scripts/test",
        "scripts/test-full",
        "scripts/demo",
        ".ci/run",
    ):
        assert os.access(ROOT / name, os.X_OK)
        assert subprocess.run(["bash", "-n", str(ROOT / name)], check=False).returncode == 0
    assert shutil.which("bash")
