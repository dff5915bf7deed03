"""`memlm train`: a recipe, a YAML file over it, flags over both."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from memlm.cli.arguments import parse
from memlm.cli.settings import settings_help, take_settings
from memlm.errors import ConfigError

_EXAMPLES = """examples:
  memlm train autoencoder-tiny --out runs/tiny
  memlm train autoencoder-tiny --text 'notes/*.md' --training.steps 300
  memlm train autoencoder-tiny --config mine.yaml        (begin with: memlm recipes autoencoder-tiny > mine.yaml)
  memlm train --resume --out runs/tiny

settings, with the defaults that recipes change (memlm recipes NAME shows a recipe's):
"""


@dataclass(frozen=True)
class Train:
    """Train a recipe into a run folder. Ctrl-C keeps a checkpoint; --resume goes on from it."""

    recipe: str = ""
    """Name of a recipe (memlm recipes lists them)."""
    config: str | None = None
    """YAML file with settings that replace the recipe's."""
    text: str | None = None
    """Bundled corpus, file, folder, glob, JSONL, Parquet or Hub id."""
    out: str | None = None
    """Run folder; runs/RECIPE by default."""
    resume: bool = False
    """Go on with the run in --out."""
    overwrite: bool = False
    """Replace an older run in --out."""
    progress: bool = True
    """Show progress on stderr."""


def run(arguments: list[str]) -> None:
    """Parse, train, say where the run lies."""
    changes, rest = take_settings(arguments)
    recipe, rest = _recipe_first(rest)
    options = parse(Train, [*(["--recipe", recipe] if recipe else []), *_or_help(rest)], command="train RECIPE")
    config, out = _config(options, changes)
    from memlm.training import train_run

    folder = train_run(config, out, resume=options.resume, overwrite=options.overwrite, progress=options.progress)
    print(f"trained: {folder.path}   (next: memlm evaluate {folder.path})", file=sys.stderr)


def _or_help(rest: list[str]) -> list[str]:
    if "-h" in rest or "--help" in rest:
        try:
            parse(Train, ["--help"], command="train RECIPE")
        except SystemExit:
            print(_EXAMPLES + settings_help())
            raise
    return rest


def _recipe_first(rest: list[str]) -> tuple[str, list[str]]:
    if rest and not rest[0].startswith("-"):
        return rest[0], rest[1:]
    return "", rest


def _config(options: Train, changes: dict[str, Any]) -> tuple[Any, str]:
    from memlm.recipes import RECIPES, get_recipe
    from memlm.training.config import RunConfig, make_config, merge, read_changes

    if options.out is not None and not options.out.strip():
        raise ConfigError(f"--out ('{options.out}') is empty; name a folder, or leave it out for runs/RECIPE.")
    if options.resume:
        if not options.out:
            raise ConfigError("--resume needs --out: the run folder to go on with.")
        if options.recipe or options.config or options.text or changes:
            raise ConfigError(f"--resume goes on with the settings kept in '{options.out}'; give no others beside it.")
        return RunConfig(), options.out
    if not options.recipe and not options.config:
        raise ConfigError(f"name a recipe or a --config file. Recipes: {', '.join(RECIPES)}.")
    config = get_recipe(options.recipe) if options.recipe else RunConfig()
    if options.config:
        config = merge(config, read_changes(options.config))
    if options.text is not None:
        changes.setdefault("data", {})["text"] = options.text
    config = merge(config, changes) if changes else make_config(config.model_dump(mode="json"))
    return config, options.out or f"runs/{config.recipe}"
