"""Text autoencoders as full configurations, each derived from another by what it changes."""

from __future__ import annotations

from memlm.training.config import DataConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig


def autoencoder_tiny() -> RunConfig:
    """64 tokens into one memory of 256 numbers; minutes on two cores."""
    return RunConfig(
        recipe="autoencoder-tiny",
        data=DataConfig(),
        model=ModelConfig(noise_bits=4, memory_activation="rms_norm"),
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
    tiny = autoencoder_tiny()
    return tiny.model_copy(
        update={
            "recipe": "autoencoder-quick",
            "data": tiny.data.model_copy(update={"max_documents": 50}),
            "model": tiny.model.model_copy(
                update={"hidden_size": 96, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 8}
            ),
            "training": tiny.training.model_copy(update={"steps": 200, "batch_size": 32, "evaluate_every": 50}),
        }
    )


def autoencoder_small() -> RunConfig:
    """256 tokens into one memory of 512 numbers, two per token; within an hour on two cores."""
    tiny = autoencoder_tiny()
    return tiny.model_copy(
        update={
            "recipe": "autoencoder-small",
            "model": tiny.model.model_copy(
                update={
                    "chunk_length": 256,
                    "bottleneck_size": 512,
                    "noise_bits": None,
                    "memory_activation": "none",
                }
            ),
            "training": tiny.training.model_copy(update={"steps": 2400, "batch_size": 16, "evaluate_every": 100}),
        }
    )


def autoencoder_dense() -> RunConfig:
    """64 tokens into one memory of 128 numbers, two per token; within half an hour on two cores."""
    tiny = autoencoder_tiny()
    return tiny.model_copy(
        update={
            "recipe": "autoencoder-dense",
            "model": tiny.model.model_copy(
                update={
                    "bottleneck_size": 128,
                    "noise_bits": None,
                    "memory_activation": "none",
                }
            ),
            "training": tiny.training.model_copy(update={"steps": 2400, "evaluate_every": 100}),
        }
    )


def autoencoder_pretrained() -> RunConfig:
    """16 tokens of a language model (--model.table) in one memory: the encoder of memory-pretrained-input; minutes."""
    tiny = autoencoder_tiny()
    return tiny.model_copy(
        update={
            "recipe": "autoencoder-pretrained",
            # no layers: a memory is then linear in the tokens as that model knows them, which it reads soonest (LOG.md)
            "model": tiny.model.model_copy(
                update={"chunk_length": 16, "bottleneck_size": 576, "num_encoder_layers": 0}
            ),
            "training": tiny.training.model_copy(update={"batch_size": 128, "steps": 130, "evaluate_rows": 128}),
        }
    )


def autoencoder_paper_tiny() -> RunConfig:
    """The paper's design at the tiny one's width and depth: 4 heads, last_token, windowed, AdamW (paper 1.0, 1.1)."""
    tiny = autoencoder_tiny()
    # the paper's rate for mixers is 5e-4 at 200,000 steps; at this length 1e-3 is the better of both (LOG.md)
    optimizer = OptimizerConfig(name="adamw", learning_rate=1e-3, betas=(0.9, 0.999), warmup_steps=50)
    return tiny.model_copy(
        update={
            "recipe": "autoencoder-paper-tiny",
            "model": ModelConfig(num_heads=4, bottleneck="last_token", readout="windowed"),
            "training": tiny.training.model_copy(update={"optimizer": optimizer, "steps": 1200}),
        }
    )
