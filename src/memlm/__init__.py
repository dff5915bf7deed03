"""Memory models for language.

    memory = memlm.load("runs/demo")
    memories = memory.remember(["any text"])
    memory.regenerate(memories)

Nothing heavy happens on import: names are bound when they are first used. Where transformers is loaded already, memlm's
models join its Auto classes at once; otherwise `import memlm.models` (or any name below) does it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from memlm.version import __version__

if TYPE_CHECKING:
    from memlm.errors import MemlmError, UserError
    from memlm.evaluation import evaluate_run
    from memlm.evaluation.probe_settings import ProbeSettings
    from memlm.evaluation.retention import Retention
    from memlm.inference import (
        FunctionEncoder,
        MemorySession,
        MemoryStore,
        TextMemory,
        TextStore,
        dequantize,
        load,
        open_encoder,
        quantize,
    )
    from memlm.measurement import Measurement
    from memlm.models import (
        MemoryModelConfig,
        MemoryModelForCausalLM,
        MixerConfig,
        MixerForCausalLM,
        MixerModel,
        RecurrentMemoryForCausalLM,
        TextAutoencoder,
        TextAutoencoderConfig,
    )
    from memlm.recipes import RECIPES, get_recipe
    from memlm.training import RunConfig, RunFolder, train_run

_WHERE = {
    **dict.fromkeys(["MemlmError", "UserError"], "errors"),
    **dict.fromkeys(
        [
            *("MemoryModelConfig", "MemoryModelForCausalLM", "RecurrentMemoryForCausalLM"),
            *("MixerConfig", "MixerForCausalLM", "MixerModel", "TextAutoencoder", "TextAutoencoderConfig"),
        ],
        "models",
    ),
    **dict.fromkeys(
        [
            *("FunctionEncoder", "TextMemory", "dequantize", "load", "open_encoder", "quantize"),
            *("MemorySession", "MemoryStore", "TextStore"),
        ],
        "inference",
    ),
    **dict.fromkeys(["RECIPES", "get_recipe"], "recipes"),
    **dict.fromkeys(["RunConfig", "RunFolder", "train_run"], "training"),
    "Measurement": "measurement",
    "evaluate_run": "evaluation",
    "ProbeSettings": "evaluation.probe_settings",
    "Retention": "evaluation.retention",
}

__all__ = [
    "RECIPES",
    "FunctionEncoder",
    "Measurement",
    "MemlmError",
    "MemoryModelConfig",
    "MemoryModelForCausalLM",
    "MemorySession",
    "MemoryStore",
    "MixerConfig",
    "MixerForCausalLM",
    "MixerModel",
    "ProbeSettings",
    "RecurrentMemoryForCausalLM",
    "Retention",
    "RunConfig",
    "RunFolder",
    "TextAutoencoder",
    "TextAutoencoderConfig",
    "TextMemory",
    "TextStore",
    "UserError",
    "__version__",
    "dequantize",
    "evaluate_run",
    "get_recipe",
    "load",
    "open_encoder",
    "quantize",
    "train_run",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'memlm' has no attribute {name!r}")
    return getattr(import_module(f"memlm.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if "transformers" in sys.modules:
    import_module("memlm.models")
