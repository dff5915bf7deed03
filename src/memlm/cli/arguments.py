"""Flags to dataclasses through tyro, with every mistake as one line that says what was meant."""

from __future__ import annotations

import dataclasses
import inspect
import io
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from memlm.errors import ConfigError, Within, did_you_mean
from memlm.switches import SWITCHES

Parsed = TypeVar("Parsed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How a command reads text; every command that takes a source of text takes these options."""

    text_field: str | None = None
    """Field of records (JSONL, JSON, CSV, Parquet) that holds the text; a dotted name reaches into records within it.
    By default the field that the run was trained on, or "text"."""
    strict: bool = False
    """Stop at the first item that cannot be read, instead of leaving it out and counting it."""


def text_field_of(options: TextOptions, folder: str | None) -> str:
    """Return the field that holds the text of records.

    Args:
        options: of a command.
        folder: a run, or any other folder or name of a model.
    """
    if options.text_field is not None:
        return options.text_field
    if folder is None or not (Path(folder) / "run.json").is_file():
        return "text"
    from memlm.training.run_folder import RunFolder

    return RunFolder.open(folder).config().data.text_field


_ANY_NUMBER = Within(-(2**63), 2**63 - 1)
MOST = 2**31 - 1
"""The greatest number of tokens, rows, seconds and the like."""
Positive = Annotated[int, Within(1, MOST)]
NotNegative = Annotated[int, Within(0, MOST)]
Share = Annotated[float, Within(0, 1)]
Seconds = Annotated[float, Within(0, MOST)]
Seed = Annotated[int, Within(0, 2**63 - 1)]
Workers = Annotated[int, Within(1, 1024)]
TokensPerMemory = Annotated[float | None, Within(1, MOST)]
_TEXTS = ("prompt", "prompt_embeds", "query", "question", "text", "id", "recipe")
"""Options that take any text, or none; the others are names of folders, files, models and the like."""
_SHOWN = 80
_FLAG = re.compile(r"(?!-inf$|-nan$)--?[A-Za-z][\w.\-]*")


def parse(kind: type[Parsed], arguments: Sequence[str], *, command: str) -> Parsed:
    """Return the arguments as an instance of `kind`; `--help` prints and exits.

    Raises:
        ConfigError: anything that does not fit, in one line.
    """
    import tyro

    program = f"memlm {command}"
    more = "; ".join(f"{switch.flag} to {switch.does}" for switch in SWITCHES)
    description = f"{inspect.getdoc(kind) or ''}\n\nEvery command also takes {more}."
    read = partial(tyro.cli, kind, prog=program, description=description)
    if any(a in ("-h", "--help") for a in arguments):
        read(args=["--help"])
    _check_unknown_flags(kind, arguments, command)
    _check_numbers(kind, arguments)
    arguments = _with_positionals_first(kind, arguments)
    shown = io.StringIO()
    try:
        with redirect_stderr(shown), redirect_stdout(shown):
            options = read(args=list(arguments))
    except SystemExit:
        raise ConfigError(f"{_sentences(shown.getvalue())} See `{program} --help`.") from None
    _check_words(options)
    return options


def _check_words(options: Any) -> None:
    """Check that names are not empty and can be written as UTF-8, and that nothing holds a NUL.

    Raises:
        ConfigError: a value is wrong.
    """
    for field in dataclasses.fields(options):
        value: Any = getattr(options, field.name)
        words = cast("list[Any]", list(value) if isinstance(value, tuple) else [value])
        name = _flag_of(field.name)
        for word in (found for found in words if isinstance(found, str)):
            if "\0" in word:
                raise ConfigError(f"{name} ({word[:_SHOWN]!r}) holds a NUL character; leave it out.")
            if field.name in _TEXTS or isinstance(value, tuple):
                continue
            if not word.strip():
                raise ConfigError(f"{name} ('{word}') is empty; give a value, or leave {name} out.")
            if not word.isprintable():
                raise ConfigError(f"{name} ({word[:_SHOWN]!r}) has characters that cannot be shown; rename it.")


def _check_numbers(kind: type[Any], arguments: Sequence[str]) -> None:
    """Check every number against the range that its field declares, before anything else reads it.

    Raises:
        ConfigError: no number, or one out of its range.
    """
    numbers = {_flag_of(name): _NumberHint.of(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
    flag, number = "", None
    for argument in arguments:
        if _FLAG.fullmatch(argument.partition("=")[0]):
            flag, given, word = argument.partition("=")
            flag = f"-{flag}" if len(flag) == len("-k") else flag.replace("_", "-")
            number = numbers.get(flag)
            if not given:
                continue
        else:
            word = argument
        if number is not None:
            number.check(flag, word)
            number = number if number.many else None


@dataclasses.dataclass(frozen=True)
class _NumberHint:
    """A field that takes a number, or many."""

    within: Within
    whole: bool
    optional: bool
    many: bool

    @classmethod
    def of(cls, hint: Any) -> _NumberHint | None:
        types, marks = _flattened(hint)
        if not {int, float} & types or str in types or bool in types:
            return None
        within = next((mark for mark in marks if isinstance(mark, Within)), _ANY_NUMBER)
        return cls(within, float not in types, type(None) in types, tuple in types)

    def check(self, flag: str, word: str) -> None:
        if not (word == "None" and self.optional):
            self.within.check_word(flag, word, whole=self.whole)


def _flattened(hint: Any) -> tuple[set[Any], list[Any]]:
    """Return all types within a type, and all marks of annotations."""
    types, marks = {get_origin(hint) or hint}, list(getattr(hint, "__metadata__", ()))
    for part in (hint.__origin__,) if marks else get_args(hint):
        inner_types, inner_marks = _flattened(part)
        types, marks = types | inner_types, [*marks, *inner_marks]
    return types, marks


def _check_unknown_flags(kind: type[Any], arguments: Sequence[str], command: str) -> None:
    known = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(cast(Any, kind))}
    known |= {"--no-" + name[2:] for name in known}
    known |= {name[1:] for name in known if len(name) == len("--k")}
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if _FLAG.fullmatch(name) and name not in known:
            shown = [flag for flag in sorted(known) if not flag.startswith("--no-")]
            shown += [switch.flag for switch in SWITCHES]
            raise ConfigError(f"unknown flag '{name}' of memlm {command}. {did_you_mean(name, shown)}")


def _with_positionals_first(kind: type[Any], arguments: Sequence[str]) -> list[str]:
    """Return the arguments with those values first that a flag of many values would take for its own.

    `--read a.txt "A prompt"` ends with a prompt where none stands before. A flag keeps at least one value.
    """
    hints = {_flag_of(name): _unwrapped(hint) for name, hint in get_type_hints(kind, include_extras=True).items()}
    missing = sum(positional and not many for _, positional, many in hints.values())
    last: list[int] = []
    flag, values = "", 0
    for index, argument in enumerate(arguments):
        name = argument.partition("=")[0].replace("_", "-")
        if _FLAG.fullmatch(name):
            plain, _, many = hints.get(name, (bool, False, False))
            flag, values = name, 0 if plain is bool or "=" in argument else -1 if many else 1
            last = [] if many else last
        elif values < 0:
            last.append(index)
        elif values:
            values -= 1
        else:
            missing -= 1
    moved = last[max(1, len(last) - missing) :] if flag and missing > 0 else []
    return [arguments[i] for i in moved] + [a for i, a in enumerate(arguments) if i not in moved]


def _flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def _unwrapped(hint: Any) -> tuple[Any, bool, bool]:
    """Return a field's type, and whether it is positional and whether it takes many values."""
    marks = getattr(hint, "__metadata__", ())
    plain = get_args(hint)[0] if marks else hint
    return plain, any("Positional" in str(mark) for mark in marks), get_origin(plain) is tuple


def _sentences(box: str) -> str:
    """Return tyro's explanation without the box that frames it."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", line).strip() for line in plain.splitlines()]
    frame = ("For full helptext", "Parsing error", "Required options", "usage:")
    return " ".join(" ".join(line for line in lines if not line.startswith(frame)).split()).rstrip(".") + "."


def options_of(settings: type[BaseModel], own: type[Any], *, leave_out: Sequence[str] = ()) -> type[Any]:
    """Return a dataclass with the fields of a command and those of the settings that it takes.

    Args:
        settings: a model whose fields have attribute docstrings.
        own: a dataclass of the command's other fields, whose docstring describes the command.
        leave_out: fields of the settings that the command does not take.
    """
    import tyro

    fields: list[Any] = []
    for name, info in settings.model_fields.items():
        if name not in leave_out:
            help_text = " ".join((info.description or "").split())
            marked = Annotated[info.annotation, tyro.conf.arg(help=help_text), _range_of(info)]
            fields.append((name, marked, info.default))
    return dataclasses.make_dataclass(
        own.__name__, fields, bases=(own,), namespace={"__doc__": own.__doc__}, frozen=True
    )


def _range_of(info: FieldInfo) -> Within:
    """Return the range of a setting's number; where an end does not belong to it, the setting itself refuses that."""
    marks = [*info.metadata]
    for mark in _flattened(info.annotation)[1]:
        marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
    low = next((getattr(mark, end) for mark in marks for end in ("ge", "gt") if hasattr(mark, end)), -MOST)
    high = next((getattr(mark, end) for mark in marks for end in ("le", "lt") if hasattr(mark, end)), MOST)
    return Within(low, high)


_DOTTED = re.compile(r"--([a-z_]+(?:[.\-][a-z_]+)*)(?:=(.*))?", re.DOTALL)


def take_settings(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings among the arguments by dotted name, as nested changes, and the other arguments in order.

    Raises:
        ConfigError: a dotted name that no setting has, or no value after it.
    """
    known = {name: text for names in _settings_by_title().values() for name, (_, text) in names.items()}
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
            raise ConfigError(f"--{name} needs a value: {known[name]}")
        _set(changes, name.split("."), _value(value))
    return changes, rest


def settings_help() -> str:
    """Return every setting with its default and its help text."""
    lines: list[str] = []
    for title, names in _settings_by_title().items():
        lines += [f"{title}:"]
        lines += [f"  --{name} {value}\n      {text}" for name, (value, text) in names.items() if "." in name]
    return "\n".join(lines)


def _settings_by_title() -> dict[str, dict[str, tuple[Any, str]]]:
    from memlm.training.config import run_settings_help
    from memlm.training.model_settings import MODEL_CONFIGS, model_settings_help

    models = {f"model of type {name}": model_settings_help(kind) for name, kind in MODEL_CONFIGS.items()}
    return {"every run": run_settings_help(), **models}


def _set(changes: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        changes = changes.setdefault(part, {})
    changes[path[-1]] = value


def _value(text: str) -> Any:
    """Return a value as YAML reads it, and floats such as 1e-3, which YAML takes for words."""
    if not text.strip():
        return text
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", text):
        return float(text)
    from memlm.files import read_plain_yaml

    try:
        return read_plain_yaml(text)
    except ConfigError:
        return text
