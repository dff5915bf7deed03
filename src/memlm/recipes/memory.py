"""Memory models as full configurations, each derived from another by what it changes."""

from __future__ import annotations

from typing import Any

from memlm.recipes.autoencoder import autoencoder_tiny
from memlm.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from memlm.training.memory.config import (
    DecoderSettings,
    EncoderSettings,
    MemoryModelSettings,
    MemoryRunConfig,
    ObjectiveName,
    Stage,
    Weight,
)

_MODEL = MemoryModelSettings(
    learned_positions=True,
    blank_head=True,
    decoder=DecoderSettings(backbone="llama", num_heads=4, intermediate_size=352),
)
"""Attention chooses among memories, which a mixer's fixed matrices cannot; places tell it where to look (LOG.md)."""
_RATES = OptimizerConfig(learning_rate=8e-3, adamw_learning_rate=8e-3)
"""Twice those of one objective: two of them share each step's length (LOG.md)."""

OBJECTIVES: dict[str, dict[ObjectiveName, float | Weight]] = {
    "next_token": {"next_token": 1.0},
    "copy": {"copy": 1.0},
    "blank_copy": {"blank_copy": 1.0},
    "token_dropout": {"token_dropout": 1.0},
    "reconstruction": {"next_token": 1.0, "reconstruction": 1.0},
    "mixture": {"next_token": 1.0, "blank_copy": 1.0},
}
"""What `memlm train --objective` may ask for in one stage."""


_FADING: dict[ObjectiveName, float | Weight] = {"next_token": 1.0, "blank_copy": Weight(start=1.0, end=0.1, steps=600)}
"""What has been learnt needs less to be kept: every share of a step that copies is one that does not predict."""

_RANDOM = Weight(start=0.0, end=0.2, steps=400)
"""Once text comes back, some of its tokens are any others: facts are kept that no text would say (LOG.md)."""


def autoencoder_chunk_tiny() -> RunConfig:
    """16 tokens into one memory of 128 numbers, width 128: the encoder of memory-curriculum-tiny; minutes."""
    tiny = autoencoder_tiny()
    return tiny.model_copy(
        update={
            "recipe": "autoencoder-chunk-tiny",
            "model": ModelConfig(
                chunk_length=16, hidden_size=128, bottleneck_size=128, noise_bits=4, memory_activation="rms_norm"
            ),
            "training": tiny.training.model_copy(update={"batch_size": 256, "steps": 300}),
        }
    )


def autoencoder_chunk_small() -> RunConfig:
    """The same with eight encoder layers of width 512: worth keeping what it writes; 7 minutes in bf16, 40 without."""
    tiny = autoencoder_chunk_tiny()
    larger = tiny.model.model_copy(update={"hidden_size": 512, "num_encoder_layers": 8})
    # a larger one needs fewer steps, each dearer
    training = tiny.training.model_copy(update={"steps": 150})
    return tiny.model_copy(update={"recipe": "autoencoder-chunk-small", "model": larger, "training": training})


def autoencoder_chunk_deep() -> RunConfig:
    """The tiny one with 32 encoder layers, no wider: learns in fewer, dearer steps; worth keeping what it writes."""
    tiny = autoencoder_chunk_tiny()
    deep = tiny.model.model_copy(update={"num_encoder_layers": 32})
    training = tiny.training.model_copy(update={"steps": 150})
    return tiny.model_copy(update={"recipe": "autoencoder-chunk-deep", "model": deep, "training": training})


def memory_tiny() -> MemoryRunConfig:
    """4 chunks of 16 tokens, width 128, from scratch: next tokens and, ever less, blank copies; within half an hour."""
    return MemoryRunConfig(
        recipe="memory-tiny",
        data=DataConfig(short_rows=0.0),
        model=_MODEL,
        stages=(Stage(name="mixture", objectives=_FADING, steps=1200, distances="every", random_share=_RANDOM),),
        training=TrainingConfig(
            batch_size=32, evaluate_every=100, evaluate_rows=256, checkpoint_every=250, optimizer=_RATES
        ),
    )


def memory_curriculum_tiny() -> MemoryRunConfig:
    """The tiny one around a frozen encoder (--encoder): blank copy, then copy, then the mixture; half its time."""
    tiny = memory_tiny()
    # what goes on is not slowed down; at a lower rate, as weights that have grown learn to predict more slowly (LOG.md)
    first: dict[str, Any] = {"decay_share": 0.0, "learning_rate": 4e-3}
    fading = Weight(start=0.5, end=0.05, steps=200)
    # what has come back once is kept by every fourth row
    fewer = Weight(start=1.0, end=0.25, steps=200)
    return tiny.model_copy(
        update={
            "recipe": "memory-curriculum-tiny",
            "stages": (
                Stage(name="blank_copy", objectives=OBJECTIVES["blank_copy"], steps=100, **first),
                # copies alone undo what blank copies taught (LOG.md)
                Stage(name="copy", objectives={"copy": 1.0, "blank_copy": 1.0}, steps=20, **first),
                Stage(
                    name="mixture",
                    objectives={"next_token": 1.0, "blank_copy": fading},
                    steps=560,
                    row_share={"blank_copy": fewer},
                ),
            ),
        }
    )


