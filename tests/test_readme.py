"""The README says what memlm is at once, and its commands run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import commands, decoder, places, run  # noqa: F401

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def typed(title: str) -> list[str]:
    """Return the commands of a section's block, without comments."""
    block = re.search(r"```bash\n(.*?)```", section(title), re.DOTALL)
    assert block is not None
    return [re.split(r"\s{2,}#", line)[0] for line in block.group(1).splitlines()]


def test_the_first_screen_says_what_for_whom_and_shows_it() -> None:
    first = "\n".join(README.splitlines()[:40])
    said = first.split("\n\n")[1]
    assert len(re.findall(r"\w\.(?=\s|$)", said)) == 2
    picture = re.search(r"!\[[^\]]{40,}\]\((docs/\w+\.svg)\)", "\n".join(README.splitlines()[:12]))
    assert picture is not None
    assert (ROOT / picture.group(1)).is_file()
    for reader in ("decoder", "encoder", "paper"):
        assert re.search(rf"- \*\*You [^*]*{reader}", first)
    assert re.search(r"```bash\n.*?```.*?```python\n.*?```", first, re.DOTALL)


def test_the_first_blocks_run(tmp_path: Path) -> None:
    first = "\n".join(README.splitlines()[:40])
    shell, python = (re.search(rf"```{kind}\n(.*?)```", first, re.DOTALL) for kind in ("bash", "python"))
    assert shell is not None
    assert python is not None
    # the environment the tests run in stands for the one that the first two lines make
    lines = shell.group(1).splitlines()
    assert lines[0].startswith("bash scripts/setup")
    assert lines[1].startswith("source .venv/bin/activate")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    installed = [command for command in commands("install.md") if "regenerate" in command]
    script = "set -e\n" + "\n".join([*lines[2:], *installed])
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "gives back" in ran.stdout
    assert len(installed) == 1
    assert "council" in ran.stdout.splitlines()[-1]
    assert (tmp_path / "runs/quick/report.html").is_file()
    pasted = subprocess.run(
        [sys.executable, "-c", python.group(1)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert pasted.returncode == 0, pasted.stderr
    returned, share = pasted.stdout.splitlines()
    assert returned.startswith("['")
    assert float(share.strip("[]")) > 0.5


@pytest.mark.filterwarnings("ignore")
def test_the_lines_for_engineers(
    places: dict[str, str],  # noqa: F811
    decoder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")  # names are folded in 80
    places["PATH_OR_HUB_ID"] = str(decoder)
    lines = typed("For engineers")
    assert len(lines) == 6
    printed = [run(line, places, capsys) for line in lines]
    assert "original_decoder" in printed[2]
    python = re.search(r"```python\n(.*?)```", section("For engineers"), re.DOTALL)
    assert python is not None
    exec(python.group(1).replace("PATH_OR_HUB_ID", str(decoder)), {})  # a block of this repository's README
    assert capsys.readouterr().out.strip()
    assert printed[4].strip()


@pytest.mark.filterwarnings("ignore")
def test_the_lines_for_researchers(
    places: dict[str, str],  # noqa: F811
    decoder: Path,  # noqa: F811
    finished_run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(finished_run, "runs/quick")
    places |= {"PATH_OR_HUB_ID": str(decoder), "16,32": "4,8"}
    lines = typed("For researchers and auditors")
    assert len(lines) == 5
    for line in lines:
        run(line, places, capsys)
    assert Path("runs/probe/report.html").is_file()


def test_the_lines_for_those_who_check_the_paper_are_the_tutorials() -> None:
    lines = typed("For those who check the paper")
    assert len(lines) == 5
    assert set(lines) <= set(commands("tutorials/check-the-paper.md"))  # tests/test_docs.py runs these


def test_figures_of_the_table_stand_in_the_results() -> None:
    pages = [ROOT / "docs" / "results.md", *(ROOT / "docs" / "results").glob("*.md")]
    results = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    figures = re.findall(r"\d+\.\d+", section("What works and what does not"))
    assert len(figures) > 20
    missing = [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", results)]
    assert not missing


def test_links_lead_somewhere() -> None:
    anchors = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (ROOT / target.split("#")[0]).exists(), target


def test_scripts_are_there_and_can_be_run() -> None:
    scripts = ("setup", "setup-transformers", "check", "test", "test-full", "demo", "docs")
    for name in (*(f"scripts/{script}" for script in scripts), ".ci/run"):
        assert os.access(ROOT / name, os.X_OK)
        assert subprocess.run(["bash", "-n", str(ROOT / name)], check=False).returncode == 0
    assert shutil.which("bash")
