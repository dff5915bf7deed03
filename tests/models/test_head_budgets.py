"""Slots go to the heads that need them: budgets, what is read, and how heads are measured."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.errors import UserError
from memlm.models.slots import EncodingSettings, MemoryDecoder, SlotMemories
from memlm.models.slots.attention import HeadSlots
from memlm.models.slots.head_budgets import RATIOS, HeadErrors
from memlm.models.slots.head_errors import measured_heads
from memlm.models.slots.memories import FlatSlots, LayerSlots, joined
from memlm.models.slots.slot_cache import SlotCache
from tests.models.test_slots import FAMILIES, decoder_of, ids, logits

SETTINGS = EncodingSettings(chunk_length=8, block_length=16, query_distance=4)


def errors_of(layers: int, heads: int, seed: int = 0) -> HeadErrors:
    """Random errors, which rise with the tokens for each slot; each head by another size."""
    draw = torch.Generator().manual_seed(seed)
    size = 10 ** (3 * torch.rand(layers, heads, 1, generator=draw))
    rising = torch.rand(layers, heads, len(RATIOS) - 1, generator=draw).cumsum(-1) * size
    return HeadErrors.of({"table": torch.cat([torch.zeros(layers, heads, 1), rising], -1).tolist()})


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> MemoryDecoder:
    return with_heads(MemoryDecoder(decoder_of(request.param), tokenizer, SETTINGS))


def with_heads(model: MemoryDecoder) -> MemoryDecoder:
    model.settings = replace(model.settings, heads=errors_of(*model.slot_sizes[:2]))
    return model


def total(errors: HeadErrors, counts: Tensor, tokens: int) -> float:
    """The sum of errors, where a number of slots is worth the least error that it allows."""
    rows = [row for layer in errors.table for row in layer]
    sizes = [math.ceil(tokens / ratio) for ratio in RATIOS]
    each = zip(rows, counts.flatten().tolist(), strict=True)
    return sum(min(error for error, size in zip(row, sizes, strict=True) if size <= count) for row, count in each)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 5))
def test_budgets_are_kept_and_never_worse_than_equal_ones(tokens: int, mean: int, seed: int) -> None:
    errors = errors_of(3, 2, seed)
    found = errors.slots(tokens, mean)
    assert found.shape == (3, 2)
    assert int(found.sum()) <= mean * 6
    assert int(found.min()) >= 1
    if math.ceil(tokens / RATIOS[-1]) <= mean < tokens:
        even = next(math.ceil(tokens / ratio) for ratio in RATIOS if math.ceil(tokens / ratio) <= mean)
        assert total(errors, found, tokens) <= total(errors, torch.full((3, 2), even), tokens) + 1e-6
    else:
        assert found.tolist() == [[mean, mean]] * 3


def test_budgets_are_nearly_the_best_ones() -> None:
    tokens, mean = 64, 8
    sizes = sorted({math.ceil(tokens / ratio) for ratio in RATIOS})
    for seed in range(5):
        errors = errors_of(2, 2, seed)
        every = (torch.tensor(x) for x in itertools.product(sizes, repeat=4) if sum(x) <= 4 * mean)
        best = min(total(errors, counts, tokens) for counts in every)
        # one step that does not fit may be left out
        found = total(errors, errors.slots(tokens, mean), tokens)
        assert best - 1e-9 <= found <= total(errors, errors.slots(tokens, mean // 2), tokens)
        assert found <= 1.5 * best + 1e-9


@pytest.mark.parametrize("mode", ["joint", "chunks"])
def test_heads_hold_their_budgets(model: MemoryDecoder, mode: str) -> None:
    memories = model.memories(ids(24, 11), tokens_per_memory=4, mode=mode)
    heads = model.settings.heads
    assert memories.counts.tolist() == [1 + 4 + 2, 1 + 3]
    # blocks of 16 and of 8 tokens
    assert torch.equal(memories.held[0], 1 + heads.slots(16, 4) + heads.slots(8, 2))
    assert torch.equal(memories.held[1], 1 + heads.slots(11, 3))
    cache = SlotCache(memories.rows(torch.tensor([0])))
    numbers = 2 * model.slot_sizes[2] + 1
    assert cache.slot_bytes == 4 * numbers * int(memories.held[0].sum())


def test_heads_of_unequal_budgets_read_as_if_all_were_padded(
    model: MemoryDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ids(5, 3, seed=2)
    memories = model.memories(ids(24, 11), tokens_per_memory=4, mode="chunks")
    found = logits(model, prompts, memories)
    monkeypatch.setattr(
        "memlm.models.slots.slot_cache._by_heads", lambda slots: [HeadSlots(slice(None), *vars(slots).values())]
    )
    torch.testing.assert_close(found, logits(model, prompts, memories), rtol=1e-4, atol=1e-4)


def test_batched_is_single_and_cached_is_uncached(model: MemoryDecoder) -> None:
    texts, prompts = ids(24, 11), ids(5, 5, seed=2)
    memories = model.memories(texts, tokens_per_memory=4, mode="chunks")
    together = logits(model, prompts, memories)
    for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        alone = logits(model, [prompt], model.memories([text], tokens_per_memory=4, mode="chunks"))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-3, atol=1e-3)
    inputs = model.inputs([prompts[0]], memories.rows(torch.tensor([0])))
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    new = model.decoder.generate(**inputs, **options)[0, 5:].tolist()  # pyright: ignore
    every = logits(model, [[*prompts[0], *new[:-1]]], memories.rows(torch.tensor([0])))
    assert every[0, 4:].argmax(-1).tolist() == new
    beams = model.generate([prompts[0]], memories.rows(torch.tensor([0])), max_new_tokens=3, num_beams=2)
    assert len(beams) == 1


def test_flat_slots_and_joined_parts_are_the_same(model: MemoryDecoder) -> None:
    [text], [prompt] = ids(24), ids(5, seed=2)
    memories = model.memories([text], tokens_per_memory=4)
    again = SlotMemories(FlatSlots.of(memories).layers(), memories.lengths, memories.counts)
    assert torch.equal(logits(model, [prompt], memories), logits(model, [prompt], again))
    if not model.reader.rotary.moves:
        return
    parts = [model.memories([text[i : i + 8]], tokens_per_memory=2, mode="chunks") for i in (0, 8, 16)]
    found = joined(parts, [0, 8, 16], model.reader.rotary)
    for number, layer in enumerate(found.layers):
        for head in range(layer.keys.shape[1]):
            own = [[x[0, head] for x in vars(part.layers[number]).values()] for part in parts]
            held, values, places = layer.held[0, head], list[Tensor](), list[Tensor]()
            for part, (_, own_values, bias, positions) in enumerate(own):
                kept = ~bias.isinf() & ((positions > 0) | (part == 0))
                values.append(own_values[kept])
                places.append(positions[kept] + 8 * part)
            assert torch.equal(layer.values[0, head][held], torch.cat(values))
            assert torch.equal(layer.positions[0, head][held], torch.cat(places))


def test_fewer_slots_keep_budgets(model: MemoryDecoder) -> None:
    heads = model.settings.heads
    given = model.memories(ids(16, 11), tokens_per_memory=2)
    found = model.fewer(given, tokens_per_memory=4)
    for row, (tokens, mean) in enumerate(((16, 4), (11, 3))):
        assert torch.equal(found.held[row], 1 + heads.slots(tokens, mean).minimum(given.held[row] - 1))
    assert logits(model, ids(5, 5), found).isfinite().all()


def test_measured_errors_are_those_of_the_layers_output(model: MemoryDecoder) -> None:
    """One head's slots stand in for all tokens, and the output of its layer's attention is compared."""
    [text] = ids(150)
    layers, heads, _ = model.slot_sizes
    found = measured_heads(model, [text])
    table = torch.tensor(found.table)
    assert table.shape == (layers, heads, len(RATIOS))
    assert (table[..., 0] == 0).all()
    assert (table[..., 1:] > 0).any()
    old, new = text[:-64], text[-64:]
    encoded = model.encode([old], heads=None)
    full, few = (encoded.at(tokens_per_memory=ratio) for ratio in (1, 8))
    for layer in range(layers):
        known = torch.stack([_lost(model, new, full, few, layer, head) for head in range(heads)])
        # both ways of reading are divided by their sums over all heads
        model_errors = _following(model, new, full, few)[layer]
        torch.testing.assert_close(model_errors, known, rtol=1e-3, atol=1e-6)


def _following(model: MemoryDecoder, new: list[int], full: SlotMemories, few: SlotMemories) -> Tensor:
    from memlm.models.slots.head_errors import _errors, _projections

    return _errors(model, new, [full, few], _projections(model), skipped=0)[..., 1]


@torch.no_grad()
def _lost(model: MemoryDecoder, new: list[int], full: SlotMemories, few: SlotMemories, layer: int, head: int) -> Tensor:
    outputs: list[Tensor] = []
    [module] = [
        m
        for m in model.decoder.base_model.modules()
        if getattr(m, "layer_idx", None) == layer and "Attention" in type(m).__name__
    ]
    hook = module.register_forward_hook(lambda _module, _args, out: outputs.append(out[0]))
    try:
        hidden = [
            model.decoder(**model.inputs([new], memories), output_hidden_states=True).hidden_states[layer]
            for memories in (full, _mixed(full, few, layer, head))
        ]
    finally:
        hook.remove()
    torch.testing.assert_close(*hidden)
    lost = (outputs[1] - outputs[0]).square().sum(-1) / hidden[0].square().sum(-1)
    return lost.clamp(max=1).mean()


def _mixed(full: SlotMemories, few: SlotMemories, layer: int, head: int) -> SlotMemories:
    """All tokens' keys and values, but for one head of one layer."""
    one, other = full.layers[layer], few.layers[layer]
    more = one.bias.shape[2] - other.bias.shape[2]
    columns = []
    for x, y, empty in zip(vars(one).values(), vars(other).values(), (0.0, 0.0, -math.inf, 0), strict=True):
        wide = torch.cat([y.new_full((*y.shape[:2], more, *y.shape[3:]), empty), y], 2)
        columns.append(torch.where((torch.arange(x.shape[1]) == head).view(1, -1, *[1] * (x.ndim - 2)), wide, x))
    layers = list(full.layers)
    layers[layer] = LayerSlots(*columns)
    return SlotMemories(layers, full.lengths, full.counts)


