"""The kinds of runs, by the word in their settings."""

from __future__ import annotations

from typing import Any

from memlm.errors import ConfigError, did_you_mean
from memlm.training.config import RunConfig, checked, merged
from memlm.training.memory.config import MemoryRunConfig

AnyRunConfig = RunConfig | MemoryRunConfig
_KINDS: dict[str, type[RunConfig] | type[MemoryRunConfig]] = {"autoencoder": RunConfig, "memory": MemoryRunConfig}


def make_run_config(values: dict[str, Any]) -> AnyRunConfig:
    """Checked settings of the kind they name; an autoencoder's where they name none.

    Raises:
        ConfigError: the first thing that is wrong, in one line.
    """
    kind = values.get("kind", "autoencoder")
    if kind not in _KINDS:
        raise ConfigError(f"unknown kind '{kind}' of run. {did_you_mean(str(kind), _KINDS)}")
    return checked(_KINDS[kind], values)


def merge_run(base: AnyRunConfig, changes: dict[str, Any]) -> AnyRunConfig:
    """`base` with nested changes over it, checked."""
    return make_run_config(merged(base.model_dump(mode="json"), changes))


def with_steps(config: AnyRunConfig, steps: int) -> AnyRunConfig:
    """The same run of other length; stages, and what moves in them, keep their part of it, one step at least."""
    if isinstance(config, RunConfig):
        return merge_run(config, {"training": {"steps": steps}})
    share = steps / config.steps
    return merge_run(config, {"stages": [_scaled(stage.model_dump(mode="json"), share) for stage in config.stages]})


def _scaled(stage: dict[str, Any], share: float) -> dict[str, Any]:
    """A stage of other length, and what moves in it with it."""

    def moved(value: Any) -> Any:
        return {**value, "steps": max(1, round(value["steps"] * share))} if isinstance(value, dict) else value

    return {
        **stage,
        "steps": max(1, round(stage["steps"] * share)),
        "objectives": {name: moved(weight) for name, weight in stage["objectives"].items()},
        "random_share": moved(stage["random_share"]),
        "max_targets": moved(stage["max_targets"]),
        "row_share": {name: moved(share) for name, share in stage["row_share"].items()},
    }
