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
    from memlm.evaluation.efficiency import EfficiencySettings
    from memlm.evaluation.probe.retention import Retention
    from memlm.evaluation.probe.settings import ProbeSettings, ProbeTraining
    from memlm.measurement import Measurement
    from memlm.models import (
        ChunkEncoderConfig,
        MemoryModelConfig,
        MemoryModelForCausalLM,
        MixerConfig,
        MixerForCausalLM,
        MixerModel,
        PassageEncoderConfig,
        ProbeConfig,
        RecurrentMemoryConfig,
        RecurrentMemoryForCausalLM,
        TextAutoencoder,
        TextAutoencoderConfig,
    )
    from memlm.models.slots import EncodingSettings, MemoryDecoder
    from memlm.objectives import LinearSchedule
    from memlm.recipes import RECIPES, get_recipe
    from memlm.session import Answer, AskSettings, DocumentSession, MemorySession, SlotSession, TextMemory, load
    from memlm.store import MemoryStore, TextStore, dequantize, quantize
    from memlm.training import (
        DataConfig,
        OptimizerConfig,
        PretrainedDecoder,
        RunConfig,
        RunFolder,
        Stage,
        TrainingConfig,
        train_run,
    )

_MODELS = (
    *("ChunkEncoderConfig", "MemoryModelConfig", "MemoryModelForCausalLM", "MixerConfig", "MixerForCausalLM"),
    *("MixerModel", "PassageEncoderConfig", "ProbeConfig", "RecurrentMemoryConfig", "RecurrentMemoryForCausalLM"),
    *("TextAutoencoder", "TextAutoencoderConfig"),
)
_TRAINING = ("DataConfig", "OptimizerConfig", "PretrainedDecoder", "RunConfig", "RunFolder", "Stage", "TrainingConfig")
_SESSION = ("Answer", "AskSettings", "DocumentSession", "MemorySession", "SlotSession", "TextMemory", "load")
_WHERE = {
    **dict.fromkeys(("FunctionEncoder", "open_encoder"), "encoders"),
    **dict.fromkeys(("MemlmError", "UserError"), "errors"),
    "evaluate_run": "evaluation",
    "EfficiencySettings": "evaluation.efficiency",
    "Retention": "evaluation.probe.retention",
    **dict.fromkeys(("ProbeSettings", "ProbeTraining"), "evaluation.probe.settings"),
    "Measurement": "measurement",
    **dict.fromkeys(_MODELS, "models"),
    **dict.fromkeys(("EncodingSettings", "MemoryDecoder"), "models.slots"),
    "LinearSchedule": "objectives",
    **dict.fromkeys(("RECIPES", "get_recipe"), "recipes"),
    **dict.fromkeys(_SESSION, "session"),
    **dict.fromkeys(("MemoryStore", "TextStore", "dequantize", "quantize"), "store"),
    **dict.fromkeys((*_TRAINING, "train_run"), "training"),
}

__all__ = [
    "RECIPES",
    "Answer",
    "AskSettings",
    "ChunkEncoderConfig",
    "DataConfig",
    "DocumentSession",
    "EfficiencySettings",
    "EncodingSettings",
    "FunctionEncoder",
    "LinearSchedule",
    "Measurement",
    "MemlmError",
    "MemoryDecoder",
    "MemoryModelConfig",
    "MemoryModelForCausalLM",
    "MemorySession",
    "MemoryStore",
    "MixerConfig",
    "MixerForCausalLM",
    "MixerModel",
    "OptimizerConfig",
    "PassageEncoderConfig",
    "PretrainedDecoder",
    "ProbeConfig",
    "ProbeSettings",
    "ProbeTraining",
    "RecurrentMemoryConfig",
    "RecurrentMemoryForCausalLM",
    "Retention",
    "RunConfig",
    "RunFolder",
    "SlotSession",
    "Stage",
    "TextAutoencoder",
    "TextAutoencoderConfig",
    "TextMemory",
    "TextStore",
    "TrainingConfig",
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