def memory_last_token_tiny() -> MemoryRunConfig:
    """The tiny one with the paper's bottleneck, which a head of the memories' own teaches to hold the text; as long."""
    tiny = memory_tiny()
    # all of a chunk has to find its way into one position: what copies say of that is too faint (LOG.md)
    taught = {**_FADING, "reconstruction": _FADING["blank_copy"]}
    encoder = tiny.model.encoder.model_copy(update={"bottleneck": "last_token"})
    return tiny.model_copy(
        update={
            "recipe": "memory-last-token-tiny",
            "model": tiny.model.model_copy(update={"encoder": encoder}),
            "stages": (tiny.stages[0].model_copy(update={"objectives": taught}),),
        }
    )


def memory_pretrained_input() -> MemoryRunConfig:
    """A pretrained decoder (--decoder) learns to read a frozen encoder's memories (--encoder): 16 tokens a slot."""
    tiny, blank = memory_tiny(), OBJECTIVES["blank_copy"]
    # what is read is learnt first, a few places of a slot at a time (LOG.md); then both
    growing = Weight(start=2, end=16, steps=700)
    both: dict[ObjectiveName, float | Weight] = {"next_token": 1.0, "blank_copy": 1.0}
    return tiny.model_copy(
        update={
            "recipe": "memory-pretrained-input",
            "model": MemoryModelSettings(
                chunk_length=16,
                num_chunks=2,
                slots_per_chunk=1,
                layout="variable",
                decoder=DecoderSettings(adapter="lora", lora_rank=64, lora_alpha=64.0),
            ),
            "stages": (
                Stage(name="warm_up", objectives=blank, steps=20, train="readout", decay_share=0.0, max_targets=2),
                Stage(name="blank_copy", objectives=blank, steps=850, decay_share=0.2, max_targets=growing),
                Stage(name="mixture", objectives=both, steps=120, learning_rate=2e-3),
            ),
            "training": tiny.training.model_copy(
                update={
                    "batch_size": 64,
                    "evaluate_every": 100,
                    "evaluate_rows": 64,
                    "checkpoint_every": 100,
                    "optimizer": OptimizerConfig(learning_rate=5e-3, adamw_learning_rate=5e-3),
                }
            ),
        }
    )


def memory_next_tiny() -> MemoryRunConfig:
    """The tiny one on next tokens alone, as many steps of them: what retention costs is counted against this."""
    return _next_token_alone("memory-next-tiny")


def memory_none_tiny() -> MemoryRunConfig:
    """The tiny one with its memories hidden, next tokens alone: what memory has to beat."""
    return _next_token_alone("memory-none-tiny", use_memory=False)


def memory_full_context_tiny() -> MemoryRunConfig:
    """The tiny one's decoder over all 64 tokens, nothing to remember: what memory can hope for."""
    return _next_token_alone("memory-full-context-tiny", chunk_length=64, num_chunks=1)


def memory_recurrent_tiny() -> MemoryRunConfig:
    """The tiny one's decoder with recurrent memory: it hands itself 8 vectors from chunk to chunk (RMT)."""
    return _next_token_alone("memory-recurrent-tiny", memory="recurrent", learned_positions=False)


def memory_oracle_tiny() -> MemoryRunConfig:
    """Oracle memory: the tiny decoder reads 64 tokens behind a memory of 256 numbers of those very tokens."""
    encoder = EncoderSettings(bottleneck_size=256)
    changes = {"layout": "oracle", "chunk_length": 64, "num_chunks": 1, "slots_per_chunk": 16}
    return _next_token_alone("memory-oracle-tiny", **changes, encoder=encoder)


def _next_token_alone(name: str, **changes: Any) -> MemoryRunConfig:
    # without the head for blanks, which nothing would train: what it copies, it copies by the head that is trained
    tiny = memory_tiny()
    stage = Stage(name="next_token", objectives=OBJECTIVES["next_token"], steps=tiny.steps_of("next_token"))
    values: dict[str, Any] = {**tiny.model.model_dump(), "blank_head": False, **changes}
    model = MemoryModelSettings(**values)
    return tiny.model_copy(update={"recipe": name, "model": model, "stages": (stage,)})


def memory_paper_tiny() -> MemoryRunConfig:
    """The paper's design at the tiny one's width: last_token, one slot, fixed layout, ones, AdamW (paper 2.7)."""
    tiny = memory_tiny()
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, betas=(0.9, 0.999), warmup_steps=50)
    halves = Stage(name="mixture", objectives=OBJECTIVES["mixture"], steps=tiny.steps_of("next_token"))
    return tiny.model_copy(
        update={
            "recipe": "memory-paper-tiny",
            "stages": (halves,),
            "model": MemoryModelSettings(
                slots_per_chunk=1,
                readout="repeated",
                layout="fixed",
                filler="constant",
                encoder=EncoderSettings(num_heads=4, bottleneck="last_token", memory_activation="none"),
                decoder=DecoderSettings(num_heads=4),
            ),
            "training": tiny.training.model_copy(update={"optimizer": optimizer}),
        }
    )
