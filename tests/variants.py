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
    "several positionwise": {"memories_per_chunk": 2, "bottleneck": "positionwise", "readout": "positionwise"},
    "noise": {"noise_bits": 4, "memory_activation": "tanh", "bottleneck": "positionwise"},
    "noise, normalised": {"noise_bits": 4, "memory_activation": "rms_norm", "bottleneck": "mean"},
}

MIXERS: dict[str, dict[str, Any]] = {
    "flat": {"num_heads": 1},
    "heads": {"num_heads": 3},
    "kernel": {"num_heads": 1, "kernel_size": 3},
    "even kernel": {"num_heads": 2, "kernel_size": 4},
    "heads and kernel": {"num_heads": 2, "kernel_size": 2},
}

MEMORY_ENCODER: dict[str, Any] = {
    "vocab_size": 23,
    "chunk_length": 4,
    "hidden_size": 8,
    "num_heads": 2,
    "num_encoder_layers": 1,
    "bottleneck_size": 8,
}
MIXER_DECODER: dict[str, Any] = {
    "model_type": "memlm_mixer",
    "vocab_size": 24,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "max_position_embeddings": 16,
}
LLAMA_DECODER: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 24,
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
GPT2_DECODER: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 24,
    "n_embd": 12,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
BERT_BASE: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 23,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}

MEMORY_MODELS: dict[str, dict[str, Any]] = {
    "ours": {},
    "llama decoder": {"decoder": LLAMA_DECODER},
    "gpt2 decoder": {"decoder": GPT2_DECODER},
    "llama encoder": {"encoder": {"backbone": "llama", "learned_positions": True}},
    "bert encoder": {"encoder": {"base": BERT_BASE, "bottleneck": "mean"}, "readout": "positionwise"},
    "several memories": {"encoder": {"memories_per_chunk": 2, "bottleneck_size": 6}},
    "one slot": {"slots_per_chunk": 1, "readout": "repeated"},
    "paper": {
        "encoder": {"bottleneck": "last_token"},
        "slots_per_chunk": 1,
        "readout": "repeated",
        "layout": "fixed",
        "filler": "constant",
    },
    "paper, llama": {
        "encoder": {"bottleneck": "last_token"},
        "decoder": LLAMA_DECODER,
        "slots_per_chunk": 2,
        "readout": "repeated",
        "layout": "fixed",
        "filler": "learned",
    },
    "fixed and masked": {"layout": "fixed"},
    "variable": {"layout": "variable"},
    "variable, llama": {"layout": "variable", "decoder": LLAMA_DECODER},
    "behind a first token": {"layout": "variable", "first_token_id": 3},
    "behind a first token, llama": {"layout": "variable", "first_token_id": 3, "decoder": LLAMA_DECODER},
    "aligned with a learned filler": {"filler": "learned"},
    "no memory": {"use_memory": False},
    "a head for blanks": {"blank_head": True},
    "a head for blanks, llama": {"blank_head": True, "decoder": LLAMA_DECODER},
    "learned positions": {"learned_positions": True},
    "learned positions, llama": {"learned_positions": True, "decoder": LLAMA_DECODER},
    "oracle, hidden": {"layout": "oracle", "injection": "hidden"},
    "oracle, projection": {"layout": "oracle", "injection": "projection", "encoder": {"memories_per_chunk": 2}},
    "oracle": {"layout": "oracle", "decoder": {**MIXER_DECODER, "max_position_embeddings": 20}},
    "frozen": {"freeze_encoder": True},
    "reconstruction head": {"reconstruction_head": True},
}
