"""Compare the figures of two commits digit for digit: losses, evaluations, a probe and the bytes of a store.

    python tools/golden.py                  the first edition against the working tree
    python tools/golden.py --new COMMIT     the first edition against a commit

Both sides run on this machine with one thread and seed 0. The results of a side are kept in the cache folder, and those
of the base are computed once. The script prints one line for each comparison and exits with 1 when anything differs.

Two things keep a side below four minutes: the runs read 24 speeches (12 for memory-tiny), and the evaluation of
memory-curriculum-tiny omits the probe (`--no-probe`), which the evaluation of memory-tiny includes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

BASE = "20e49e7"
"""The commit before the first move of the second edition."""
SCENARIO = 1
"""Raise this number when the commands below change, so that cached results are computed again."""
RENAMED: dict[str, str] = {}
"""Old name -> new name of keys and measurements: one part of a name ("right_tokens"), or several ("recall/pairs")."""
RENAMED_WORDS: dict[str, str] = {}
"""Old word -> new word of the command line, for the newer side."""
IGNORED = frozenset({"seconds"})
"""Keys of the log that differ between two runs of one commit."""

ROOT = Path(__file__).resolve().parent.parent
CORPUS = "src/memlm/data/corpora/sotu.jsonl.xz"
TRAIN = ("--steps", "60", "--training.log_every", "1", "--training.evaluate_rows", "64", "--no-progress")
RUNS: dict[str, tuple[str, ...]] = {
    "autoencoder-tiny": ("--data.max_documents", "24"),
    "memory-tiny": ("--data.max_documents", "12"),
    "memory-curriculum-tiny": ("--encoder", "autoencoder-tiny"),
}
EVALUATE: dict[str, tuple[str, ...]] = {
    "autoencoder-tiny": (),
    "memory-tiny": ("--rows", "32"),
    "memory-curriculum-tiny": ("--no-probe", "--rows", "64"),
}
PROBE = ("--lengths", "16", "--size", "small", "--steps", "20", "--passages", "512", "--held-out-passages", "64")

Figures = dict[str, Any]
"""Path of a figure -> number, word or hash."""


class Side:
    """One checkout of memlm and the folder in which its commands run."""

    def __init__(self, source: Path, work: Path, words: dict[str, str]) -> None:
        self.work = work
        self._words = words
        one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._environment = {**os.environ, **one_thread, "PYTHONPATH": str(source / "src"), "HF_HUB_OFFLINE": "1"}
        found = self._python("-c", "import memlm; print(memlm.__file__)").decode().strip()
        if not Path(found).is_relative_to(source):
            sys.exit(f"golden: memlm was imported from '{found}' instead of '{source}'.")
        _write_texts(source / CORPUS, work / "texts")

    def memlm(self, *words: str) -> bytes:
        """Return what a command prints."""
        return self._python("-m", "memlm", *(self._words.get(word, word) for word in words))

    def _python(self, *words: str) -> bytes:
        done = subprocess.run([sys.executable, *words], cwd=self.work, env=self._environment, capture_output=True)
        if done.returncode:
            sys.exit(f"golden: `{' '.join(words)}` failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout


def _write_texts(corpus: Path, folder: Path) -> None:
    folder.mkdir()
    for line in lzma.decompress(corpus.read_bytes()).decode().splitlines()[:12]:
        speech = json.loads(line)
        (folder / f"{speech['id']}.txt").write_text(speech["text"][:8000], encoding="utf-8")


def figures_of(side: Side) -> dict[str, Figures]:
    """Run every command on one side and return its figures by the name of the comparison."""
    found: dict[str, Figures] = {}
    for run, settings in RUNS.items():
        side.memlm("train", run, *TRAIN, *settings, "--out", run)
        log = flat(_records(side.work / run / "log.jsonl"))
        losses = {path: value for path, value in log.items() if re.search(r"\.loss(/|$)", path)}
        found[f"losses of {run}"] = losses
        found[f"other figures in the log of {run}"] = {k: v for k, v in log.items() if k not in losses}
        found[f"figures of evaluate {run}"] = _measurements(side.memlm("evaluate", run, "--json", *EVALUATE[run]))
    texts = ("--text", "texts/*.txt")
    probed = side.memlm("probe", "--encoder", "autoencoder-tiny", *texts, *PROBE, "--json", "--out", "probe")
    found["figures of probe autoencoder-tiny"] = _measurements(probed)
    return found | _store_figures(side)


def _store_figures(side: Side) -> dict[str, Figures]:
    texts = sorted((side.work / "texts").iterdir())[:4]
    ids = [str(path.relative_to(side.work)) for path in texts]
    side.memlm("remember", *ids, "--model", "autoencoder-tiny", "--store", "store")
    store = side.work / "store"
    header = json.loads((store / "store.json").read_text())
    # the header names the model's absolute path and carries a hash over all of its fields
    del header["model"], header["sha256"]
    recalled: Figures = {}
    for name, path in zip(ids, texts, strict=True):
        exact = side.memlm("recall", "store", name)
        recalled |= {f"{name}.exact": _hash(exact), f"{name}.equals the text": exact == path.read_bytes()}
        recalled[f"{name}.memories alone"] = _hash(side.memlm("recall", "store", name, "--no-exact"))
    return {
        "segments of the store": {path.name: _hash(path.read_bytes()) for path in sorted(store.glob("segments/*"))},
        "fields of the store's header": flat(header),
        "fields of the store's index": _index(store / "index.sqlite"),
        "figures of recall": recalled,
    }


def _index(path: Path) -> Figures:
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        tables = [row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        queries = {name: f'SELECT * FROM "{name}"' for name in tables}  # noqa: S608
        return flat({name: [dict(row) for row in connection.execute(query)] for name, query in queries.items()})


def _measurements(lines: bytes) -> Figures:
    found: dict[str, Any] = {}
    for line in map(json.loads, lines.splitlines()):
        split, protocol = line.pop("split"), line.pop("protocol")
        name = f"{split}.{protocol}.{line.pop('name')}"
        if name in found:
            sys.exit(f"golden: two measurements are called '{name}'.")
        found[name] = line
    return flat(found)


def _records(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def flat(value: Any, path: str = "") -> Figures:
    """Return nested values by dotted path, without the ignored keys."""
    if not isinstance(value, dict | list):
        return {path.removeprefix("."): value}
    items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    found: Figures = {}
    for key, inner in items:
        if key not in IGNORED:
            found |= flat(inner, f"{path}.{key}")
    return found


def renamed(figures: Figures) -> Figures:
    """Return the figures under their new names."""
    for old, new in RENAMED.items():
        part = re.compile(rf"(?<![^./]){re.escape(old)}(?![^./])")
        figures = {part.sub(new, path): value for path, value in figures.items()}
    return figures


def difference(old: Figures, new: Figures) -> str | None:
    """Describe the first difference, or return None where all figures are equal."""
    for path in [*old, *(path for path in new if path not in old)]:
        before, after = (repr(side[path]) if path in side else "nothing" for side in (old, new))
        if before != after:
            unequal = sum(1 for path in old | new if path not in old or path not in new or old[path] != new[path])
            return f"first difference at {path}: {before} before, {after} now; {unequal} of {len(old)} differ"
    return None


def compare(base: dict[str, Figures], newer: dict[str, Figures]) -> bool:
    """Print one line for each comparison and return whether all are equal."""
    equal = True
    for thing in base:
        found = difference(renamed(base[thing]), newer[thing])
        print(f"DIFFERENT {thing}: {found}" if found else f"equal: {len(base[thing])} {thing}")
        equal = equal and found is None and len(base[thing]) > 0
    return equal


@contextmanager
def checkout(commit: str) -> Generator[Path]:
    """Check a commit out into a temporary git worktree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "tree"
        _git("worktree", "add", "--detach", str(path), commit)
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def run_side(source: Path, file: Path, words: dict[str, str]) -> dict[str, Figures]:
    """Run one checkout and keep its figures in a file."""
    with tempfile.TemporaryDirectory() as work:
        figures = figures_of(Side(source.resolve(), Path(work).resolve(), words))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"made_with": _made_with(), "figures": figures}, indent=1))
    return figures


def _made_with() -> dict[str, Any]:
    packages = {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")}
    return {"scenario": SCENARIO, "python": sys.version.split()[0], **packages}


def run_commit(commit: str, cache: Path, words: dict[str, str]) -> dict[str, Figures]:
    """Return the figures of a commit, from the cache where the same packages have computed them."""
    full = _git("rev-parse", f"{commit}^{{commit}}")
    file = cache / f"{full}.json"
    if file.is_file() and (kept := json.loads(file.read_text()))["made_with"] == _made_with():
        return kept["figures"]
    with checkout(full) as source:
        return run_side(source, file, words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default=BASE, help="commit to compare with (default: %(default)s)")
    parser.add_argument("--new", help="newer commit (default: the working tree)")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "memlm-golden")
    options = parser.parse_args()
    base = run_commit(options.base, options.cache, {})
    if options.new:
        newer = run_commit(options.new, options.cache, RENAMED_WORDS)
    else:
        newer = run_side(ROOT, options.cache / "working-tree.json", RENAMED_WORDS)
    sys.exit(0 if compare(base, newer) else 1)


if __name__ == "__main__":
    main()
