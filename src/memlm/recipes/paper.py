"""The paper's own sizes, for GPUs: what its tables were trained with (its notes, 1.0, 1.1, 2.7). Give them --text.

Parameters are counted in tests/recipes, without memory for the weights. The tiny twins (autoencoder-paper-tiny,
memory-paper-tiny) run on a laptop.
"""

from __future__ import annotations

from memlm.recipes.memory import OBJECTIVES
from memlm.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from memlm.training.memory.config import (
    DecoderSettings,
    EncoderSettings,
    MemoryModelSettings,
    MemoryRunConfig,
    Stage,
)

_DATA = DataConfig(vocab_size=8000, short_rows=0.0)


def _training(*, learning_rate: float, batch_size: int, steps: int) -> TrainingConfig:
    optimizer = OptimizerConfig(name="adamw", learning_rate=learning_rate, betas=(0.9, 0.999), warmup_steps=500)
    return TrainingConfig(
        batch_size=batch_size, steps=steps, evaluate_every=1000, checkpoint_every=1000, optimizer=optimizer
    )


def autoencoder_paper() -> RunConfig:
    """The paper's mixer autoencoder: 512 tokens into 1,024 numbers, width 1,024, 8 + 8 layers, kernel 16; 218 M."""
    return RunConfig(
        recipe="autoencoder-paper",
        data=_DATA,
        model=ModelConfig(
            chunk_length=512,
            hidden_size=1024,
            num_encoder_layers=8,
            num_decoder_layers=8,
            num_heads=1,
            kernel_size=16,
            bottleneck="last_token",
            bottleneck_size=1024,
            readout="windowed",
        ),
        training=_training(learning_rate=5e-4, batch_size=128, steps=200_000),
    )


def memory_paper() -> MemoryRunConfig:
    """The paper's memory transformer, 512/512, 16 layers, 4 chunks of 256, next tokens and copies; 146 M."""
    return MemoryRunConfig(
        recipe="memory-paper",
        data=_DATA,
        model=MemoryModelSettings(
            chunk_length=256,
            num_chunks=4,
            slots_per_chunk=1,
            readout="repeated",
            layout="fixed",
            filler="constant",
            encoder=EncoderSettings(
                hidden_size=512,
                backbone="llama",
                num_layers=16,
                num_heads=4,
                bottleneck="last_token",
                bottleneck_size=512,
                memory_activation="none",
            ),
            decoder=DecoderSettings(hidden_size=512, backbone="llama", num_layers=16, num_heads=4),
        ),
        # the realised weights of the reference code (its notes, 2.5)
        stages=(Stage(name="mixture", objectives={"next_token": 1.0, "copy": 0.5}, steps=100_000),),
        training=_training(learning_rate=2e-4, batch_size=64, steps=100_000),
    )


def memory_curriculum_paper() -> MemoryRunConfig:
    """The same around a frozen encoder (--encoder): blank copy, copy, then both objectives, 100,000 steps each."""
    paper = memory_paper()
    stages = (
        Stage(name="blank_copy", objectives=OBJECTIVES["blank_copy"], steps=100_000),
        Stage(name="copy", objectives=OBJECTIVES["copy"], steps=100_000),
        *paper.stages,
    )
    return paper.model_copy(update={"recipe": "memory-curriculum-paper", "stages": stages})
