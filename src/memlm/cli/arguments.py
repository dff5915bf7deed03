"""Flags to dataclasses through tyro, with every mistake as one line that says what was meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel

from memlm.errors import ConfigError, did_you_mean

Parsed = TypeVar("Parsed")
_FLAG = re.compile(r"--?[A-Za-z][\w.\-]*")


def parse(kind: type[Parsed], arguments: Sequence[str], *, command: str, default: Parsed | None = None) -> Parsed:
    """Arguments as an instance of `kind`; `--help` prints and exits.

    Raises:
        ConfigError: anything that does not fit, in one line.
    """
    import tyro

    program = f"memlm {command}"
    description = inspect.getdoc(kind) or ""
    if any(a in ("-h", "--help") for a in arguments):
        tyro.cli(kind, args=["--help"], prog=program, description=description, default=_or_missing(default))
        raise SystemExit(0)
    _check_unknown_flags(kind, arguments, command)
    problems: list[str] = []
    try:
        return tyro.cli(
            kind,
            args=list(arguments),
            prog=program,
            description=description,
            default=_or_missing(default),
            console_outputs=False,
        )
    except SystemExit:
        problems.append(_what_is_wrong(kind, arguments, program, default))
    raise ConfigError(f"{problems[0]} See `{program} --help`.")


def _or_missing(default: Any) -> Any:
    import tyro

    return tyro.MISSING_NONPROP if default is None else default


def _check_unknown_flags(kind: type[Any], arguments: Sequence[str], command: str) -> None:
    import dataclasses

    known = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(cast(Any, kind))}
    known |= {"--no-" + name[2:] for name in known}
    known |= {name[1:] for name in known if len(name) == len("--k")}
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if _FLAG.fullmatch(name) and name not in known:
            shown = [flag for flag in sorted(known) if not flag.startswith("--no-")]
            raise ConfigError(f"unknown flag '{name}' of memlm {command}. {did_you_mean(name, shown)}")


def _what_is_wrong(kind: type[Any], arguments: Sequence[str], program: str, default: Any) -> str:
    """Tyro explains in a box; its sentences without the frame."""
    import contextlib
    import io

    import tyro

    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=list(arguments), prog=program, default=_or_missing(default))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    words = [re.sub(r"[╭╮╰╯│─]+|-{4,}", " ", line).strip() for line in plain.splitlines()]
    useful = [
        w for w in words if w and not w.startswith(("For full helptext", "Parsing error", "Required options", "usage:"))
    ]
    return " ".join(" ".join(useful).split()).rstrip(".") + "."


def options_of(settings: type[BaseModel], own: type[Any], *, leave_out: Sequence[str] = ()) -> type[Any]:
    """Return a dataclass with the fields of a command and those of the settings that it takes.

    Args:
        settings: a model whose fields have attribute docstrings.
        own: a dataclass of the command's other fields, whose docstring describes the command.
        leave_out: fields of the settings that the command does not take.
    """
    import dataclasses

    import tyro

    fields: list[Any] = []
    for name, info in settings.model_fields.items():
        if name not in leave_out:
            help_text = " ".join((info.description or "").split())
            fields.append((name, Annotated[info.annotation, tyro.conf.arg(help=help_text)], info.default))
    return dataclasses.make_dataclass(
        own.__name__, fields, bases=(own,), namespace={"__doc__": own.__doc__}, frozen=True
    )
