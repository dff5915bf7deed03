"""The masked mixer against its slow twin, and what its mask promises."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from memlm.errors import ConfigError, UserError
from memlm.models import MixerConfig, MixerForCausalLM, MixerModel
from memlm.models.layers.mixer.modeling import TokenMixing
from tests.variants import MIXERS

VOCAB = 19


def config(**changes: object) -> MixerConfig:
    sizes = {"vocab_size": VOCAB, "hidden_size": 12, "num_hidden_layers": 2, "max_position_embeddings": 7}
    return MixerConfig(**{**sizes, **changes})


def mixing(causal: bool = True, **changes: object) -> TokenMixing:
    torch.manual_seed(0)
    module = TokenMixing(config(causal=causal, **changes))
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    return module


def language_model(**changes: object) -> MixerForCausalLM:
    torch.manual_seed(0)
    model = MixerForCausalLM(config(**changes)).eval()
    for layer in model.model.layers:  # the default start mixes little; these tests should see mixing
        torch.nn.init.normal_(layer.mixing.weight)
        torch.nn.init.normal_(layer.mixing.bias)
    return model


def naive_token_mixing(
    x: Float[Tensor, "batch heads tokens channels"],
    weight: Float[Tensor, "heads taps length length"],
    bias: Float[Tensor, "heads length"],
    *,
    causal: bool,
    readable: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads tokens channels"]:
    """Each output position sums what it may read, each tap shifted along the channels, zeros beyond the edge."""
    batch, heads, tokens, channels = x.shape
    taps = weight.shape[1]
    rows: list[Tensor] = []
    for i in range(tokens):
        row = bias[None, :, i, None].expand(batch, heads, channels)
        for j in range(i + 1 if causal else tokens):
            source = x[:, :, j]
            if readable is not None:
                source = torch.where(readable[:, j, None, None], source, torch.zeros_like(source))
            for tap in range(taps):
                row = row + weight[None, :, tap, i, j, None] * _shifted(source, tap - (taps - 1) // 2)
        rows.append(row)
    return torch.stack(rows, dim=2)


def _shifted(x: Tensor, offset: int) -> Tensor:
    """`out[c] = x[c + offset]`, zero where that lies outside."""
    out = torch.zeros_like(x)
    channels = x.shape[-1]
    for c in range(channels):
        if 0 <= c + offset < channels:
            out[..., c] = x[..., c + offset]
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=5, deadline=None)
@given(tokens=st.integers(1, 7), batch=st.integers(1, 3), masked=st.integers(0, 3))
def test_fast_equals_naive_in_outputs_and_gradients(
    name: str, causal: bool, tokens: int, batch: int, masked: int
) -> None:
    module = mixing(causal, **MIXERS[name])
    heads = module.weight.shape[0]
    x = torch.randn(batch, heads, tokens, 12 // heads, requires_grad=True)
    readable = torch.arange(tokens).expand(batch, -1) < max(1, tokens - masked)
    poisoned = torch.where(readable[:, None, :, None], x, torch.full_like(x, 1e4))

    fast = module(poisoned.masked_fill(~readable[:, None, :, None], 0.0))
    slow = naive_token_mixing(poisoned, module.weight, module.bias, causal=causal, readable=readable)
    by_position = module.at_positions(
        x, torch.arange(tokens).expand(batch, -1), torch.arange(tokens).expand(batch, -1), readable
    )

    weights = torch.randn_like(fast)
    gradients = [
        torch.autograd.grad((y * weights).sum(), [x, module.weight, module.bias], retain_graph=True)
        for y in (fast, slow, by_position)
    ]
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(by_position, slow, rtol=1e-5, atol=1e-5)
    for fast_gradient, slow_gradient, position_gradient in zip(*gradients, strict=True):
        torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(position_gradient, slow_gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_a_changed_token_changes_nothing_before_it(name: str) -> None:
    model = language_model(**MIXERS[name])
    ids = torch.randint(2, VOCAB, (2, 7))
    before = model(ids).logits
    for t in range(7):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % VOCAB
        after = model(changed).logits
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.equal(after[:, t:], before[:, t:])


@pytest.mark.parametrize("name", MIXERS)
def test_gradients_above_the_diagonal_are_exactly_zero(name: str) -> None:
    model = language_model(**MIXERS[name])
    model(torch.randint(2, VOCAB, (3, 7)), labels=torch.randint(2, VOCAB, (3, 7))).loss.backward()
    for layer in model.model.layers:
        gradient = layer.mixing.weight.grad
        assert torch.count_nonzero(gradient.triu(1)) == 0
        assert torch.count_nonzero(gradient.tril()) > 0


@pytest.mark.parametrize("name", MIXERS)
def test_two_sided_mixers_see_later_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = MixerModel(config(causal=False, **MIXERS[name])).eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.mixing.weight)
    ids = torch.randint(2, VOCAB, (1, 7))
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % VOCAB
    first = model(ids).last_hidden_state[:, 0], model(changed).last_hidden_state[:, 0]
    assert not torch.equal(*first)


def test_heads_are_distinct() -> None:
    module = mixing(num_heads=3)
    x = torch.randn(1, 1, 7, 4).expand(1, 3, 7, 4)
    first, second, third = module(x)[0]
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_checkpoints_are_strictly_lower_triangular_even_after_a_whole_matrix_update() -> None:
    model = language_model(num_heads=3)
    with torch.no_grad():
        model.model.layers[0].mixing.weight.add_(1.0)
    assert torch.count_nonzero(model.state_dict()["model.layers.0.mixing.weight"].triu(1)) == 0


@pytest.mark.parametrize("name", MIXERS)
def test_cached_steps_and_left_padding_equal_one_pass(name: str) -> None:
    model = language_model(**MIXERS[name])
    ids = torch.randint(2, VOCAB, (2, 6))
    whole = model(ids).logits
    padded = torch.cat([torch.zeros(2, 1, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 1, dtype=torch.long), torch.ones_like(ids)], dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 1:], whole)

    for inputs, attention in ((ids, torch.ones_like(ids)), (padded, mask)):
        prefill = inputs.shape[1] - 3
        out = model(inputs[:, :prefill], attention_mask=attention[:, :prefill], use_cache=True)
        logits = [out.logits]
        for t in range(prefill, inputs.shape[1]):
            out = model(inputs[:, t : t + 1], attention_mask=attention[:, : t + 1], past_key_values=out.past_key_values)
            logits.append(out.logits)
        torch.testing.assert_close(torch.cat(logits, 1)[:, -6:], whole)


@pytest.mark.parametrize("name", MIXERS)
def test_generate_with_cache_equals_without(name: str) -> None:
    model = language_model(**MIXERS[name])
    ids = torch.tensor([[0, 5, 3], [4, 2, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    arguments = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    cached = model.generate(ids, use_cache=True, **arguments)
    uncached = model.generate(ids, use_cache=False, **arguments)
    assert torch.equal(cached, uncached)
    alone = model.generate(ids[:1, 1:], **{**arguments, "attention_mask": mask[:1, 1:]})
    assert torch.equal(cached[0, 1:], alone[0])


@pytest.mark.parametrize("name", MIXERS)
def test_save_and_load_through_auto_classes_bit_for_bit(name: str, tmp_path) -> None:
    model = language_model(**MIXERS[name])
    model.save_pretrained(tmp_path)
    ids = torch.randint(2, VOCAB, (2, 5))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_errors_name_both_values() -> None:
    with pytest.raises(ConfigError, match=r"hidden_size \(12\) must be divisible by num_heads \(5\)"):
        config(num_heads=5)
    with pytest.raises(ConfigError, match=r"kernel_size \(7\) must not exceed the width of a head \(6\)"):
        config(num_heads=2, kernel_size=7)
    with pytest.raises(ConfigError, match="unknown setting 'num_head' for memlm_mixer. Did you mean 'num_heads'"):
        config(num_head=5)
    with pytest.raises(ConfigError, match=r"causal \(False\)"):
        MixerForCausalLM(config(causal=False))
    with pytest.raises(UserError, match="8 tokens do not fit this mixer's 7 positions"):
        MixerModel(config())(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(UserError, match="exactly one of"):
        MixerModel(config())()
