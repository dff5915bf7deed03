"""Vectors that exist already, from any source, with the texts that they encode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from memlm.data import Document, Passages, split_documents
from memlm.errors import DataError
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset
from memlm.files import read_tensors

MAX_TEXTS_BYTES = 2**31


@dataclass(frozen=True)
class ReadyMade:
    """Texts and their vectors, by part."""

    passages: dict[str, Passages]
    vectors: dict[str, Float[Tensor, "_ numbers"]]


def read_ready_made(vectors_path: str, texts_path: str, *, held_out: float, seed: int) -> ReadyMade:
    """Read vectors from a .safetensors or .npy file, and their texts from a JSONL file of as many lines.

    Each line is {"text": ...} with, where known, "document" (the texts of a document stay in one part) and "split"
    ("train", "validation" or "held_out", in every line or in none).

    Args:
        vectors_path: file of vectors.
        texts_path: file of texts.
        held_out: share of documents that are held out where no line has a split.
        seed: seed of that split.

    Raises:
        DataError: files that cannot be read or do not match, or vectors that are constant or not finite.
    """
    vectors = read_vectors(vectors_path)
    records = _read_texts(Path(texts_path))
    if len(records) != len(vectors):
        raise DataError(
            f"'{vectors_path}' holds {len(vectors)} vectors and '{texts_path}' {len(records)} texts; "
            "they must match line by line."
        )
    _check_vectors(vectors, vectors_path)
    chosen = _rows_by_part(records, texts_path, held_out=held_out, seed=seed)
    passages = {part: _passages([records[i] for i in rows]) for part, rows in chosen.items()}
    return ReadyMade(passages, {part: vectors[torch.tensor(rows)] for part, rows in chosen.items()})


def read_vectors(path: str) -> Float[Tensor, "texts numbers"]:
    """Return the two-dimensional arrays of a file, concatenated in the order of their names, in fp32.

    Raises:
        DataError: no such file, another format, no such array, or arrays of different widths.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no vectors at '{path}'; give a .safetensors or .npy file.")
    if file.suffix == ".npy":
        tensors = {"array": _read_npy(file)}
    elif file.suffix == ".safetensors":
        tensors = read_tensors(file)
    else:
        raise DataError(f"'{path}' is neither .safetensors nor .npy; save the vectors as one of them.")
    arrays = [tensors[name] for name in sorted(tensors)]
    shapes = [tuple(a.shape) for a in arrays]
    if not arrays or any(len(shape) != 2 for shape in shapes):
        raise DataError(f"'{path}' holds arrays of shapes {shapes[:4]}; each must be (texts, numbers).")
    widths = sorted({a.shape[1] for a in arrays})
    if len(widths) > 1:
        raise DataError(
            f"'{path}' holds vectors of {widths[0]} and of {widths[1]} numbers; give one encoder's at a time."
        )
    return torch.cat([a.float() for a in arrays])


def _read_npy(file: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"cannot read '{file}' ({str(error).splitlines()[0]}); save plain numbers with numpy.save."
        ) from error


def _check_vectors(vectors: Tensor, path: str) -> None:
    bad = int((~torch.isfinite(vectors)).any(1).sum())
    if bad:
        raise DataError(f"{bad} of {len(vectors)} vectors in '{path}' hold NaN or infinity; leave those texts out.")
    if bool((vectors == vectors[:1]).all()):
        raise DataError(f"all {len(vectors)} vectors in '{path}' are the same; they contain nothing of their texts.")


def _read_texts(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"no texts at '{path}'; give JSON lines, each with a field 'text'.")
    if path.stat().st_size > MAX_TEXTS_BYTES:
        raise DataError(f"'{path}' has {path.stat().st_size} bytes, more than {MAX_TEXTS_BYTES}; give fewer texts.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8 at byte {error.start}; convert it first.") from error
    return [_record(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _record(line: str, place: str) -> dict[str, str]:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}); every line must be one JSON object.") from error
    if not isinstance(value, dict) or not isinstance(cast("dict[str, Any]", value).get("text"), str):
        raise DataError(f"{place} has no field 'text' that is a text; every line needs one.")
    fields = cast("dict[str, Any]", value)
    split = fields.get("split", "")
    if split not in ("", *PARTS):
        raise DataError(f"{place}: split '{split}' is none of {', '.join(PARTS)}.")
    return {"text": fields["text"], "document": str(fields.get("document", place)), "split": split}


def _rows_by_part(records: Sequence[dict[str, str]], path: str, *, held_out: float, seed: int) -> dict[str, list[int]]:
    """Return the row numbers of each part."""
    declared = {r["split"] for r in records}
    if declared == {""}:
        names = list(dict.fromkeys(r["document"] for r in records))
        split = split_documents(
            [Document(name, "x") for name in names], held_out=held_out, validation=held_out, seed=seed
        )
        part_of = {d.id: part for part in PARTS for d in getattr(split, part)}
        found = [part_of[r["document"]] for r in records]
    elif "" in declared:
        raise DataError(f"some lines of '{path}' have a split and some have none; give all or none.")
    else:
        found = [r["split"] for r in records]
    rows = {part: [i for i, name in enumerate(found) if name == part] for part in PARTS}
    missing = [part for part in PARTS if not rows[part]]
    if missing:
        raise DataError(f"'{path}' has no text for {missing[0]}; every part needs at least one.")
    seen: dict[str, str] = {}
    for record, part in zip(records, found, strict=True):
        # probes would train on such a document and be scored on it
        name = record["document"]
        if seen.setdefault(name, part) != part:
            raise DataError(f"document '{name}' in '{path}' is in {seen[name]} and in {part}; keep it in one part.")
    return rows


def _passages(records: Sequence[dict[str, str]]) -> Passages:
    names = list(dict.fromkeys(r["document"] for r in records))
    place = {name: i for i, name in enumerate(names)}
    return Passages(
        tuple(r["text"] for r in records), torch.tensor([place[r["document"]] for r in records]), tuple(names)
    )


def export(dataset: ProbeDataset, vectors: dict[str, Float[Tensor, "_ numbers"]], folder: Path) -> None:
    """Write `vectors.safetensors`, `texts.jsonl` and the tokenizer, as `read_ready_made` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": torch.cat([vectors[part] for part in PARTS]).contiguous()}, folder / "vectors.safetensors")
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for part in PARTS:
            passages = dataset.passages[part]
            for text, index in zip(passages.texts, passages.document_index.tolist(), strict=True):
                line = {"text": text, "document": passages.document_ids[index], "split": part}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    dataset.tokenizer.save_pretrained(folder / "tokenizer")
