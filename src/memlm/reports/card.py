"""A Hugging Face model card that carries the retention figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memlm.measurement import Measurement
from memlm.reports.table import markdown


def write_card(path: str | Path, *, name: str, headline: str, data: str, measurements: Sequence[Measurement]) -> None:
    """README.md of a model folder: front matter with results, then usage and all figures."""
    Path(path).write_text(card(name=name, headline=headline, data=data, measurements=measurements), encoding="utf-8")


def card(*, name: str, headline: str, data: str, measurements: Sequence[Measurement]) -> str:
    """The card as text."""
    front = yaml.safe_dump(_front_matter(name, data, measurements), sort_keys=False, allow_unicode=True)
    usage = 'import memlm\n\nmemory = memlm.load("FOLDER")\nmemory.regenerate(memory.encode(["any text"]))'
    return f"---\n{front}---\n\n# {name}\n\n{headline}\n\n```python\n{usage}\n```\n\n{markdown(measurements)}"


def _front_matter(name: str, data: str, measurements: Sequence[Measurement]) -> dict[str, Any]:
    metrics = [
        {"type": m.name, "name": m.name, "value": round(m.value, 6)} for m in measurements if m.split == "held_out"
    ]
    task = {"type": "feature-extraction", "name": "text reconstruction from memory"}
    result = {"task": task, "dataset": {"name": data, "type": data, "split": "held_out"}, "metrics": metrics}
    return {
        "library_name": "memlm",
        "tags": ["memlm", "text-autoencoder", "memory"],
        "model-index": [{"name": name, "results": [result]}],
    }
