"""Memory models as full configurations, each derived from another by what it changes.

The two whose names end in `-paper` have the sizes of the tables of arXiv 2602.13466, for GPUs. Give them --text.
"""

from __future__ import annotations

from typing import Any

from memlm.models import MemoryModelConfig, SlotWriterConfig
from memlm.objectives import LinearSchedule, ObjectiveName
from memlm.recipes.autoencoder import PAPER_DATA, paper_training
from memlm.training.config import OptimizerConfig, PretrainedDecoder, RunConfig, Stage, TrainingConfig, merge_run

Weights = dict[ObjectiveName, float | LinearSchedule]
_ENCODER: dict[str, Any] = {"model_type": "memlm_chunk_encoder", "memory_activation": "rms_norm"}
_SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2}
_MIXER: dict[str, Any] = {"model_type": "memlm_mixer", **_SIZES, "num_heads": 16}
_LLAMA: dict[str, Any] = {"model_type": "llama", **_SIZES, "num_attention_heads": 4, "intermediate_size": 352}
"""Attention selects memories, which a mixer's fixed matrices cannot (LOG.md)."""

MIXTURES: dict[str, Weights] = {
    "next_token": {"next_token": 1.0},
    "copy": {"copy": 1.0},
    "blank_copy": {"blank_copy": 1.0},
    "token_dropout": {"token_dropout": 1.0},
    "reconstruction": {"next_token": 1.0, "reconstruction": 1.0},
    "mixture": {"next_token": 1.0, "blank_copy": 1.0},
}
"""Objectives of one stage, by the name that `memlm train --objective` takes."""
_FADING = LinearSchedule(start=1.0, end=0.1, steps=600)
"""Weight of copies: what has been learned needs less to be maintained, and copies take steps from prediction."""
_RANDOM = LinearSchedule(start=0.0, end=0.2, steps=400)
"""Share of random tokens: once text comes back, memories learn to keep facts that no text implies (LOG.md)."""


def memory_tiny() -> RunConfig:
    """4 chunks of 16 tokens, width 128, from scratch: next tokens and fading blank copies; within half an hour."""
    stage = Stage(
        name="mixture",
        objectives={"next_token": 1.0, "blank_copy": _FADING},
        steps=1200,
        distances="every",
        random_share=_RANDOM,
    )
    return RunConfig(
        recipe="memory-tiny",
        model=MemoryModelConfig(learned_positions=True, blank_head=True, encoder=_ENCODER, decoder=_LLAMA),
        stages=(stage,),
        training=TrainingConfig(
            batch_size=32,
            evaluate_every=100,
            evaluate_rows=256,
            checkpoint_every=250,
            # twice the rates of one objective: two of them share each step's length (LOG.md)
            optimizer=OptimizerConfig(learning_rate=8e-3, adamw_learning_rate=8e-3),
        ),
    )


def memory_curriculum_tiny() -> RunConfig:
    """The tiny one around a frozen encoder (--encoder): blank copy, then copy, then the mixture; half its time."""
    # no decay before the last stage; a lower rate, as weights that have grown learn to predict more slowly (LOG.md)
    first: dict[str, Any] = {"decay_share": 0.0, "learning_rate": 4e-3}
    fading = LinearSchedule(start=0.5, end=0.05, steps=200)
    # every fourth row maintains the copies that have been learned
    fewer = LinearSchedule(start=1.0, end=0.25, steps=200)
    stages = (
        Stage(name="blank_copy", objectives=MIXTURES["blank_copy"], steps=100, **first),
        # copies alone undo what blank copies taught (LOG.md)
        Stage(name="copy", objectives={"copy": 1.0, "blank_copy": 1.0}, steps=20, **first),
        Stage(
            name="mixture",
            objectives={"next_token": 1.0, "blank_copy": fading},
            steps=560,
            row_share={"blank_copy": fewer},
        ),
    )
    return memory_tiny().model_copy(update={"recipe": "memory-curriculum-tiny", "stages": stages})


def memory_last_token_tiny() -> RunConfig:
    """The tiny one with the last_token bottleneck, which a reconstruction head teaches to hold the text; as long."""
    tiny = memory_tiny()
    # copies say too little of how a whole chunk finds its way into one position (LOG.md)
    taught: Weights = {"next_token": 1.0, "blank_copy": _FADING, "reconstruction": _FADING}
    changes = {"recipe": "memory-last-token-tiny", "model": {"encoder": {"bottleneck": "last_token"}}}
    stages = (tiny.stages[0].model_copy(update={"objectives": taught}),)
    return merge_run(tiny, changes).model_copy(update={"stages": stages})


def memory_pretrained_input() -> RunConfig:
    """A pretrained decoder (--decoder) learns to read a frozen encoder's memories (--encoder): 16 tokens a slot."""
    blank = MIXTURES["blank_copy"]
    # reading is learned first, a few positions of a slot at a time (LOG.md); then both
    growing = LinearSchedule(start=2.0, end=16.0, steps=700)
    rates = OptimizerConfig(learning_rate=5e-3, adamw_learning_rate=5e-3)
    training = {"batch_size": 64, "evaluate_every": 100, "evaluate_rows": 64, "checkpoint_every": 100}
    return RunConfig(
        recipe="memory-pretrained-input",
        model=MemoryModelConfig(
            chunk_length=16,
            num_chunks=2,
            slots_per_chunk=1,
            layout="variable",
            lora={"rank": 64, "alpha": 64.0},
            encoder=_ENCODER,
            decoder=_MIXER,
        ),
        decoder=PretrainedDecoder(adapter="lora"),
        stages=(
            Stage(name="warm_up", objectives=blank, steps=20, train="readout", decay_share=0.0, max_targets=2),
            Stage(name="blank_copy", objectives=blank, steps=850, decay_share=0.2, max_targets=growing),
            Stage(name="mixture", objectives=MIXTURES["mixture"], steps=120, learning_rate=2e-3),
        ),
        training=memory_tiny().training.model_copy(update={**training, "optimizer": rates}),
    )


