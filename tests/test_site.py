"""The documentation site builds without warnings, its links lead somewhere, and a browser has no complaint."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from filelock import FileLock

import memlm
from tests.reports.test_browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parent.parent
VISIT = """<!doctype html><meta charset="utf-8"><iframe id="f" style="border:0;width:1300px;height:900px"></iframe>
<pre id="out"></pre><script>
const pages = PAGES, seen = [], f = document.getElementById("f");
f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow;
  seen.push({page: pages[seen.length], heading: (d.querySelector("h1") || {}).textContent,
    scroll: d.documentElement.scrollWidth, client: d.documentElement.clientWidth,
    resources: w.performance.getEntriesByType("resource").map((r) => r.name)});
  if (seen.length < pages.length) f.src = pages[seen.length];
  else document.getElementById("out").textContent = JSON.stringify(seen);
};
f.src = pages[0];
</script>"""
SEARCH = """<!doctype html><meta charset="utf-8"><iframe id="f" style="border:0;width:1300px;height:900px"></iframe>
<pre id="out"></pre><script>
const f = document.getElementById("f");
f.onload = () => {
  const d = f.contentDocument, box = d.querySelector("input[name=query]");
  const look = setInterval(() => {
    box.focus();
    box.value = "bottleneck";
    box.dispatchEvent(new Event("keyup", {bubbles: true}));
    const hits = [...d.querySelectorAll(".md-search-result__link")].map((a) => a.getAttribute("href"));
    if (hits.length) { clearInterval(look); document.getElementById("out").textContent = JSON.stringify(hits); }
  }, 500);
};
f.src = PAGE;
</script>"""


class Links(HTMLParser):
    """Collect where a page leads to and the places in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        self.targets += [value for key in ("href", "src") if (value := found.get(key))]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site; processes of one test run build it once."""
    pytest.importorskip("mkdocs", reason="the site is built by mkdocs (pip install 'memlm[docs]')")
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    folder = shared / "site"
    with FileLock(shared / "site.lock"):
        if not folder.is_dir():
            run = build(folder)
            assert run.returncode == 0, run.stdout + run.stderr
            assert "WARNING" not in run.stdout + run.stderr
    return folder


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Do what scripts/docs does, but for its setup."""
    script = f"{sys.executable} tools/site.py && {sys.executable} -m mkdocs build --strict --site-dir {folder}"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_internal_links_lead_somewhere(site: Path) -> None:
    pages = {page: Links(page) for page in site.rglob("*.html")}
    assert len(pages) > 25
    broken = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or (page.name == "404.html" and target.startswith("/")):
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            file = file / "index.html" if file.is_dir() else file
            anchored = not parts.fragment or file not in pages or unquote(parts.fragment) in pages[file].anchors
            if not file.is_file() or not anchored:
                broken.append(f"{page.relative_to(site)}: {target}")
    assert not broken


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    anchors = Links(site / "api" / "index.html").anchors
    assert {f"memlm.{name}" for name in memlm.__all__ if name != "__version__"} <= anchors


def test_pages_fetch_nothing_from_outside(site: Path) -> None:
    fetched = re.compile(
        r"""(?:<script[^>]+src|<link[^>]+(?:stylesheet|icon|preconnect)[^>]+href|<img[^>]+src)=["']?https?:"""
    )
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text(encoding="utf-8")), page


def opened(page: str, folder: Path) -> tuple[Any, str]:
    """Return what a page around the site tells, and what the browser logged."""
    assert CHROMIUM is not None
    visit = folder / "visit.html"
    visit.write_text(page)
    flags = [flag for flag in FLAGS if not flag.startswith("--virtual-time-budget")]
    command = [CHROMIUM, *flags, "--virtual-time-budget=60000", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,1000", "--dump-dom", visit.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = re.search(r'<pre id="out">(.*?)</pre>', run.stdout, re.DOTALL)
    assert found is not None
    assert found.group(1), run.stderr
    return json.loads(html.unescape(found.group(1))), run.stderr


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_opens_every_page(site: Path, tmp_path: Path) -> None:
    pages = [page.as_uri() for page in sorted(site.rglob("*.html")) if page.name != "404.html"]
    seen, log = opened(VISIT.replace("PAGES", json.dumps(pages)), tmp_path)
    assert [page["page"] for page in seen] == pages
    assert "CONSOLE" not in log, log
    for page in seen:
        assert page["heading"], page
        assert page["scroll"] <= page["client"], page["page"]
        assert all(name.startswith("file:") for name in page["resources"]), page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_search_works_on_pages_opened_from_disk(site: Path, tmp_path: Path) -> None:
    hits, log = opened(SEARCH.replace("PAGE", json.dumps((site / "index.html").as_uri())), tmp_path)
    assert any("architecture" in hit or "contributing" in hit for hit in hits), hits
    assert "CONSOLE" not in log, log
