"""Vectors that exist already, from any source, with the texts that they encode."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from memlm.data import Document, Passages, split_documents
from memlm.data.corpus import LeftOut, has_surrogates
from memlm.data.records import Value, read_values, text_of
from memlm.errors import CheckpointError, DataError, one_line
from memlm.evaluation.probe.dataset import PARTS, ProbeDataset
from memlm.files import read_tensors, write_tensors_atomic

_FIELDS = ("document", "split", "id")
"""Fields of a record beside its text."""


@dataclass(frozen=True)
class ReadyMade:
    """Texts and their vectors, by part."""

    passages: dict[str, Passages]
    vectors: dict[str, Float[Tensor, "_ numbers"]]


def read_ready_made(
    vectors_path: str, texts_path: str, *, held_out: float, seed: int, text_field: str = "text"
) -> ReadyMade:
    """Read vectors from a .safetensors or .npy file, and their texts from a file of as many records.

    Each record is {"text": ...} with, where known, "document" (the texts of a document stay in one part) and "split"
    ("train", "validation" or "held_out", in every record or in none). Vectors pair with texts by "id" where a
    .safetensors file holds one array for each id, and otherwise in order; shards are joined by their numbers.

    Args:
        vectors_path: file of vectors.
        texts_path: file of texts.
        held_out: share of documents that are held out where no line has a split.
        seed: seed of that split.
        text_field: the field of a record that holds the text.

    Raises:
        DataError: files that cannot be read or do not match, or vectors that are constant or not finite.
    """
    arrays = _read_arrays(vectors_path)
    records = _read_records(Path(texts_path), text_field)
    vectors = _by_id(records, arrays, vectors_path)
    if vectors is None:
        vectors = _joined(arrays, vectors_path)
    if len(records) != len(vectors):
        raise DataError(
            f"'{vectors_path}' holds {len(vectors)} vectors and '{texts_path}' {len(records)} texts; "
            "they must match one by one."
        )
    _check_vectors(vectors, vectors_path)
    chosen = _rows_by_part(records, texts_path, held_out=held_out, seed=seed)
    passages = {part: _passages([records[i] for i in rows]) for part, rows in chosen.items()}
    return ReadyMade(passages, {part: vectors[torch.tensor(rows)] for part, rows in chosen.items()})


def _by_id(
    records: Sequence[dict[str, str]], arrays: dict[str, Tensor], path: str
) -> Float[Tensor, "texts numbers"] | None:
    """Return the vectors in the order of the texts where a file names one for each text's id, else None."""
    names = [record["id"] for record in records]
    shapes = {tuple(a.shape) for a in arrays.values()}
    if set(names) != arrays.keys() or len(arrays) != len(names) or len(shapes) != 1 or len(next(iter(shapes))) != 1:
        return None
    return torch.stack([_in_fp32(arrays[name], path) for name in names])


def read_vectors(path: str) -> Float[Tensor, "texts numbers"]:
    """Return the two-dimensional arrays of a file in fp32; several are shards, joined in the order of their numbers.

    Raises:
        DataError: no such file, another format, no such array, arrays of different widths, or shards without an order.
    """
    return _joined(_read_arrays(path), path)


def _joined(arrays: dict[str, Tensor], path: str) -> Float[Tensor, "texts numbers"]:
    shapes = [tuple(a.shape) for a in arrays.values()]
    if not arrays or any(len(shape) != 2 for shape in shapes):
        raise DataError(f"'{path}' holds arrays of shapes {shapes[:4]}; each must be (texts, numbers).")
    widths = sorted({shape[1] for shape in shapes})
    if len(widths) > 1:
        raise DataError(
            f"'{path}' holds vectors of {widths[0]} and of {widths[1]} numbers; give one encoder's at a time."
        )
    return torch.cat([_in_fp32(a, path) for a in _shards(arrays, path)])


def _read_arrays(path: str) -> dict[str, Tensor]:
    file = Path(path)
    if not file.is_file():
        raise DataError(f"no vectors at '{path}'; give a .safetensors or .npy file.")
    if file.suffix.lower() == ".npy":
        return {"array": _read_npy(file)}
    if file.suffix.lower() == ".safetensors":
        try:
            return read_tensors(file)
        except CheckpointError as error:
            raise DataError(
                f"cannot read '{path}' ({one_line(str(error.__cause__))}); it is damaged, write it again."
            ) from error
    raise DataError(f"'{path}' is neither .safetensors nor .npy; save the vectors as one of them.")


