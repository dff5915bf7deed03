"""The header of a store: the models that wrote it and the format of its memories. It is written once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memlm.errors import DamagedStoreError, StoreError
from memlm.files import reason_of, sealed_text, write_file_atomic

FORMAT = 2
"""The newest version of the format; a store has the oldest that can describe it. Version 2 added slots."""
NAME = "store.json"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=2**20)]


class SlotFormat(BaseModel):
    """The settings of memories that a pretrained decoder reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    injection: Annotated[str, Field(max_length=64)] = "kv"
    """`kv` for keys and values of all layers; otherwise the injection whose vectors are stored, one for each slot."""
    layers: Size
    """Layers of the decoder."""
    heads: Size
    """Heads of keys and values in each layer."""
    slots: Size
    """Slots of a full chunk, each of a key and a value for each layer and head."""
    tokens_per_memory: Annotated[float, Field(ge=1, le=2**20)]
    """Tokens for each slot."""
    encoding: dict[str, Any]
    """Settings of the encoding, by the names of `EncodingSettings`."""


class StoreHeader(BaseModel):
    """The settings that all documents of a store share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    """Version of the format."""
    encoder: Hash
    """Fingerprint of the encoder that wrote the memories."""
    decoder: Hash
    """Fingerprint of the model that reads them; corrections belong to this model."""
    tokenizer: Hash
    """Fingerprint of the tokenizer's rules and vocabulary."""
    chunk_length: Size
    """Tokens in a chunk."""
    memories_per_chunk: Size
    """Memory vectors of one chunk."""
    numbers: Size
    """Numbers in one memory vector."""
    bits: Literal[16, 8, 4] = 8
    """Bits of one stored number."""
    model: Annotated[str, Field(max_length=4096)] | None = None
    """Folder of the model when the store was made; the fingerprints decide."""
    retrieval: Annotated[str, Field(max_length=256)] | None = None
    """Fingerprint of the encoder whose vectors are searched; without one, memories are searched."""
    retrieval_numbers: Size | None = None
    """Numbers in one of its vectors; each has `bits` bits."""
    retrieval_model: Annotated[str, Field(max_length=4096)] | None = None
    """Folder or id of that encoder when the store was made."""
    retrieval_prompt: Annotated[str, Field(max_length=4096)] | None = None
    """Prompt of the documents, where one was given to that encoder."""
    slots: SlotFormat | None = None
    """Settings of slots, in a store of keys and values."""


def write_header(folder: Path, header: StoreHeader) -> None:
    """Write a header together with its hash."""
    # an older memlm knows no slots and no prompts
    left_out = {name for name in ("slots", "retrieval_prompt") if getattr(header, name) is None}
    write_file_atomic(folder / NAME, sealed_text(header.model_dump(mode="json", exclude=left_out), indent=2))


def read_header(folder: Path) -> StoreHeader:
    """Read a header and check its hash.

    Raises:
        StoreError: the folder is not a store, or has a newer format.
        DamagedStoreError: the header is not what was written.
    """
    path = folder / NAME
    if not path.is_file():
        raise StoreError(f"'{folder}' is not a store of memories (it has no {NAME}); create one with memlm remember.")
    values = read_sealed(path, indent=2)
    newer = values.get("format")
    if isinstance(newer, int) and newer > FORMAT:
        raise StoreError(f"'{folder}' has format {newer}, this memlm reads up to {FORMAT}; install a newer memlm.")
    try:
        return StoreHeader(**values)
    except ValidationError as error:
        raise StoreError(f"'{path}' is not a store's header ({error.errors()[0]['msg']}).") from error


def read_sealed(path: Path, *, indent: int | None = None) -> dict[str, Any]:
    """Read values that were written as `sealed_text`.

    Raises:
        DamagedStoreError: the file is missing, or is not what was written.
    """
    try:
        text = path.read_bytes()
        values: Any = json.loads(text)
        del values["sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedStoreError(f"'{path}' is damaged or missing ({reason_of(error)[:80]}); restore it.") from error
    # the hash covers values, not spaces, so the exact text is compared
    if text != sealed_text(values, indent=indent).encode():
        raise DamagedStoreError(f"'{path}' is not what was written (its hash differs); restore it.")
    return values
