"""YAML as settings need it: numbers, words, lists and mappings; no aliases, no dates, no bottomless nesting."""

from __future__ import annotations

from typing import Any, Final

import yaml

from memlm.errors import ConfigError

_IMPLICIT: Final = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, which can grow a few lines beyond any memory; leaves dates as words."""

    yaml_implicit_resolvers = _IMPLICIT

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ConfigError("settings must not hold aliases (*name); write the value out.")
        return super().compose_node(parent, index)


def read_plain_yaml(text: str) -> Any:
    """The value that a text holds.

    Raises:
        ConfigError: not YAML, an alias, or nested too deeply.
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