def _shards(arrays: dict[str, Tensor], path: str) -> list[Tensor]:
    """Return arrays in the order of the one number in which their names differ.

    Raises:
        DataError: the names differ in something else, or a number is missing.
    """
    if len(arrays) < 2:
        return list(arrays.values())
    parts = {name: re.split(r"([0-9]+)", name) for name in arrays}
    first = next(iter(parts.values()))
    alike = all(len(p) == len(first) and p[::2] == first[::2] for p in parts.values())
    differing = [i for i in range(1, len(first), 2) if alike and len({int(p[i]) for p in parts.values()}) > 1]
    if len(differing) != 1:
        names = ", ".join(sorted(arrays)[:3])
        raise DataError(
            f"the arrays of '{path}' ({names}, ...) have no order; number them (shard0, shard1), or join them."
        )
    place = {int(p[differing[0]]): name for name, p in parts.items()}
    numbers = sorted(place)
    if len(place) < len(arrays) or numbers[-1] - numbers[0] != len(numbers) - 1 or numbers[0] > 1:
        missing = next((n for n in range(1, numbers[-1]) if n not in place), numbers[0])
        raise DataError(
            f"shard {missing} of '{path}' is missing or there twice; give all shards, numbered from 0 or 1."
        )
    return [arrays[place[number]] for number in numbers]


def _in_fp32(vectors: Tensor, path: str) -> Tensor:
    if vectors.is_complex() or vectors.dtype == torch.bool:
        raise DataError(f"'{path}' holds {str(vectors.dtype).removeprefix('torch.')} vectors; give real numbers.")
    return vectors.float()


def _read_npy(file: Path) -> Tensor:
    try:
        # a map has the size that the file has, whatever the file says of itself
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
            kind = f"{array.dtype} values" if isinstance(array, np.ndarray) else "several arrays"
            raise DataError(f"'{file}' holds {kind}, not real numbers; save one array of them with numpy.save.")
        with np.errstate(over="ignore"):  # a value beyond fp32 becomes infinite, which is refused by name
            return torch.from_numpy(array.astype(np.float32))
    except (OSError, ValueError, TypeError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read '{file}' ({reason}); save plain numbers with numpy.save.") from error


def _check_vectors(vectors: Tensor, path: str) -> None:
    bad = int((~torch.isfinite(vectors)).any(1).sum())
    if bad:
        raise DataError(f"{bad} of {len(vectors)} vectors in '{path}' hold NaN or infinity; leave those texts out.")
    if bool((vectors == vectors[:1]).all()):
        raise DataError(f"all {len(vectors)} vectors in '{path}' are the same; they contain nothing of their texts.")


def _read_records(path: Path, text_field: str) -> list[dict[str, str]]:
    """Return the records of texts; none is left out, since each belongs to a vector."""
    if not path.is_file():
        raise DataError(
            f"no texts at '{path}'; give records (JSONL, JSON, CSV, Parquet), each with a field '{text_field}'."
        )
    values = read_values(path, LeftOut(strict=True), columns=(text_field, *_FIELDS))
    return [_record(value, text_field) for value in values]


def _record(value: Value, text_field: str) -> dict[str, str]:
    text = text_of(value, text_field)
    fields = cast("dict[str, Any]", value.value) if isinstance(value.value, dict) else {}
    split, document, key = (fields.get(name) for name in ("split", "document", "id"))
    split = split or ""
    if split not in ("", *PARTS):
        raise DataError(f"{value.place}: split '{split}' is none of {', '.join(PARTS)}.")
    return {
        "text": text,
        "document": value.place if document in (None, "") else str(document),
        "split": split,
        "id": "" if key is None else str(key),
    }


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
    joined = torch.cat([vectors[part] for part in PARTS]).contiguous()
    write_tensors_atomic(folder / "vectors.safetensors", {"vectors": joined})
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as file:
        for part in PARTS:
            passages = dataset.passages[part]
            for text, index in zip(passages.texts, passages.document_index.tolist(), strict=True):
                record = {"text": text, "document": passages.document_ids[index], "split": part}
                line = json.dumps(record, ensure_ascii=False)
                file.write((json.dumps(record) if has_surrogates(line) else line) + "\n")
    dataset.tokenizer.save_pretrained(folder / "tokenizer")
