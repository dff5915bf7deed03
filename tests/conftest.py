"""Small offline doubles, shared by all tests: a byte tokenizer, a little corpus, a trained run of seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.data import train_tokenizer
from memlm.training.config import RunConfig, make_run_config

WORDS = [
    "the",
    "people",
    "of",
    "this",
    "great",
    "nation",
    "have",
    "met",
    "in",
    "council",
    "to",
    "speak",
    "of",
    "peace",
    "war",
    "trade",
    "and",
    "harvest",
]


def speech(seed: int, words: int = 260) -> str:
    """Text with a vocabulary of a few words, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(WORDS), (words,), generator=generator).tolist()
    return " ".join(WORDS[i] for i in chosen) + ".\n"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["MEMLM_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges."""
    return train_tokenizer([speech(i) for i in range(3)], vocab_size=300)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten short speeches."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(10):
        (folder / f"speech-{i}.txt").write_text(speech(i), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_config(corpus: Path) -> RunConfig:
    """A run of two seconds."""
    return make_run_config(
        {
            "recipe": "test",
            "data": {"text": str(corpus), "held_out": 0.2, "vocab_size": 300},
            "model": {
                "chunk_length": 8,
                "hidden_size": 16,
                "num_heads": 2,
                "num_encoder_layers": 1,
                "num_decoder_layers": 1,
                "bottleneck_size": 16,
                "noise_bits": 8,
            },
            "training": {
                "steps": 12,
                "batch_size": 8,
                "precision": "fp32",
                "evaluate_every": 4,
                "evaluate_rows": 16,
                "checkpoint_every": 4,
                "log_every": 3,
            },
        }
    )


@pytest.fixture(scope="session")
def finished_run(tiny_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run; tests that change it take a copy."""
    from memlm.training import train_run

    return train_run(tiny_config, tmp_path_factory.mktemp("runs") / "finished", progress=False).path


@pytest.fixture(scope="session")
def memory_config(corpus: Path) -> RunConfig:
    """A memory model's run of two seconds with two stages."""
    return make_run_config(
        {
            "data": {"text": str(corpus), "held_out": 0.2, "vocab_size": 300, "short_rows": 0.0},
            "model": {
                "model_type": "memlm_memory",
                "chunk_length": 4,
                "num_chunks": 4,
                "slots_per_chunk": 2,
                "encoder": {
                    "hidden_size": 16,
                    "num_heads": 2,
                    "num_encoder_layers": 1,
                    "bottleneck_size": 8,
                    "noise_bits": 6,
                    "memory_activation": "rms_norm",
                },
                "decoder": {"hidden_size": 16, "num_heads": 2, "num_hidden_layers": 1},
            },
            "stages": [
                {"name": "first", "objectives": {"blank_copy": 1.0}, "steps": 6},
                {"name": "second", "objectives": {"next_token": 1.0, "blank_copy": 2.0}, "steps": 7},
            ],
            "training": {
                "batch_size": 4,
                "precision": "fp32",
                "evaluate_every": 4,
                "evaluate_rows": 8,
                "checkpoint_every": 4,
                "log_every": 3,
            },
        }
    )


@pytest.fixture(scope="session")
def memory_run(memory_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained memory model; tests that change it take a copy."""
    from memlm.training import train_run

    return train_run(memory_config, tmp_path_factory.mktemp("memory") / "run", progress=False).path


@pytest.fixture
def no_leftovers(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no half-written file may be left."""
    yield tmp_path
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".draft")]
