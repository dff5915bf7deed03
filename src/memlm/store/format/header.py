"""What a store is of: the models that wrote it, and how its memories are kept. Written once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memlm.errors import DamagedStoreError, StoreError
from memlm.files import write_file_atomic

FORMAT = 1
"""Raised when an older memlm could not read what is written."""
NAME = "store.json"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=2**20)]


class StoreHeader(BaseModel):
    """What every document of a store shares."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    """Version of the files."""
    encoder: Hash
    """Fingerprint of the encoder that wrote the memories."""
    decoder: Hash
    """Fingerprint of the model that reads them; corrections are of its reading."""
    tokenizer: Hash
    """Of the tokenizer's rules and words."""
    chunk_length: Size
    """Tokens that one group of memories stands for."""
    memories_per_chunk: Size
    """Vectors of one chunk."""
    numbers: Size
    """Numbers in one vector."""
    bits: Literal[16, 8, 4] = 8
    """Bits that one number is kept in."""
    model: Annotated[str, Field(max_length=4096)] | None = None
    """Where that model was: a hint, checked against the fingerprints."""
    retrieval: Annotated[str, Field(max_length=256)] | None = None
    """Fingerprint of an encoder whose vectors are searched; memories are where there is none."""
    retrieval_numbers: Size | None = None
    """Numbers in one of its vectors, kept in as many bits each."""
    retrieval_model: Annotated[str, Field(max_length=4096)] | None = None
    """Where it was: a hint."""


def write_header(folder: Path, header: StoreHeader) -> None:
    """Write it, with a hash of its own."""
    values = header.model_dump(mode="json")
    write_file_atomic(folder / NAME, json.dumps({**values, "sha256": _hash_of(values)}, indent=2) + "\n")


def read_header(folder: Path) -> StoreHeader:
    """Read and check it.

    Raises:
        StoreError: no store there, or one of a newer format.
        DamagedStoreError: not what was written.
    """
    path = folder / NAME
    if not path.is_file():
        raise StoreError(f"'{folder}' is no store of memories (it has no {NAME}); memlm remember makes one.")
    try:
        text = path.read_bytes()
        values: Any = json.loads(text)
        kept = values.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedStoreError(f"'{path}' is damaged ({' '.join(str(error).split())}); restore it.") from error
    newer = values.get("format")
    if isinstance(newer, int) and newer > FORMAT and kept == _hash_of(values):
        raise StoreError(f"'{folder}' has format {newer}, this memlm reads up to {FORMAT}; install a newer memlm.")
    # spaces are not part of the values, and a flipped one must not go unseen
    if kept != _hash_of(values) or text != (json.dumps({**values, "sha256": kept}, indent=2) + "\n").encode():
        raise DamagedStoreError(f"'{path}' is not what was written (its hash differs); restore it.")
    try:
        return StoreHeader(**values)
    except ValidationError as error:
        raise StoreError(f"'{path}' is not a store's header ({error.errors()[0]['msg']}).") from error


def _hash_of(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
