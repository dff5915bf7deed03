"""Memories of pretrained decoders: every family reads them, and without them computes what it computed before."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from memlm.errors import CheckpointError, ConfigError, UserError
from memlm.models.base import CACHE_NAME
from memlm.models.slots import EncodingSettings, MemoryDecoder, SlotMemories, states
from memlm.models.slots.fit import FitSettings, fit_slots
from memlm.models.slots.naive import fit_head
from memlm.models.slots.states import reader_distances

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _SIZES,
    "qwen2": _SIZES,
    "qwen3": _SIZES,
    "gemma": _SIZES,
    "gemma2": {**_SIZES, "sliding_window": 16},
    "gemma3_text": {**_SIZES, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {**_SIZES, "sliding_window": 16},
    "phi": {**_SIZES, "num_key_value_heads": 4, "head_dim": None},
    "phi3": {**_SIZES, "head_dim": None, "pad_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256},
}
TEXT = 24
PROMPT = 5


def decoder_of(family: str, **more: Any) -> PreTrainedModel:
    torch.manual_seed(7)
    settings = {k: v for k, v in FAMILIES[family].items() if v is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings, vocab_size=300, **more))
    for parameter in model.parameters():  # sharp attention, and biases too
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return MemoryDecoder(
        decoder_of(request.param), tokenizer, EncodingSettings(chunk_length=8, block_length=16, query_distance=4)
    )


def ids(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def logits(model: MemoryDecoder, prompts: list[list[int]], memories: SlotMemories | None = None) -> Tensor:
    return model.decoder(**model.inputs(prompts, memories)).logits


@torch.no_grad()
def full_context(model: MemoryDecoder, text: list[int], prompt: list[int]) -> Tensor:
    """Logits of a prompt behind all tokens."""
    return model.decoder(torch.tensor([[model.reader.first_token_id, *text, *prompt]])).logits[:, -len(prompt) :]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_memories_logits_are_the_plain_decoders_bit_for_bit(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    plain = decoder_of(family)
    model = MemoryDecoder(copy.deepcopy(plain), tokenizer)
    rows = torch.tensor(ids(TEXT, TEXT))
    for mask in (None, torch.ones_like(rows), torch.ones_like(rows).index_fill(1, torch.arange(3), 0)):
        with torch.no_grad():
            assert torch.equal(model.decoder(rows, attention_mask=mask).logits, plain(rows, attention_mask=mask).logits)
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.decoder.generate(rows, **options), plain.generate(rows, **options))


def test_one_slot_per_token_is_the_full_context(model: MemoryDecoder) -> None:
    [text], [prompt] = ids(TEXT), ids(PROMPT, seed=2)
    memories = model.encode([text]).at(tokens_per_memory=1)
    assert memories.num_slots == TEXT + 1
    torch.testing.assert_close(
        logits(model, [prompt], memories), full_context(model, text, prompt), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("mode", ["joint", "chunks"])
def test_texts_in_a_batch_have_the_memories_that_they_have_alone(model: MemoryDecoder, mode: str) -> None:
    texts, prompts = ids(TEXT, 7, 13), ids(PROMPT, 3, 4, seed=2)
    together = logits(model, prompts, model.encode(texts, mode=mode).at(tokens_per_memory=2))
    for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        alone = logits(model, [prompt], model.encode([text], mode=mode).at(tokens_per_memory=2))
        torch.testing.assert_close(together[i, -len(prompt) :], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["joint", "chunks"])
def test_texts_as_long_as_the_positions_are_read(mode: str, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = EncodingSettings(chunk_length=100, block_length=200, query_distance=4)
    model = MemoryDecoder(decoder_of("gpt2"), tokenizer, settings)
    [text] = ids(254)
    assert model.memories([text], tokens_per_memory=10, mode=mode).counts.tolist() == [1 + 20 + 6]


def test_chunks_in_parallel_are_chunks_one_by_one(model: MemoryDecoder) -> None:
    [text] = ids(TEXT)
    parallel = model.encode([text], mode="chunks")
    for i in range(0, TEXT, 8):
        cache = DynamicCache()
        positions = torch.tensor([[0, *range(1 + i, 9 + i)]])
        chunk = torch.tensor([[model.reader.first_token_id, *text[i : i + 8]]])
        model.decoder(chunk, position_ids=positions, **{CACHE_NAME: cache})
        for parts, layer in zip(parallel.layers, cache.layers, strict=True):
            for found, known in ((parts.keys, layer.keys), (parts.values, layer.values)):
                found = found.transpose(1, 2).flatten(2, 3)[:, :, i : i + 8]
                torch.testing.assert_close(found, known[:, :, 1:], rtol=1e-4, atol=1e-4)


def test_generate_goes_on_as_scoring_does(model: MemoryDecoder) -> None:
    texts, prompts = ids(TEXT, 9), ids(PROMPT, 2, seed=2)
    memories = model.encode(texts).at(tokens_per_memory=3)
    found = model.decoder.generate(
        **model.inputs(prompts, memories),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new = found.sequences[:, -4:].tolist()
    scored = logits(model, [[*prompt, *row] for prompt, row in zip(prompts, new, strict=True)], memories)
    torch.testing.assert_close(torch.stack(found.logits, dim=1), scored[:, -5:-1], rtol=1e-4, atol=1e-4)


def test_beams_and_samples_take_their_memories_along(model: MemoryDecoder) -> None:
    texts, prompts = ids(TEXT, 9), ids(PROMPT, 5, seed=2)
    memories = model.encode(texts).at(tokens_per_memory=3)
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "num_beams": 3}
    together = model.generate(prompts, memories, **options)
    alone = [
        model.generate([prompt], memories.rows(torch.tensor([i])), **options)[0] for i, prompt in enumerate(prompts)
    ]
    assert together == alone


def test_a_fit_is_nearer_to_the_full_context_than_the_same_keys_unfitted(model: MemoryDecoder) -> None:
    texts, prompts = ids(*[TEXT] * 8), ids(*[PROMPT] * 8, seed=2)
    encoded = model.encode(texts)
    memories = encoded.at(tokens_per_memory=3)
    kept = encoded.keep([layer.positions[:, :, 1:] - 1 for layer in memories.layers])
    known = torch.cat([full_context(model, *row) for row in zip(texts, prompts, strict=True)])
    fitted, unfitted = ((logits(model, prompts, m) - known).norm() for m in (memories, kept))
    # slots leave a window one by one, as tokens do, which a fit for many positions at once cannot foresee
    windowed = getattr(model.decoder.config, "sliding_window", None) is not None
    assert fitted < (1.0 if windowed else 0.9) * unfitted


@pytest.mark.parametrize("budget", [{"tokens_per_memory": 4}, {"slots": 6}])
def test_budgets_are_kept(budget: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    model = MemoryDecoder(decoder_of("llama"), tokenizer, EncodingSettings(block_length=10))
    memories = model.encode(ids(TEXT, 3)).at(**budget)
    assert memories.num_slots == memories.layers[0].keys.shape[2]
    assert memories.lengths.tolist() == [TEXT + 1, 4]
    # blocks of 10, 10 and 4 tokens round up on their own; a budget of slots is kept exactly, and never exceeds a text
    assert memories.counts.tolist() == ([1 + 3 + 3 + 1, 2] if "tokens_per_memory" in budget else [1 + 6, 1 + 3])
    for layer in memories.layers:
        assert torch.equal((~layer.bias.isinf()).sum(-1).amax(1), memories.counts)


@pytest.mark.parametrize("slots", [1, 5])
def test_fit_equals_its_slow_version(slots: int) -> None:
    torch.manual_seed(3)
    queries, keys, values = (torch.randn(3, n, 6, dtype=torch.double) for n in (40, 20, 20))
    found = fit_slots(0.7 * queries @ keys.mT, values, slots, FitSettings(ridge=1e-12))
    for i in range(3):
        kept, bias, fitted = fit_head(
            queries[i], keys[i], values[i], slots=slots, scaling=0.7, bias_limit=3.0, refinements=2
        )
        assert torch.equal(found.indices[i], kept)
        torch.testing.assert_close(found.bias[i], bias, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.values[i], fitted, rtol=1e-6, atol=1e-6)


def test_queries_that_see_no_key_count_for_nothing() -> None:
    torch.manual_seed(3)
    score, values = torch.randn(2, 40, 20, dtype=torch.double), torch.randn(2, 20, 6, dtype=torch.double)
    visible = torch.ones_like(score, dtype=torch.bool)
    visible[:, 30:] = False
    for one, other in zip(
        fit_slots(score, values, 5, FitSettings(), visible=visible),
        fit_slots(score[:, :30], values, 5, FitSettings()),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_heads_that_are_fitted_one_by_one_have_the_same_slots(
    model: MemoryDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ids(TEXT, 11)
    together = model.memories(texts, slots=4)
    monkeypatch.setattr(states, "_scores_at_once", lambda _: 1)
    for one, other in zip(together.layers, model.memories(texts, slots=4).layers, strict=True):
        for name in ("keys", "values", "bias", "positions"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e3])
def test_fit_of_keys_that_are_alike_or_far_apart_is_finite(spread: float) -> None:
    torch.manual_seed(3)
    score, values = spread * torch.randn(2, 400, 60), torch.randn(2, 60, 6)
    found = fit_slots(score, values, 30, FitSettings())
    assert bool(found.values.isfinite().all())
    assert bool((found.bias.abs() <= 3.0001).all())
    exact = torch.softmax(score, -1) @ values
    slots = (score.gather(2, found.indices[:, None].expand(-1, 400, -1)) + found.bias[:, None]).softmax(-1)
    unfitted = slots @ values.gather(1, found.indices[..., None].expand(-1, -1, 6))
    assert (slots @ found.values - exact).norm() <= (unfitted - exact).norm() + 1e-3


@pytest.mark.parametrize("mode", ["joint", "chunks"])
def test_memories_made_layer_by_layer_are_the_same(model: MemoryDecoder, mode: str) -> None:
    texts = ids(TEXT, 11)
    at_once = model.memories(texts, slots=4, mode=mode)
    for one, other in zip(at_once.layers, model.encode(texts, mode=mode).at(slots=4).layers, strict=True):
        for name in ("keys", "values", "bias", "positions"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("budget", [{}, {"tokens_per_memory": 0.5}, {"slots": 0}, {"slots": 4, "tokens_per_memory": 2}])
def test_bad_budgets(budget: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    encoded = MemoryDecoder(decoder_of("llama"), tokenizer).encode(ids(TEXT))
    with pytest.raises(UserError, match="must be a (whole )?number from 1 to|give either"):
        encoded.at(**budget)


@pytest.mark.parametrize("family", ["cohere", "bloom", "mamba"])
def test_other_families_are_refused_by_name(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Cohere rotates pairs of neighbours; Bloom has an attention of its own; Mamba has none."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model(family, vocab_size=300, pad_token_id=0, **sizes)
    with pytest.raises(ConfigError, match=f"decoders of kind '{family}'.*Llama"):
        MemoryDecoder(AutoModelForCausalLM.from_config(config), tokenizer)


@pytest.mark.parametrize(
    ("texts", "settings", "words"),
    [
        ([], {}, "there is no text"),
        (["", "a"], {}, "one of the texts is empty"),
        ([[]], {}, "one of the texts is empty"),
        ("a" * 300, {}, "300 tokens is longer than this decoder can read .256 positions."),
        ("a", {"mode": "both"}, "mode .'both'. must be 'joint' or 'chunks'"),
        ("a", {"mode": "chunks", "chunk_length": 100}, "block_length .512. must be a multiple of chunk_length .100."),
        ("a", {"query_distance": 0}, "query_distance .0. must be a whole number from 1 to"),
        ("a", {"chunk_size": 3}, "unknown setting .* choose from: mode, chunk_length"),
    ],
)
def test_bad_texts_and_settings(
    texts: Any, settings: dict[str, Any], words: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = MemoryDecoder(decoder_of("llama"), tokenizer)
    with pytest.raises(UserError, match=words):
        model.memories(texts, slots=4, **settings)


def test_prompts_must_be_as_many_as_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    model = MemoryDecoder(decoder_of("llama"), tokenizer)
    with pytest.raises(UserError, match="1 prompts do not fit memories of 2 texts"):
        model.inputs("a", model.memories(["a", "b"], slots=1))


def test_reference_queries_stand_near_as_often_as_far() -> None:
    settings = EncodingSettings(query_distance=1024, near_distance=16, block_length=4096)
    distances = reader_distances(0, settings).double()
    assert distances.min() >= 0
    assert distances.max() < 1024
    # half of them lie below the geometric mean of 16 and 1040, less 16
    assert abs((distances < (16 * 1040) ** 0.5 - 16).double().mean() - 0.5) < 0.03
    assert reader_distances(3, replace(settings, query_distance=1)).tolist() == [0] * 4096


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_a_decoder_that_cannot_be_loaded(path: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="cannot load a decoder from"):
        MemoryDecoder.from_pretrained(str(tmp_path / path))


@pytest.mark.parametrize("mode", ["joint", "chunks"])
def test_fewer_slots_act_as_those_they_are_made_of(model: MemoryDecoder, mode: str) -> None:
    texts = ids(TEXT, 11, 17)
    given = model.memories(texts, tokens_per_memory=1, mode=mode)
    found = model.fewer(given, tokens_per_memory=4)
    assert found.counts.tolist() == [1 + 6, 1 + 3, 1 + 5]
    assert torch.equal(found.lengths, given.lengths)
    for row, text in enumerate(texts):
        alone = model.fewer(model.memories([text], tokens_per_memory=1, mode=mode), tokens_per_memory=4)
        one, other = (logits(model, [ids(PROMPT)[0]], x) for x in (alone, found.rows(torch.tensor([row]))))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    known, near = (logits(model, ids(PROMPT, PROMPT, PROMPT), x).log_softmax(-1) for x in (given, found))
    dropped = [replace(layer, values=torch.zeros_like(layer.values)) for layer in found.layers]
    worse = logits(model, ids(PROMPT, PROMPT, PROMPT), replace(found, layers=dropped)).log_softmax(-1)
    assert (near - known).abs().mean() < (worse - known).abs().mean()
    same = model.fewer(given, tokens_per_memory=1)
    torch.testing.assert_close(logits(model, ids(5, 5, 5), same), logits(model, ids(5, 5, 5), given))


def test_fewer_slots_are_the_fit_of_their_slow_version(tokenizer: PreTrainedTokenizerFast) -> None:
    model = MemoryDecoder(decoder_of("llama").double(), tokenizer)
    given = model.memories(ids(TEXT), tokens_per_memory=1)
    found = model.fewer(given, slots=5)
    bank = model._bank()
    for number, (layer, few) in enumerate(zip(given.layers, found.layers, strict=True)):
        places = 1 + TEXT + states.reader_distances(number, bank.settings)
        for head in range(2):
            queries = bank.queries[number][head]
            own = torch.arange(1, queries.shape[1] + 1)
            moved = model.reader.rotary.move(queries[None], (places - own)[None, None], layer=number)[0]
            kept, bias, values = fit_head(
                moved.flatten(0, 1),
                layer.keys[0, head, 1:],
                layer.values[0, head, 1:],
                slots=5,
                scaling=bank.rules[number].scaling,
                bias_limit=3.0,
                refinements=2,
            )
            assert torch.equal(few.positions[0, head, 1:], 1 + kept)
            torch.testing.assert_close(few.bias[0, head, 1:].double(), bias, rtol=1e-2, atol=1e-2)
            torch.testing.assert_close(few.values[0, head, 1:].double(), values, rtol=1e-2, atol=1e-2)
