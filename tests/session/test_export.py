"""What is exported reads the same without memlm: plain transformers writes what our `generate()` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from memlm.cli import main
from memlm.errors import UserError
from memlm.files import read_tensors
from memlm.models import MemoryModelForCausalLM
from memlm.session import MemorySession
from memlm.store import TextStore
from memlm.training import train_run
from memlm.training.config import RunConfig, merge_run
from tests.conftest import speech
from tests.models.test_memory import memory_model
from tests.variants import GPT2_DECODER, LLAMA_DECODER

READABLE: dict[str, dict[str, Any]] = {
    "llama, aligned": {"decoder": LLAMA_DECODER},
    "llama, variable": {"decoder": LLAMA_DECODER, "layout": "variable"},
    "gpt2, variable": {"decoder": GPT2_DECODER, "layout": "variable"},
}


@pytest.fixture(scope="module")
def llama_run(memory_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory model whose decoder is a Llama."""
    config = merge_run(
        memory_config,
        {"model": {"decoder": {"model_type": "llama", "num_attention_heads": 2, "intermediate_size": 64}}},
    )
    return train_run(config, tmp_path_factory.mktemp("llama") / "run", progress=False).path


@pytest.mark.parametrize("name", READABLE)
def test_the_decoder_by_itself_writes_the_same_tokens(name: str) -> None:
    model = memory_model(**READABLE[name])
    memories = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(3))
    rows = [[memories, [5, 6, 7]], [memories[:1], [4, 9, 8]]]
    greedy: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ours = model.generate(**model.prompt(rows), **greedy)[:, -6:]
    plain = model.decoder.generate(**model.prompt_embeddings(rows), suppress_tokens=[23], **greedy)[:, -6:]
    assert torch.equal(ours, plain)


def test_models_that_a_plain_decoder_would_read_otherwise_are_refused() -> None:
    for changes, why in (
        ({"decoder": LLAMA_DECODER, "learned_positions": True}, "learned_positions"),
        ({"decoder": GPT2_DECODER}, "absolute positions"),
        ({}, "absolute positions"),
    ):
        with pytest.raises(UserError, match=why):
            memory_model(**changes).prompt_embeddings([[[5, 6]]])


def test_from_a_store_to_plain_transformers(
    llama_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with TextStore.open(tmp_path / "s", llama_run, write=True) as store:
        list(store.add([("a", [speech(3)])]))
    flags = ["--store", str(tmp_path / "s"), "--read", "a", "--fidelity", "0"]
    out = tmp_path / "plain"
    assert main(["export", str(llama_run), str(out), "--prompt-embeds", "the people", *flags]) == 0
    assert "positions of a prompt" in capsys.readouterr().out
    plain = AutoModelForCausalLM.from_pretrained(out)
    assert type(plain) is LlamaForCausalLM
    embedded = read_tensors(out / "prompt_embeds.safetensors")["prompt_embeds"]
    session = MemorySession(llama_run, fidelity=0.0)
    with TextStore.open(tmp_path / "s", llama_run) as store:
        session.read_stored(store, "a")
    session.read("the people")
    assert session.stats().memories > 10
    never = [session.model.config.memory_token_id, 0]
    wrote = plain.generate(inputs_embeds=embedded[None], max_new_tokens=3, do_sample=False, suppress_tokens=never)
    assert AutoTokenizer.from_pretrained(out).decode(wrote[0]) == session.generate(max_new_tokens=3)


def test_the_decoder_reloads_with_equal_logits(
    llama_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(llama_run), str(tmp_path / "plain")]) == 0
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    model = MemoryModelForCausalLM.from_pretrained(llama_run).eval()
    ids = torch.randint(2, 200, (2, 9))
    assert torch.equal(plain(ids).logits, model.decoder(ids).logits)
    capsys.readouterr()
    assert main(["export", str(llama_run), str(tmp_path / "plain")]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", str(llama_run), str(tmp_path / "other"), "--store", "s"]) == 2
    assert "--prompt-embeds" in capsys.readouterr().err
    assert main(["export", str(tmp_path), str(tmp_path / "other")]) == 2
