"""Checked settings: pydantic models that refuse unknown keys, and nested changes over them.

Attribute docstrings are the help texts of the command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memlm.data.corpus import has_surrogates
from memlm.data.records import open_bytes
from memlm.errors import ConfigError, DataError, Within, did_you_mean, shown
from memlm.files import read_plain_yaml

MAX_CONFIG_BYTES = 2**20
"""Largest settings file that is read."""

_SHOWN = 80
_ANY_NUMBER = Within(-(2**63), 2**63 - 1)
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _OneLine(type(BaseModel)):
    """Raises a ConfigError of one line where settings are made of wrong values."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        try:
            return super().__call__(*args, **values)
        except ValidationError as error:
            raise ConfigError(_in_one_line(error, cast("type[BaseModel]", cls))) from error


class Settings(BaseModel, metaclass=_OneLine):
    """Base class of all settings; unknown keys are refused and values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, defer_build=True, use_attribute_docstrings=True, strict=True, allow_inf_nan=False
    )


Checked = TypeVar("Checked", bound=Settings)


def checked(kind: type[Checked], values: dict[str, Any]) -> Checked:
    """Return settings made of nested plain values.

    Raises:
        ConfigError: the first value that does not fit, in one line.
    """
    _check_words(values, "")
    try:
        found = kind.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(_in_one_line(error, kind)) from error
    except (TypeError, ValueError) as error:
        reason = str(error)[:_SHOWN]
        raise ConfigError(f"settings must be plain numbers, words, lists and mappings ({reason}).") from error
    _check_sizes(values, "")
    return found


def _check_words(value: Any, name: str) -> None:
    """Check that every word is UTF-8, in which settings are kept."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            _check_words(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, str) and has_surrogates(value):
        raise ConfigError(f"{name} ({shown(value)}) is not UTF-8; rename it.")


def _check_sizes(value: Any, name: str) -> None:
    """Check that every number is finite and fits 64 bits, which all libraries below take."""
    if isinstance(value, dict):
        for key, inner in cast("dict[str, Any]", value).items():
            _check_sizes(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for inner in cast("list[Any]", value):
            _check_sizes(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _ANY_NUMBER.check(name, value)


def read_changes(path: str | Path) -> dict[str, Any]:
    """Return the nested settings of a YAML file.

    Raises:
        ConfigError: the file is missing, too large, not YAML, or not a mapping.
    """
    try:
        with open_bytes(Path(path)) as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise ConfigError(f"'{path}' has more than {MAX_CONFIG_BYTES} bytes; is it a settings file?")
        text = content.decode()
    except (OSError, UnicodeDecodeError, DataError) as error:
        reason = str(getattr(error, "strerror", None) or error).removesuffix(".")
        raise ConfigError(f"cannot read settings from '{path}': {reason}.") from error
    try:
        values = read_plain_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"cannot use the settings in '{path}': {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"'{path}' holds a {type(values).__name__}, not settings by name (as `memlm recipes NAME` prints them)."
        )
    return cast("dict[str, Any]", values)


def settings_names(model: type[BaseModel], prefix: str = "") -> dict[str, str]:
    """Return the dotted name of every setting with its help text."""
    names: dict[str, str] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names |= settings_names(kind, f"{prefix}{name}.")
        else:
            names[f"{prefix}{name}"] = field.description or ""
    return names


def _in_one_line(error: ValidationError, kind: type[BaseModel]) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        named = [name.split(".") for name in settings_names(kind)]
        known = {parts[len(path) - 1] for parts in named if parts[: len(path) - 1] == path[:-1]}
        return f"unknown setting '{'.'.join(path)}'. {did_you_mean(path[-1], known)}"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    where = ".".join(part for part in path if part.isidentifier() and part not in ("int", "float"))
    return f"{where} ({shown(problem['input'])}) does not fit: {problem['msg'][0].lower()}{problem['msg'][1:]}."
