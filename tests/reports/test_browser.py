"""The page in a real browser: no errors, no network, no sideways scrolling, light and dark."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest

from memlm.evaluation.probe.verdict import KINDS, SERIES
from memlm.reports import PageContent, write_page
from memlm.reports.figure import capacity_curve, shares_with_intervals
from tests.reports.test_reports import content

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND"),
    *("--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=2000", "--allow-file-access-from-files"),
]
PROBE = """<!doctype html><meta charset="utf-8"><iframe id="f" style="border:0;width:{width}px;height:900px"></iframe>
<pre id="out"></pre><script>
const f = document.getElementById("f");
f.onload = () => {{
  const d = f.contentDocument, w = f.contentWindow;
  const style = (q) => {{ const e = d.querySelector(q); return e ? w.getComputedStyle(e).color : null; }};
  document.getElementById("out").textContent = JSON.stringify({{
    scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth,
    width: w.innerWidth, svgs: d.querySelectorAll("svg").length,
    tall: [...d.querySelectorAll("svg")].map((s) => s.getBoundingClientRect().height),
    paper: w.getComputedStyle(d.body).backgroundColor, ink: style("body"), wrong: style(".wrong"),
    texts: [...d.querySelectorAll("svg")].map((s) => [s, ...s.querySelectorAll("text")].map((t) => {{
      const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; }})),
    resources: w.performance.getEntriesByType("resource").map((r) => r.name)}});
}};
f.src = "report.html";
</script>"""


def opened(folder: Path, width: int, *, dark: bool) -> tuple[dict[str, object], str]:
    """What the page looks like from inside, and what the browser logged."""
    assert CHROMIUM is not None
    # the page forbids scripts, so a page around it looks in
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(width=width))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    profile = [f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},1000"]
    command = [CHROMIUM, *FLAGS, *scheme, *profile, "--dump-dom", probe.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found is not None
    assert found.group(1), run.stderr
    return json.loads(html.unescape(found.group(1))), run.stderr


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("page", ["run", "probe"])
def test_the_page_opens_offline_and_is_readable(page: str, width: int, dark: bool, tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", content() if page == "run" else probe_content())
    seen, log = opened(tmp_path, width, dark=dark)
    assert seen["width"] == width
    assert seen["scroll"] == seen["client"]  # nothing sticks out beside the window, its scroll bar apart
    assert seen["svgs"] == 3
    assert min(seen["tall"]) > 100  # type: ignore[type-var, call-overload]
    check_texts(seen["texts"], height=8 if width == 400 else 11)  # type: ignore[arg-type]
    assert seen["resources"] == []
    assert "CONSOLE" not in log, log
    paper, ink = brightness(str(seen["paper"])), brightness(str(seen["ink"]))
    assert (paper < 60 and ink > 190) if dark else (paper > 230 and ink < 70)
    red, green, blue = map(int, re.findall(r"\d+", str(seen["wrong"]))[:3])
    assert red > 1.3 * max(green, blue)


def check_texts(figures: list[list[list[float]]], *, height: float) -> None:
    """Check that the texts of each figure lie inside it, can be read, and cover no other text."""
    for (left, top, right, bottom), *texts in figures:
        assert all(
            x0 >= left - 1 and x1 <= right + 1 and y0 >= top - 1 and y1 <= bottom + 1 for x0, y0, x1, y1 in texts
        )
        assert min(y1 - y0 for _, y0, _, y1 in texts) >= height
        for (a0, b0, a1, b1), (c0, d0, c1, d1) in combinations(texts, 2):
            assert min(a1, c1) - max(a0, c0) <= 1 or min(b1, d1) - max(b0, d0) <= 1


def probe_content() -> PageContent:
    """What `memlm probe` shows: the ladder, the capacity curve, no learning curve, no costs."""
    names = ("token accuracy", "exact match", "retention over unigram")
    controls = ("unigram", "blank_memory", "shuffled_memory", "untrained", "larger", "autoencoder")
    curve = capacity_curve([16, 32, 64], {n: [0.9, 0.6, 0.3] for n in names}, {n: [0.1, 0.07, 0.05] for n in controls})
    # readings that fall together, as they do where nothing is found
    rows = [f"{kind.label}: inconclusive" for kind in KINDS]
    shares = {name: [(0.1 - 0.2 * i, 0.1 - 0.2 * i, 0.12) for i in range(len(rows))] for name in SERIES}
    figures = [("What can be read", shares_with_intervals(rows, shares)), ("By length", curve)]
    return dataclasses.replace(content("memlm probe"), log=(), costs=(), figures=figures)


def brightness(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
