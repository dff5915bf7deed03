"""The house itself: names, version, and nothing that belongs to one machine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memlm

ROOT = Path(__file__).parent.parent
_CLEAN = {
    "__init__.py": "",
    "low/__init__.py": "from house.low.base import Base\ndef __getattr__(name): import_module('house.high.top')\n",
    "low/base.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.high.top import Top\n",
    "low/configuration.py": "",
    "low/memory_files.py": "FILES = 1\n",
    "high/__init__.py": "",
    "high/configuration.py": "",
    "high/top.py": "from house.low import base\n",
    "cli/__init__.py": "",
    "cli/top.py": "def run():\n    from house.high import top\n",
}
_FAULTS = [
    ("twins", "high/base.py", "", "house.low.base repeats the name of house.high.base"),
    ("twins", "low/files.py", "", "house.low.memory_files stands beside house.low.files"),
    ("twins", "low/files/__init__.py", "", "house.low.memory_files stands beside house.low.files"),
    ("cycles", "low/base.py", "from ..high.top import Top", "house.high.top, house.low.base"),
    ("cycles", "low/base.py", "if TYPE_CHECKING: 1\nelse:\n import house.high.top", "house.high.top, house.low.base"),
    ("cycles", "low/base.py", "try:\n from house.low import Base\nexcept E: 1", "house.low, house.low.base"),
    ("hidden_imports", "low/base.py", "class A:\n async def f(self):\n  import house.high.top", "house.low.base:3"),
    ("hidden_imports", "high/top.py", "def f():\n if f:\n  from .. import low", "house.high.top:3 imports house.low"),
    ("largest_file", "high/configuration.py", "x = 1\n" * 401, "house.high.configuration"),
    ("median_file", "high/top.py", "", "at least 100, NOT MET"),
]


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


def _measure_house(folder: Path, files: dict[str, str], *options: str) -> tuple[int, str]:
    for name, text in files.items():
        path = folder / "src/house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    program = [sys.executable, str(ROOT / "tools/house"), "--source", str(folder / "src")]
    done = subprocess.run(
        [*program, "--recorded", str(folder / "house.json"), *options], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "file", "text", "line"), _FAULTS)
def test_the_house_tool_finds_what_is_planted(tmp_path: Path, name: str, file: str, text: str, line: str) -> None:
    code, clean = _measure_house(tmp_path, _CLEAN, "--update", "--check")
    assert code == 0
    assert re.search(r"twins +0 .*\ncycles +0 .*\nhidden_imports +0 ", clean)
    code, output = _measure_house(tmp_path, {file: text}, "--check")
    assert code == 1
    assert line in output
    assert re.search(rf"house: {name} is [\d.]+, recorded is [\d.]+", output)


_REPLACED = "asked_tokens|Shelf|TokenPlaces|ThreeWays|Yardstick|Ramp|write_whole|_refuse_"


@pytest.mark.parametrize(
    ("folders", "pattern"),
    [
        # a docstring begins with a verb or with the thing it names
        (["src"], r'"""(Of|What) '),
        # readers have no private notes on the paper
        (["src", "docs", "benchmarks"], r"(paper's|its)\s+notes"),
        (["src"], _REPLACED),
        # the setting, not the word in a sentence
        (["src"], r"\bintroduction\s*[:=]|[.`\"']introduction\b"),
    ],
    ids=["docstrings", "notes", "names", "introduction"],
)
def test_words_of_the_first_edition_are_gone(folders: list[str], pattern: str) -> None:
    left: list[str] = []
    for path in sorted(path for folder in folders for path in (ROOT / folder).rglob("*")):
        if path.suffix in {".py", ".md", ".j2", ".html", ".json", ".yaml"}:
            text = path.read_text(encoding="utf-8")
            lines = [text.count("\n", 0, found.start()) + 1 for found in re.finditer(pattern, text)]
            left += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    assert not left, "\n".join(left)