def memory_pretrained() -> RunConfig:
    """A pretrained decoder (--decoder) learns to write memories of text (--text) that it reads as a cache."""
    optimizer = OptimizerConfig(name="adamw", learning_rate=5e-4, betas=(0.9, 0.98), decay_share=0.5)
    return RunConfig(
        recipe="memory-pretrained",
        model=SlotWriterConfig(),
        decoder=PretrainedDecoder(adapter="lora"),
        stages=(Stage(name="distillation", objectives={"distillation": 1.0}),),
        training=TrainingConfig(
            steps=100,
            batch_size=2,
            precision="fp32",
            evaluate_every=50,
            evaluate_rows=16,
            checkpoint_every=20,
            log_every=5,
            optimizer=optimizer,
        ),
    )


def memory_next_tiny() -> RunConfig:
    """The tiny one on next tokens alone, as many steps of them: the baseline of what retention costs."""
    return _next_token_alone("memory-next-tiny", {})


def memory_none_tiny() -> RunConfig:
    """The tiny one with its memories hidden, next tokens alone: the baseline that memory has to beat."""
    return _next_token_alone("memory-none-tiny", {"use_memory": False})


def memory_full_context_tiny() -> RunConfig:
    """The tiny one's decoder over all 64 tokens without memories: the upper bound of what memory can reach."""
    return _next_token_alone("memory-full-context-tiny", {"chunk_length": 64, "num_chunks": 1})


def memory_recurrent_tiny() -> RunConfig:
    """The tiny one's decoder with recurrent memory: it passes 8 vectors from chunk to chunk (RMT)."""
    return _next_token_alone("memory-recurrent-tiny", {"model_type": "memlm_recurrent_memory"})


def memory_oracle_tiny() -> RunConfig:
    """Oracle memory: the tiny decoder reads 64 tokens behind a memory of 256 numbers of those very tokens."""
    sizes = {"layout": "oracle", "chunk_length": 64, "num_chunks": 1, "slots_per_chunk": 16}
    return _next_token_alone("memory-oracle-tiny", {**sizes, "encoder": {"bottleneck_size": 256}})


def _next_token_alone(name: str, model: dict[str, Any]) -> RunConfig:
    tiny = memory_tiny()
    stage = Stage(name="next_token", objectives=MIXTURES["next_token"], steps=tiny.steps_of("next_token"))
    # without the head for blanks, which nothing would train; copies then come from the head that is trained
    plain = merge_run(tiny.model_copy(update={"stages": (stage,)}), {"recipe": name, "model": {"blank_head": False}})
    return merge_run(plain, {"model": model})


def memory_paper_tiny() -> RunConfig:
    """The design of arXiv 2602.13466 at the tiny one's width: last_token, one slot, fixed layout, ones, AdamW."""
    tiny = memory_tiny()
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, betas=(0.9, 0.999), warmup_steps=50)
    encoder = {**_ENCODER, "num_heads": 4, "bottleneck": "last_token", "memory_activation": "none"}
    return RunConfig(
        recipe="memory-paper-tiny",
        model=MemoryModelConfig(
            slots_per_chunk=1,
            readout="repeated",
            layout="fixed",
            filler="constant",
            encoder=encoder,
            decoder={**_MIXER, "num_heads": 4},
        ),
        stages=(Stage(name="mixture", objectives=MIXTURES["mixture"], steps=tiny.steps_of("next_token")),),
        training=tiny.training.model_copy(update={"optimizer": optimizer}),
    )


def memory_paper() -> RunConfig:
    """The paper's memory transformer, 512/512, 16 layers, 4 chunks of 256, next tokens and copies; 146 M."""
    encoder = {"hidden_size": 512, "backbone": "llama", "num_encoder_layers": 16, "bottleneck_size": 512}
    decoder = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 16, "intermediate_size": 2048}
    changes: dict[str, Any] = {
        "recipe": "memory-paper",
        "data": PAPER_DATA,
        "model": {"chunk_length": 256, "encoder": encoder, "decoder": {**decoder, "num_attention_heads": 4}},
        # the weights that the paper's reference code applies
        "stages": [{"name": "mixture", "objectives": {"next_token": 1.0, "copy": 0.5}, "steps": 100_000}],
        "training": paper_training(learning_rate=2e-4, batch_size=64, steps=100_000),
    }
    return merge_run(memory_paper_tiny(), changes)


def memory_curriculum_paper() -> RunConfig:
    """The same around a frozen encoder (--encoder): blank copy, copy, then both objectives, 100,000 steps each."""
    paper = memory_paper()
    copies = (Stage(name=name, objectives={name: 1.0}, steps=100_000) for name in ("blank_copy", "copy"))
    return paper.model_copy(update={"recipe": "memory-curriculum-paper", "stages": (*copies, *paper.stages)})
