"""`--dotted.name VALUE` flags of every setting in a RunConfig, over a recipe and a YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from memlm.errors import ConfigError, did_you_mean
from memlm.training.config import Settings, defaults_of, settings_names
from memlm.training.memory.config import MemoryRunConfig

_DOTTED = re.compile(r"--([a-z_]+(?:[.\-][a-z_]+)*)(?:=(.*))?", re.DOTALL)


def take_settings(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Settings by dotted name taken out of the arguments, as nested changes; the rest is left in order.

    Raises:
        ConfigError: a dotted name that no setting has, or no value after it.
    """
    known = settings_names() | settings_names(MemoryRunConfig)
    changes: dict[str, Any] = {}
    rest: list[str] = []
    given = iter(arguments)
    for argument in given:
        match = _DOTTED.fullmatch(argument)
        if match is None or "." not in match.group(1):
            rest.append(argument)
            continue
        name = match.group(1).replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"unknown setting '--{match.group(1)}'. {did_you_mean('--' + name, ['--' + k for k in known])}"
            )
        value = match.group(2) if match.group(2) is not None else next(given, None)
        if value is None or (value.startswith("--") and match.group(2) is None):
            raise ConfigError(f"--{name} needs a value: {known[name][1]}")
        _set(changes, name.split("."), _value(value))
    return changes, rest


def _set(changes: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        changes = changes.setdefault(part, {})
    changes[path[-1]] = value


def _value(text: str) -> Any:
    """As YAML reads it, and floats such as 1e-3, which YAML would take for words."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)
    from memlm.files import read_plain_yaml  # --help must not wait for it

    try:
        return read_plain_yaml(text)
    except ConfigError:
        return text


def settings_help() -> str:
    """Every setting with its default and what it is, one a line."""
    from memlm.training.config import RunConfig

    parts = [_help_of(RunConfig, set()), "\nof memory recipes:\n"]
    return "\n".join([*parts, _help_of(MemoryRunConfig, set(settings_names()))])


def _help_of(kind: type[Settings], known: set[str]) -> str:
    values = defaults_of(kind)
    lines: list[str] = []
    for name, (_, text) in settings_names(kind).items():
        value: Any = values
        for part in name.split("."):
            value = value[part]
        if name not in {"recipe", "kind"} | known:
            lines.append(f"  --{name} {value}\n      {' '.join(text.split())}")
    return "\n".join(lines)
