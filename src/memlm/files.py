"""Readers and writers of tensors, JSON and YAML that never unpickle, and that turn every damage into one line."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memlm.checksums import REMEDY, check_format
from memlm.durable import append_text as append_text
from memlm.durable import create_folder as create_folder
from memlm.durable import draft_file
from memlm.durable import write_file_atomic as write_file_atomic
from memlm.durable import write_folder_atomic as write_folder_atomic
from memlm.errors import CheckpointError, ConfigError, MemlmError, UserError
from memlm.switches import IGNORE_CHECKSUMS

_FORMAT: Final = 1
"""The newest format of files of tensors."""
_FORMAT_KEY, _HASH_KEY = "memlm_format", "sha256"
_DAMAGED = "it is damaged, remove its folder and resume from the one before"


@contextmanager
def one_error(path: str | Path, error: type[UserError], remedy: str) -> Generator[None]:
    """Turn every error of a library that reads a file into one line that names the file.

    Args:
        path: the file or folder.
        error: the error to raise; errors of memlm pass.
        remedy: the end of the sentence.
    """
    try:
        yield
    except MemlmError:
        raise
    except Exception as reason:  # files from outside make libraries raise errors of many types
        raise error(f"cannot read '{path}' ({reason_of(reason)}); {remedy}.") from reason


def reason_of(error: Exception) -> str:
    """Return the message of another library's error as a part of one line."""
    if isinstance(error, KeyError) and error.args:
        return f"it lacks '{error.args[0]}'"[:200]
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def disk_errors() -> Generator[None]:
    """Raise the errors of safetensors while it writes, such as a full disk, as OSError."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        number = int(found.group(1)) if found else 5  # EIO
        raise OSError(number, os.strerror(number) if found else reason_of(error)) from error


def write_tensors_atomic(path: Path, tensors: dict[str, Tensor], *, sealed: bool = True) -> None:
    """Create or replace a safetensors file atomically, by default with the hash of what it holds.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    marks = {_FORMAT_KEY: str(_FORMAT), _HASH_KEY: tensors_hash(tensors)} if sealed else None
    with draft_file(path) as draft, disk_errors():
        save_file(tensors, draft, metadata=marks)


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(cast(Any, tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, and check their hash where the file has one.

    Raises:
        CheckpointError: the file is missing, cut short, of another kind, of a newer format, or not what was written.
    """
    with one_error(path, CheckpointError, _DAMAGED):
        with safe_open(path, "pt") as file:
            marks = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dictionary)
        if _FORMAT_KEY in marks:
            check_format(path, int(marks[_FORMAT_KEY]), _FORMAT)
        if _HASH_KEY in marks and not IGNORE_CHECKSUMS.is_on() and tensors_hash(tensors) != marks[_HASH_KEY]:
            raise CheckpointError(f"'{path}' is damaged: it is not what was written (its hash differs); {REMEDY}")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, cut short, or not an object.
    """
    with one_error(path, CheckpointError, "it is damaged or missing"):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' holds a {type(value).__name__}, not an object; it was not written by memlm.")
    return cast("dict[str, Any]", value)


def sealed_text(values: dict[str, Any], *, indent: int | None = None) -> str:
    """Return values as JSON together with their hash."""
    values = json.loads(json.dumps(values))  # as they will be read
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return json.dumps({**values, "sha256": digest}, indent=indent) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read values that were written as `sealed_text`; a file without a hash was written by an older memlm.

    Raises:
        CheckpointError: the file is missing, cut short, not an object, or not what was written.
    """
    values = read_json(path)
    sealed = values.pop("sha256", None)
    if sealed is None or IGNORE_CHECKSUMS.is_on():
        return values
    if sealed != hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest():
        raise CheckpointError(f"'{path}' is damaged: it is not what was written (its hash differs); {REMEDY}")
    return values


_IMPLICIT: Final = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _PlainLoader(yaml.SafeLoader):
    """A loader that rejects aliases, which can expand a few lines beyond any memory, and reads dates as strings."""

    yaml_implicit_resolvers = _IMPLICIT

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("settings must not hold aliases (*name); write the value out.")
        return super().compose_node(parent, index)


def read_plain_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ConfigError: the text is not YAML, holds an alias, or is nested too deeply.
    """
    try:
        loader = _PlainLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError as error:
        raise ConfigError("the settings are nested too deeply; two levels are all there are.") from error
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}") from error
