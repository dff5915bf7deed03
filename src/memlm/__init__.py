"""Memory models for language.

    memory = memlm.load("runs/demo")
    memories = memory.encode(["any text"])
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
    from memlm.encoders import FunctionEncoder, open_encoder
    from memlm.errors import MemlmError, UserError
    from memlm.evaluation import evaluate_run
    from memlm.evaluation.probe.retention import Retention
    from memlm.evaluation.probe.settings import ProbeSettings
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
    from memlm.session import MemorySession, TextMemory, load
    from memlm.store import MemoryStore, TextStore, dequantize, quantize
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
    **dict.fromkeys(["FunctionEncoder", "open_encoder"], "encoders"),
    **dict.fromkeys(["MemoryStore", "TextStore", "dequantize", "quantize"], "store"),
    **dict.fromkeys(["MemorySession", "TextMemory", "load"], "session"),
    **dict.fromkeys(["RECIPES", "get_recipe"], "recipes"),
    **dict.fromkeys(["RunConfig", "RunFolder", "train_run"], "training"),
    "Measurement": "measurement",
    "evaluate_run": "evaluation",
    "ProbeSettings": "evaluation.probe.settings",
    "Retention": "evaluation.probe.retention",
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
