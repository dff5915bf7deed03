"""Text autoencoders as full configurations, each derived from another by what it changes.

`autoencoder-paper` has the sizes of the tables of arXiv 2602.13466, for GPUs. Give it --text.
"""

from __future__ import annotations

from typing import Any

from memlm.models import TextAutoencoderConfig
from memlm.training.config import OptimizerConfig, RunConfig, TrainingConfig, merge_run

PAPER_DATA: dict[str, Any] = {"vocab_size": 8000, "short_rows": 0.0}
"""Settings of the text with which the tables of arXiv 2602.13466 were made."""


def autoencoder_tiny() -> RunConfig:
    """64 tokens into one memory of 256 numbers; minutes on two cores."""
    return RunConfig(
        recipe="autoencoder-tiny",
        model=TextAutoencoderConfig(noise_bits=4, memory_activation="rms_norm"),
        training=TrainingConfig(
            steps=400,
            batch_size=64,
            evaluate_every=50,
            checkpoint_every=200,
            optimizer=OptimizerConfig(learning_rate=4e-3, adamw_learning_rate=4e-3),
        ),
    )


def autoencoder_quick() -> RunConfig:
    """The tiny one narrower and shorter, for a first look in seconds."""
    narrow = {"hidden_size": 96, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 8}
    changes = {"data": {"max_documents": 50}, "training": {"steps": 200, "batch_size": 32, "evaluate_every": 50}}
    return merge_run(autoencoder_tiny(), {"recipe": "autoencoder-quick", "model": narrow, **changes})


def autoencoder_small() -> RunConfig:
    """256 tokens into one memory of 512 numbers, two per token; within an hour on two cores."""
    model = {"chunk_length": 256, "bottleneck_size": 512, "noise_bits": None, "memory_activation": "none"}
    training = {"steps": 2400, "batch_size": 16, "evaluate_every": 100}
    return merge_run(autoencoder_tiny(), {"recipe": "autoencoder-small", "model": model, "training": training})


def autoencoder_dense() -> RunConfig:
    """64 tokens into one memory of 128 numbers, two per token; within half an hour on two cores."""
    model = {"bottleneck_size": 128, "noise_bits": None, "memory_activation": "none"}
    training = {"steps": 2400, "evaluate_every": 100}
    return merge_run(autoencoder_tiny(), {"recipe": "autoencoder-dense", "model": model, "training": training})


def autoencoder_pretrained() -> RunConfig:
    """16 tokens of a language model (--data.token_table) in one memory: for memory-pretrained-input; minutes."""
    # no layers: a memory is then linear in the tokens' own embeddings, which the language model reads soonest (LOG.md)
    model = {"chunk_length": 16, "bottleneck_size": 576, "num_encoder_layers": 0}
    training = {"batch_size": 128, "steps": 130, "evaluate_rows": 128}
    return merge_run(autoencoder_tiny(), {"recipe": "autoencoder-pretrained", "model": model, "training": training})


def autoencoder_chunk_tiny() -> RunConfig:
    """16 tokens into one memory of 128 numbers, width 128: the encoder of memory-curriculum-tiny; minutes."""
    model = {"chunk_length": 16, "hidden_size": 128, "bottleneck_size": 128}
    training = {"batch_size": 256, "steps": 300}
    return merge_run(autoencoder_tiny(), {"recipe": "autoencoder-chunk-tiny", "model": model, "training": training})


def autoencoder_chunk_small() -> RunConfig:
    """The same with eight encoder layers of width 512: memories worth caching; 7 minutes in bf16, 40 without."""
    # a larger one needs fewer steps, each of which costs more
    model = {"hidden_size": 512, "num_encoder_layers": 8}
    changes = {"recipe": "autoencoder-chunk-small", "model": model, "training": {"steps": 150}}
    return merge_run(autoencoder_chunk_tiny(), changes)


def autoencoder_chunk_deep() -> RunConfig:
    """The tiny one with 32 encoder layers of the same width: fewer, costlier steps; its memories are worth caching."""
    changes = {"recipe": "autoencoder-chunk-deep", "model": {"num_encoder_layers": 32}, "training": {"steps": 150}}
    return merge_run(autoencoder_chunk_tiny(), changes)


def autoencoder_paper_tiny() -> RunConfig:
    """The design of arXiv 2602.13466 at the tiny one's width and depth: 4 heads, last_token, windowed, AdamW."""
    # the paper's rate for mixers is 5e-4 at 200,000 steps; at this length 1e-3 is the better of both (LOG.md)
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, betas=(0.9, 0.999), warmup_steps=50)
    return RunConfig(
        recipe="autoencoder-paper-tiny",
        model=TextAutoencoderConfig(num_heads=4, bottleneck="last_token", readout="windowed"),
        training=autoencoder_tiny().training.model_copy(update={"optimizer": optimizer, "steps": 1200}),
    )


def autoencoder_paper() -> RunConfig:
    """The paper's mixer autoencoder: 512 tokens into 1,024 numbers, width 1,024, 8 + 8 layers, kernel 16; 218 M."""
    sizes = {"chunk_length": 512, "hidden_size": 1024, "bottleneck_size": 1024}
    layers = {"num_encoder_layers": 8, "num_decoder_layers": 8, "num_heads": 1, "kernel_size": 16}
    training = paper_training(learning_rate=5e-4, batch_size=128, steps=200_000)
    changes = {"recipe": "autoencoder-paper", "data": PAPER_DATA, "model": {**sizes, **layers}, "training": training}
    return merge_run(autoencoder_paper_tiny(), changes)


def paper_training(*, learning_rate: float, batch_size: int, steps: int) -> dict[str, Any]:
    """Return how the paper's recipes differ from their tiny versions in training."""
    optimizer = {"learning_rate": learning_rate, "warmup_steps": 500}
    every = dict.fromkeys(("evaluate_every", "checkpoint_every"), 1000)
    return {"batch_size": batch_size, "steps": steps, "evaluate_rows": 512, "optimizer": optimizer, **every}
