"""`memlm train`: a recipe, a YAML file over it, flags over both."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from memlm.cli.arguments import MOST, parse, settings_help, take_settings
from memlm.errors import ConfigError, Within, did_you_mean
from memlm.processes import rank_of_launcher

if TYPE_CHECKING:
    from memlm.training import RunConfig

_EXAMPLES = """examples:
  memlm train autoencoder-tiny --out runs/tiny
  memlm train autoencoder-tiny --text 'notes/*.md' --training.steps 300
  memlm train autoencoder-tiny --config mine.yaml        (begin with: memlm recipes autoencoder-tiny > mine.yaml)
  memlm train --resume --out runs/tiny
  memlm train memory-tiny --objective next_token --steps 500 --out runs/next
  memlm train memory-curriculum-tiny --encoder runs/tiny
  memlm train memory-pretrained-input --decoder PATH_OR_HUB_ID --encoder runs/tiny --adapter lora

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
    """Bundled corpus, file, folder, glob, JSONL, JSON, CSV, Parquet or Hub id."""
    text_field: str | None = None
    """Field of records that holds the text (data.text_field)."""
    strict: bool = False
    """Stop at the first item of the text that cannot be read, instead of leaving it out (data.strict)."""
    objective: str | None = None
    """Objective of a memory recipe: next_token, copy, blank_copy, token_dropout or reconstruction in one stage, or
    mixture."""
    steps: Annotated[int | None, Within(1, MOST)] = None
    """Updates in all; the stages of a memory recipe keep their shares of them."""
    encoder: str | None = None
    """Run whose encoder a memory recipe uses, frozen, with its tokenizer, text and split."""
    decoder: str | None = None
    """Folder or Hub id of a pretrained causal language model that a memory recipe teaches to read memories."""
    adapter: str | None = None
    """Weights that learn in a pretrained decoder: lora or gated (adapters for memories), connector (none), or all."""
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
    if rest and not rest[0].startswith("-"):
        rest = ["--recipe", *rest]
    try:
        options = parse(Train, rest, command="train RECIPE")
    except SystemExit:  # --help
        print(_EXAMPLES + settings_help())
        raise
    config, out = _config(options, changes)
    from memlm.training import train_run

    folder = train_run(config, out, resume=options.resume, overwrite=options.overwrite, progress=options.progress)
    if rank_of_launcher() == 0:
        print(f"trained: {folder.path}   (next: memlm evaluate {folder.path})", file=sys.stderr)


def _config(options: Train, changes: dict[str, Any]) -> tuple[RunConfig, str]:
    from memlm.recipes import RECIPES, get_recipe
    from memlm.training.config import RunConfig, make_run_config, merge_run, with_steps
    from memlm.training.schema import read_changes

    if options.out is not None and not options.out.strip():
        raise ConfigError(f"--out ('{options.out}') is empty; name a folder, or leave it out for runs/RECIPE.")
    if options.resume:
        if not options.out:
            raise ConfigError("--resume needs --out: the run folder to go on with.")
        others = (options.recipe, options.config, options.text, options.objective, options.encoder, options.steps)
        if any((*others, options.decoder, options.adapter, options.text_field, options.strict)) or changes:
            raise ConfigError(f"--resume goes on with the settings kept in '{options.out}'; give no others beside it.")
        return RunConfig(), options.out
    if not options.recipe and not options.config:
        raise ConfigError(f"name a recipe or a --config file. Recipes: {', '.join(RECIPES)}.")
    config = get_recipe(options.recipe) if options.recipe else None
    if options.config:
        read = read_changes(options.config)
        config = make_run_config(read) if config is None else merge_run(config, read)
    config = _memory_options(options, config or RunConfig())
    given = {"text": options.text, "text_field": options.text_field, "strict": options.strict or None}
    if given := {name: value for name, value in given.items() if value is not None}:
        changes["data"] = {**changes.get("data", {}), **given}
    config = merge_run(config, changes)
    if options.steps is not None:
        config = with_steps(config, options.steps)
    return config, options.out or f"runs/{config.recipe}"


def _stages_for(objective: str, config: RunConfig) -> list[dict[str, Any]]:
    """Return one stage with these objectives; a recipe whose last stage has the mixture's keeps its stages."""
    from memlm.recipes import MIXTURES

    weights = MIXTURES[objective]
    stages = [stage.model_dump(mode="json") for stage in config.stages]
    if objective == "mixture" and config.stages[-1].objectives.keys() == weights.keys():
        return stages
    steps = config.steps_of("next_token") if "next_token" in weights else config.steps
    return [stages[-1] | {"name": objective, "objectives": weights, "steps": steps}]


def _memory_options(options: Train, config: RunConfig) -> RunConfig:
    """Return the configuration with --objective, --encoder, --decoder and --adapter as settings."""
    from memlm.recipes import MIXTURES
    from memlm.training.config import merge_run
    from memlm.training.run_folder import RunFolder

    given = [n for n in ("objective", "encoder", "decoder", "adapter") if getattr(options, n) is not None]
    if not given:
        return config
    if config.is_autoencoder:
        raise ConfigError(f"--{given[0]} is for memory recipes; '{config.recipe}' trains a {config.model.model_type}.")
    decoder = {"path": options.decoder, "adapter": options.adapter}
    changes: dict[str, Any] = {"decoder": {name: value for name, value in decoder.items() if value is not None}}
    if options.objective is not None:
        if options.objective not in MIXTURES:
            raise ConfigError(f"unknown objective '{options.objective}'. {did_you_mean(options.objective, MIXTURES)}")
        changes["stages"] = _stages_for(options.objective, config)
    if options.encoder is not None:
        before = RunFolder.open(options.encoder).config()
        own = {"short_rows": config.data.short_rows, "tokenizer": None, "token_table": None}
        data = before.data.model_dump(mode="json") | own
        changes |= {"encoder_run": options.encoder, "data": data, "training": {"seed": before.training.seed}}
    return merge_run(config, changes)
