"""The pages of results say what the journals say, and the journals say what each figure rests on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JOURNALS = sorted((ROOT / "docs" / "results" / "journals").glob("*.jsonl"))
KEYS = {"table", "row", "values", "n", "baseline", "command", "machine", "commit", "date", "edition", "rerun"}


def entries(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_pages_are_what_the_script_makes() -> None:
    command = [sys.executable, str(ROOT / "tools" / "results.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"run python tools/results.py: {run.stdout}{run.stderr}"


@pytest.mark.parametrize("path", JOURNALS, ids=lambda path: path.stem)
def test_a_journal_says_what_each_figure_rests_on(path: Path) -> None:
    found = entries(path)
    assert found
    for entry in found:
        assert set(entry) == KEYS
        assert all(entry[key] for key in KEYS - {"rerun"}), entry
        assert isinstance(entry["rerun"], bool)
        for cell in entry["values"].values():
            assert "unit" in cell
            if "interval" in cell and len(cell["interval"]) == 2:
                low, high = cell["interval"]
                assert low <= cell["value"] <= high, entry


def test_the_summary_is_short_and_begins_with_failures() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert 5 <= len(rows) <= 15
    failed = [row.split(" | ")[1].startswith(("No:", "Hardly")) for row in rows]
    assert failed == sorted(failed, reverse=True)
    assert any(failed)
    assert len(re.findall(r"\w+", page)) < 1200


def test_every_page_has_its_tables_from_a_journal() -> None:
    for page in (ROOT / "docs" / "results").glob("*.md"):
        outside = re.sub(r"<!-- table .*?<!-- end -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "\n| " not in outside, page.name


def test_modules_that_journals_name_are_there() -> None:
    commands = " ".join(entry["command"] for path in JOURNALS for entry in entries(path))
    for name in set(re.findall(r"python -m benchmarks\.(\w+)", commands)):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name
