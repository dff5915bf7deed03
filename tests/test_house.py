"""The house itself: names, version, and nothing that belongs to one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import memlm

ROOT = Path(__file__).parent.parent


def test_the_public_names_are_all_there() -> None:
    for name in memlm.__all__:
        assert getattr(memlm, name) is not None
    assert sorted(memlm.__all__) == dir(memlm)
    assert not hasattr(memlm, "no_such_name")


def test_import_is_light_and_joins_the_auto_classes_when_transformers_is_there() -> None:
    light = "import sys, memlm; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    joined = "import transformers, memlm; transformers.AutoConfig.for_model('memlm_autoencoder', chunk_length=8)"
    for program in (light, joined):
        subprocess.run([sys.executable, "-c", program], check=True)


def test_the_changelog_knows_the_version() -> None:
    assert f"## {memlm.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_no_file_names_a_machine() -> None:
    forbidden = re.compile(r"/(root|home|work)/|/tmp/|/opt/|pypi\.org|files\.pythonhosted")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        path = ROOT / name
        if path.suffix == ".xz" or name == "tests/test_house.py" or not path.is_file():
            continue
        found = forbidden.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{name}: {found.group(0)}"


def test_nothing_is_pickled() -> None:
    loads = re.compile(r"\btorch\.(load|save)\(|\bpickle\.(load|dump)|yaml\.load\(|\beval\(")
    for path in (ROOT / "src").rglob("*.py"):
        code = "\n".join(line for line in path.read_text().splitlines() if ".eval()" not in line)
        assert not loads.search(code), path
