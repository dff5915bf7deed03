"""The matrix: every variant here joins every generic test of its kind. A new variant is one new row."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "vocab_size": 23,
    "chunk_length": 6,
    "hidden_size": 12,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "bottleneck_size": 10,
    "bottleneck_rank": 3,
    "readout_rank": 3,
}

AUTOENCODERS: dict[str, dict[str, Any]] = {
    "ours": {},
    "slices of pairs": {"bottleneck_size": 9},
    "several slices": {"memories_per_chunk": 2, "bottleneck_size": 9},
    "positionwise": {"bottleneck": "positionwise", "readout": "positionwise"},
    "paper": {"bottleneck": "last_token", "readout": "windowed", "bottleneck_size": 12},
    "paper narrower": {"bottleneck": "last_token", "readout": "windowed"},
    "llama": {"backbone": "llama"},
    "llama learned positions": {"backbone": "llama", "learned_positions": True},
    "llama two-sided": {"backbone": "llama", "causal": False},
    "two-sided": {"causal": False},
    "flat": {"num_heads": 1},
    "kernel": {"kernel_size": 3},
    "penultimate repeated": {"bottleneck": "penultimate", "readout": "repeated"},
    "mean prefix": {"bottleneck": "mean", "readout": "prefix"},
    "learned slots": {"bottleneck": "learned_slots", "readout": "prefix", "memories_per_chunk": 2},
    "several last tokens": {"bottleneck": "last_token", "readout": "windowed", "memories_per_chunk": 3},
    "several means": {"bottleneck": "mean", "readout": "repeated", "memories_per_chunk": 2},
    "several positionwise": {
        "memories_per_chunk": 2,
        "bottleneck": "positionwise",
        "readout": "positionwise",
    },
    "noise": {"noise_bits": 4, "memory_activation": "tanh", "bottleneck": "positionwise"},
    "noise residual": {
        "noise_bits": 4,
        "noise_residual": True,
        "memory_activation": "rms_norm",
        "bottleneck": "mean",
    },
}

MIXERS: dict[str, dict[str, Any]] = {
    "flat": {"num_heads": 1},
    "heads": {"num_heads": 3},
    "kernel": {"num_heads": 1, "kernel_size": 3},
    "even kernel": {"num_heads": 2, "kernel_size": 4},
    "heads and kernel": {"num_heads": 2, "kernel_size": 2},
}