def test_heads_travel_with_the_settings(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    model = with_heads(MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS))
    assert EncodingSettings.of(asdict(model.settings)) == model.settings
    assert EncodingSettings.of(asdict(SETTINGS)) == SETTINGS
    for table in ([], [[[0.0] * 3]], [[[-1.0] * len(RATIOS)]], [[[math.nan] * len(RATIOS)]], "x", [[], [[0.0]]]):
        with pytest.raises(UserError, match="rror"):
            HeadErrors.of({"table": table})
    model.settings = replace(model.settings, heads=errors_of(2, 3))
    with pytest.raises(UserError, match="of 2 layers of 3 heads; measure those of this decoder"):
        model.memories([[5] * 20], tokens_per_memory=4)


def test_texts_that_are_too_short_and_vectors_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    from memlm.models.slots.configuration import SlotWriterConfig

    model = MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS)
    for texts in ([], [[5] * 128]):
        with pytest.raises(UserError, match="texts of more than 128 tokens"):
            measured_heads(model, texts)
    vectors = MemoryDecoder(decoder_of("llama"), tokenizer, SETTINGS, config=SlotWriterConfig(injection="input"))
    with pytest.raises(UserError, match="are vectors, which all heads read"):
        measured_heads(vectors, ids(200))


def test_the_command_writes_a_folder_that_is_read(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decoder = decoder_of("llama")
    decoder.save_pretrained(tmp_path / "decoder")
    tokenizer.save_pretrained(tmp_path / "decoder")
    command = ["measure-heads", str(tmp_path / "decoder"), "--out", str(tmp_path / "heads"), "--rows", "2"]
    assert main(command) == 0
    found = MemoryDecoder.from_pretrained(str(tmp_path / "heads"))
    assert found.settings.heads is not None
    assert found.settings.heads.sizes == (2, 2)
    assert main(command) == 2
    assert "exists; give a folder that does not" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("short")
    out = ["--out", str(tmp_path / "other"), "--text", str(tmp_path / "short.txt")]
    assert main([*command[:2], *out]) == 2
    assert "has more than 128 tokens; give longer ones" in capsys.readouterr().err
