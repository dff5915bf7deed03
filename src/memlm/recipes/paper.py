"""The sizes with which the tables of arXiv 2602.13466 were made, for GPUs. Give them --text.

Tests count their parameters without memory for the weights. The tiny versions (autoencoder-paper-tiny,
memory-paper-tiny) run on a laptop.
"""

from __future__ import annotations

from memlm.models import MemoryModelConfig, TextAutoencoderConfig
from memlm.recipes.memory import ENCODER, MIXTURES
from memlm.training.config import DataConfig, OptimizerConfig, RunConfig, Stage, TrainingConfig

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
        model=TextAutoencoderConfig(
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


def memory_paper() -> RunConfig:
    """The paper's memory transformer, 512/512, 16 layers, 4 chunks of 256, next tokens and copies; 146 M."""
    llama = {"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 4}
    return RunConfig(
        recipe="memory-paper",
        data=_DATA,
        model=MemoryModelConfig(
            chunk_length=256,
            num_chunks=4,
            slots_per_chunk=1,
            readout="repeated",
            layout="fixed",
            filler="constant",
            encoder={
                **ENCODER,
                "chunk_length": 256,
                "hidden_size": 512,
                "backbone": "llama",
                "num_encoder_layers": 16,
                "num_heads": 4,
                "bottleneck": "last_token",
                "bottleneck_size": 512,
                "memory_activation": "none",
            },
            decoder={**llama, "intermediate_size": 2048},
        ),
        # the weights that the paper's reference code applies
        stages=(Stage(name="mixture", objectives={"next_token": 1.0, "copy": 0.5}, steps=100_000),),
        training=_training(learning_rate=2e-4, batch_size=64, steps=100_000),
    )


def memory_curriculum_paper() -> RunConfig:
    """The same around a frozen encoder (--encoder): blank copy, copy, then both objectives, 100,000 steps each."""
    paper = memory_paper()
    stages = (
        Stage(name="blank_copy", objectives=MIXTURES["blank_copy"], steps=100_000),
        Stage(name="copy", objectives=MIXTURES["copy"], steps=100_000),
        *paper.stages,
    )
    return paper.model_copy(update={"recipe": "memory-curriculum-paper", "stages": stages})
