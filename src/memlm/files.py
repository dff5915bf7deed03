"""Atomic writes of files and folders, and readers that never unpickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from memlm.errors import CheckpointError, ConfigError, UserError


def write_folder_atomic(folder: Path, write: Callable[[Path], None]) -> None:
    """Create or replace a folder atomically: `write` fills a draft, which then takes the name of `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        write(draft)
        for file in draft.rglob("*"):
            _flush(file)
        _flush(draft)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    _flush(folder.parent)


def create_folder(folder: str | Path, write: Callable[[Path], None], error: type[UserError]) -> None:
    """Create a folder atomically as `write_folder_atomic` does, and raise `error` if it exists or cannot be written."""
    path = Path(folder)
    if path.exists():
        raise error(f"'{folder}' exists already; give another folder.")
    try:
        write_folder_atomic(path, write)
    except OSError as reason:
        raise error(f"cannot write to '{folder}' ({reason.strerror or reason}).") from reason


def write_tensors_atomic(path: Path, tensors: dict[str, Tensor]) -> None:
    """Create or replace a safetensors file atomically."""
    draft = path.with_name(f".{path.name}.draft")
    save_file(tensors, draft)
    _flush(draft)
    draft.replace(path)


def write_file_atomic(path: Path, text: str) -> None:
    """Create or replace a text file atomically."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    _flush(draft)
    draft.replace(path)


def append_text(path: Path, text: str) -> None:
    """Append whole lines to a text file in one write, which is on the disk before this returns.

    Where a crash cut the last line short, the new lines begin behind a line end.
    """
    cut_short = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as stream:
        stream.write(("\n" if cut_short else "") + text)
        stream.flush()
        os.fsync(stream.fileno())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, or of another kind.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        message = f"cannot read '{path}' ({reason}); it is damaged, remove its folder and resume from the one before."
        raise CheckpointError(message) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: the file is missing, cut short, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read '{path}' ({error}); it is damaged or missing.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"'{path}' holds a {type(value).__name__}, not an object; it was not written by memlm.")
    return cast("dict[str, Any]", value)


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
