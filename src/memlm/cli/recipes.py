"""`memlm recipes`: what there is, and each as YAML."""

from __future__ import annotations

from memlm.errors import ConfigError

_HELP = """usage: memlm recipes [NAME]

Without a name: all recipes, one a line. With a name: the recipe as YAML, to change and give to --config:
  memlm recipes autoencoder-tiny > mine.yaml
"""


def run(arguments: list[str]) -> None:
    """List the recipes, or print one."""
    if any(a in ("-h", "--help") for a in arguments):
        print(_HELP, end="")
        return
    if len(arguments) > 1:
        raise ConfigError(f"memlm recipes takes one name, not {len(arguments)}.")
    import yaml

    from memlm.recipes import RECIPES, get_recipe

    if arguments:
        print(yaml.safe_dump(get_recipe(arguments[0]).model_dump(mode="json"), sort_keys=False), end="")
        return
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        print(f"{name:{width}}  {(recipe.__doc__ or '').splitlines()[0]}")
