"""Any causal language model as a decoder: without memories it is what it was, whatever it learns behind memories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memlm.errors import ConfigError
from memlm.models import MemoryModelForCausalLM
from memlm.models.memory.adapter import base_weights_into, plain_decoder
from tests.models.test_memory import VOCAB, memory_model
from tests.variants import GPT2_DECODER, LLAMA_DECODER

_SIZES: dict[str, Any] = {**LLAMA_DECODER, "hidden_size": 16, "head_dim": 8, "tie_word_embeddings": True}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen2": {**_SIZES, "model_type": "qwen2"},
    "gemma": {**_SIZES, "model_type": "gemma"},
    "gemma2": {**_SIZES, "model_type": "gemma2", "sliding_window": 16},
    "gpt2": {**GPT2_DECODER, "n_embd": 16},
}
LORA: dict[str, Any] = {"rank": 2, "alpha": 4.0}
GATED: dict[str, Any] = {**LORA, "gated": True}


def plain(family: str) -> PreTrainedModel:
    torch.manual_seed(7)
    settings = dict(FAMILIES[family])
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    for parameter in model.parameters():  # biases and norms too
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def around(family: str, *, lora: dict[str, Any] | None = LORA) -> tuple[MemoryModelForCausalLM, PreTrainedModel]:
    """A memory model around a decoder, its adapters already moved."""
    original = plain(family)
    model = memory_model(decoder=FAMILIES[family], layout="variable", lora=lora, first_token_id=3)
    base_weights_into(model.decoder, original.state_dict())
    torch.manual_seed(8)
    for name, parameter in model.decoder.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    return model.eval(), original


def text(batch: int = 2, tokens: int = 4) -> torch.Tensor:
    return torch.randint(2, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [None, LORA, GATED])
def test_without_memories_it_is_the_original(family: str, lora: dict[str, Any] | None) -> None:
    model, original = around(family, lora=lora)
    ids = text()
    known = original(ids).logits
    # a document of one chunk, the first chunk of a longer one, a prompt without slots, memories hidden
    assert torch.equal(model(ids).logits, known)
    longer = torch.cat([ids, text(2, 8).flip(1)], dim=1)
    assert torch.equal(model(longer).logits[:, :4], known)
    assert torch.equal(model(longer, use_memory=False).logits[:, :4], known)
    prompt = model.prompt([row.tolist() for row in ids[:, None]])
    inputs = model.prepare_inputs_for_generation(**prompt, use_cache=False)
    assert torch.equal(model(**inputs).logits[:, -4:], known)
    greedy: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(
        model.generate(**prompt, **greedy)[:, -5:], original.generate(ids, suppress_tokens=[VOCAB], **greedy)[:, -5:]
    )


@pytest.mark.parametrize("lora", [LORA, GATED])
@pytest.mark.parametrize("family", FAMILIES)
def test_behind_memories_adapters_work_and_alone_are_trained(family: str, lora: dict[str, Any]) -> None:
    model, _ = around(family, lora=lora)
    without, _ = around(family, lora=None)
    ids = text(2, 16)
    known, found = without(ids).logits, model(ids).logits
    assert torch.equal(found[:, :4], known[:, :4])
    assert (found[:, 4:] - known[:, 4:]).abs().amax() > 1e-3
    before = {name: p.clone() for name, p in model.decoder.named_parameters()}
    model.train()(ids, labels=ids).loss.backward()
    moved = {name for name, p in model.decoder.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved
    assert all("lora_" in name for name in moved)
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.decoder.named_parameters())
    assert before.keys() == dict(model.decoder.named_parameters()).keys()


@pytest.mark.parametrize("lora", [LORA, GATED])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded_and_taken_out_again(family: str, lora: dict[str, Any], tmp_path: Path) -> None:
    model, original = around(family, lora=lora)
    model.save_pretrained(tmp_path)
    again = MemoryModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = text(2, 16)
    assert torch.equal(again(ids).logits, model(ids).logits)
    taken = plain_decoder(again.decoder)
    assert type(taken) is type(original)
    assert torch.equal(taken(ids).logits, original(ids).logits)
    behind = again.prompt_embeddings([[again.encode(ids[:1])[0, :2], [5, 6]]])
    with_adapters = again.decoder(**behind).logits
    merged = plain_decoder(again.decoder, merged=True)
    torch.testing.assert_close(merged(**behind).logits, with_adapters, rtol=1e-4, atol=1e-4)
    assert (taken(**behind).logits - with_adapters).abs().amax() > 1e-3
    prompt = again.prompt([[again.encode(ids[:1])[0, :2], [5, 6]], [[7, 8, 9]]])
    assert again.generate(**prompt, max_new_tokens=6, do_sample=False).shape[0] == 2


@pytest.mark.parametrize("lora", [LORA, GATED])
def test_an_adapter_begins_by_adding_nothing_and_may_learn(lora: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, plain = (memory_model(decoder=FAMILIES["llama"], layout="variable", lora=own) for own in (lora, None))
    base_weights_into(model.decoder, plain.decoder.state_dict())
    model.readout.load_state_dict(plain.readout.state_dict())
    model.encoder.load_state_dict(plain.encoder.state_dict())
    ids = text(2, 16)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    model.train()(ids, labels=ids).loss.backward()
    opened = [p.grad for name, p in model.decoder.named_parameters() if "gate" in name or "lora_B" in name]
    assert any(bool(grad.any()) for grad in opened if grad is not None)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0}, r"rank \(0\)"),
        ({"alpha": 0.0}, r"alpha \(0.0\)"),
        ({"ranks": 2}, "does not fit"),
        ({"targets": ["q_projection"]}, r"targets \(\['q_projection'\]\) are not in this decoder"),
    ],
)
def test_mistakes_are_one_line(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        around("llama", lora=lora)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="weights of another model"):
        base_weights_into(around("llama")[0].decoder, plain("gpt2").state_dict())
