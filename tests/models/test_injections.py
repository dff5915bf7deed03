"""Memories that are one vector each: every family writes them, reads them and goes on behind them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

from memlm.cli import main
from memlm.errors import ConfigError, UserError
from memlm.models import SlotWriter, SlotWriterConfig
from memlm.models.base import CACHE_NAME
from memlm.models.slots import MemoryDecoder
from memlm.models.slots.entering import entering, layers_of
from memlm.models.slots.states import Blocks, EncodingSettings
from memlm.models.slots.vectors import VectorInjection, group_ends
from memlm.recipes import get_recipe
from memlm.training import train_run
from memlm.training.config import merge_run
from tests.conftest import speech
from tests.models.test_slots import FAMILIES, PROMPT, TEXT, decoder_of, full_context, ids, logits
from tests.training.test_pretrained import decoder  # noqa: F401 (a fixture)

KINDS = ("input", "layer", "code")
matrix = pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in FAMILIES for kind in KINDS])


def writer_of(family: str, kind: str, **more: Any) -> SlotWriter:
    """Return a writer whose adapters and maps change what is written."""
    settings = {"chunk_length": 8, "num_chunks": 4, "scored_tokens": 8, "lora": {"rank": 2}, "first_token_id": 1}
    writer = SlotWriter(SlotWriterConfig(**{**settings, "injection": kind, **more}), decoder_of(family))
    torch.manual_seed(5)
    for name, weight in writer.named_parameters():
        if "lora_" in name or "injection" in name:
            weight.data.normal_(std=0.3)
    return writer


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerFast) -> Any:
    def made(family: str, kind: str) -> MemoryDecoder:
        writer = writer_of(family, kind)
        return MemoryDecoder(writer.decoder, tokenizer, config=writer.config, injection=writer.injection)

    return made


@matrix
def test_text_without_memories_is_the_plain_decoders_bit_for_bit(family: str, kind: str, make: Any) -> None:
    plain, model = decoder_of(family), make(family, kind)
    model.memories(ids(TEXT), tokens_per_memory=4)
    rows = torch.tensor(ids(TEXT, TEXT))
    with torch.no_grad():
        assert torch.equal(model.decoder(rows).logits, plain(rows).logits)


@matrix
def test_reading_memories_is_reading_their_vectors(family: str, kind: str, make: Any) -> None:
    plain, model = decoder_of(family), make(family, kind)
    [text], [prompt] = ids(TEXT), ids(PROMPT, seed=2)
    if kind == "code":
        model.injection.openness.data.zero_()  # the slow version has no biases
    # more slots than a window holds, where the slow version knows windows
    ratio = 1 if kind == "input" else 4
    vectors = model.vectors([text], tokens_per_memory=ratio)
    assert vectors.vectors.shape == (1, TEXT // ratio, 16)
    found = logits(model, [prompt], model.memories([text], tokens_per_memory=ratio))
    torch.testing.assert_close(found, _read_slowly(plain, model, vectors.vectors, prompt), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def _read_slowly(plain: PreTrainedModel, model: MemoryDecoder, vectors: Tensor, prompt: list[int]) -> Tensor:
    """Read first token, vectors and prompt at once, without a cache of slots."""
    first, count, injection = model.reader.first_token_id, vectors.shape[1], model.injection
    assert isinstance(injection, VectorInjection)
    if model.config.injection == "input":
        table = plain.get_input_embeddings()
        start, rest = (table(torch.tensor([row])) for row in ([first], prompt))
        return plain(inputs_embeds=torch.cat([start, vectors, rest], 1)).logits[:, -len(prompt) :]
    if model.config.injection == "layer":
        below = _entered(plain, injection.lowest, [first, *prompt], [0, *range(1 + count, 1 + count + len(prompt))])
        entered: dict[int, Any] = {injection.lowest: lambda _: torch.cat([below[:, :1], vectors, below[:, 1:]], 1)}
    else:
        own = {i: change(torch.zeros(1, 1, vectors.shape[2])) for i, change in injection.changes(vectors).items()}
        entered = {
            i: lambda hidden, i=i: torch.cat([hidden[:, :1], own[i][:, 1:], hidden[:, 1 + count :]], 1) for i in own
        }
    with entering(plain, entered):
        return plain(torch.tensor([[first, *[9] * count, *prompt]])).logits[:, -len(prompt) :]


def _entered(plain: PreTrainedModel, layer: int, tokens: list[int], positions: list[int]) -> Tensor:
    """Return the hidden states that enter a layer where tokens stand at these positions."""
    found: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        found.append(hidden)
        return hidden

    with entering(plain, {layer: keep}):
        plain(torch.tensor([tokens]), position_ids=torch.tensor([positions]), **{CACHE_NAME: DynamicCache()})
    return found[0]


def test_layers_that_are_closed_read_no_code(make: Any) -> None:
    model = make("llama", "code")
    model.injection.openness.data.fill_(-100.0)
    [prompt] = ids(PROMPT, seed=2)
    # behind 6 slots, of which none is seen
    found = logits(model, [prompt], model.memories(ids(TEXT), tokens_per_memory=4))
    first, positions = model.reader.first_token_id, torch.tensor([[0, *range(7, 7 + PROMPT)]])
    inputs = {"position_ids": positions, CACHE_NAME: DynamicCache()}
    with torch.no_grad():
        known = model.decoder(torch.tensor([[first, *prompt]]), **inputs).logits[:, 1:]
    torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_inputs_of_one_token_each_are_the_tokens(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = MemoryDecoder(
        decoder_of(family), tokenizer, EncodingSettings(mode="chunks"), config=SlotWriterConfig(injection="input")
    )
    model.config.first_token_id = model.reader.first_token_id
    [text], [prompt] = ids(TEXT), ids(PROMPT, seed=2)
    found = logits(model, [prompt], model.memories([text], tokens_per_memory=1))
    torch.testing.assert_close(found, full_context(model, text, prompt), rtol=1e-4, atol=1e-4)


@matrix
def test_texts_in_a_batch_have_the_memories_that_they_have_alone(family: str, kind: str, make: Any) -> None:
    model = make(family, kind)
    texts, prompts = ids(TEXT, 7, 13), ids(PROMPT, 3, 4, seed=2)
    together = logits(model, prompts, model.memories(texts, tokens_per_memory=2))
    for i, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        alone = logits(model, [prompt], model.memories([text], tokens_per_memory=2))
        torch.testing.assert_close(together[i, -len(prompt) :], alone[0], rtol=1e-4, atol=1e-4)


@matrix
def test_generate_goes_on_as_scoring_does(family: str, kind: str, make: Any) -> None:
    model = make(family, kind)
    prompts, options = ids(PROMPT, 2, seed=2), {"output_logits": True, "return_dict_in_generate": True}
    memories = model.memories(ids(TEXT, 9), slots=5)
    assert memories.lengths.tolist() == memories.counts.tolist() == [6, 6]
    found = model.decoder.generate(
        **model.inputs(prompts, memories),
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    new = found.sequences[:, -4:].tolist()
    scored = logits(model, [[*prompt, *row] for prompt, row in zip(prompts, new, strict=True)], memories)
    torch.testing.assert_close(torch.stack(found.logits, dim=1), scored[:, -5:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_embeddings_generate_the_same_text(family: str, make: Any) -> None:
    plain, model = decoder_of(family), make(family, "input")
    vectors, prompts = model.vectors(ids(TEXT, 9), tokens_per_memory=2), ids(PROMPT, 2, seed=2)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    found = plain.generate(**model.prompt_embeddings(prompts, vectors), **options)
    known = model.decoder.generate(**model.inputs(prompts, model.from_vectors(vectors)), **options)
    assert torch.equal(found, known[:, -6:])


@matrix
@pytest.mark.parametrize("ratio", [2, 4])
def test_divergence_is_that_of_each_prefix_by_itself(family: str, kind: str, ratio: int) -> None:
    writer = writer_of(family, kind)
    [row, short] = ids(32, 20)
    rows, mask = torch.tensor([row, short + [5] * 12]), torch.ones(2, 32, dtype=torch.long)
    mask[1, 20:] = 0
    found = writer(rows, mask, ratio=ratio)
    total = sum(
        _slow_divergence(writer, text[:start], text[start : start + 8], ratio)
        for text in (row, short)
        for start in range(8, len(text), 8)
    )
    torch.testing.assert_close(float(found.nats.sum()), total, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def _slow_divergence(writer: SlotWriter, written: list[int], read: list[int], ratio: int) -> float:
    known = torch.tensor([written])
    settings = EncodingSettings(mode="chunks", chunk_length=8, block_length=8)
    encoded = writer.injection.encode(writer.reader, known, torch.ones_like(known).bool(), settings)
    model = MemoryDecoder.__new__(MemoryDecoder)
    model.decoder = writer.decoder
    behind = logits(model, [read], encoded.at(tokens_per_memory=ratio))[0].log_softmax(-1)
    full = writer.decoder(torch.tensor([[1, *written, *read]])).logits[0, -len(read) :].log_softmax(-1)
    return float((full.exp() * (full - behind)).sum())


@matrix
def test_gradients_reach_adapters_and_maps(family: str, kind: str) -> None:
    writer = writer_of(family, kind)
    loss = writer(torch.tensor(ids(32, 32)), ratio=4).loss
    assert loss is not None
    loss.backward()
    for name, weight in writer.named_parameters():
        if "injection" in name or ("layers.0" in name and "mlp" in name and "lora_" in name):
            assert weight.grad is not None
            assert float(weight.grad.abs().max()) > 0, name
        elif "lora_" not in name:
            assert weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_training_teaches_a_decoder_to_write(kind: str) -> None:
    writer = SlotWriter(
        SlotWriterConfig(chunk_length=8, num_chunks=4, scored_tokens=8, lora={"rank": 2}, injection=kind),
        decoder_of("llama"),
    )
    rows, losses = torch.tensor(ids(32, 32, 32, 32)), []
    optimizer = torch.optim.AdamW([p for p in writer.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(30):
        loss = writer(rows, ratio=2).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_trained_evaluated_saved_and_loaded(
    kind: str,
    decoder: Path,  # noqa: F811
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes: dict[str, Any] = {
        "model": {"chunk_length": 8, "num_chunks": 3, "scored_tokens": 4, "lora": {"rank": 2}, "injection": kind},
        "decoder": {"path": str(decoder)},
        "data": {"text": str(corpus)},
        "training": {"steps": 3, "checkpoint_every": 3, "evaluate_every": 3, "evaluate_rows": 2},
    }
    run = tmp_path / "run"
    train_run(merge_run(get_recipe("memory-pretrained"), changes), run, progress=False)
    model = MemoryDecoder.from_pretrained(str(run))
    assert any(float(weight.abs().max()) > 0 for weight in model.injection.state_dict().values())
    model.save_pretrained(tmp_path / "saved")
    again = MemoryDecoder.from_pretrained(str(tmp_path / "saved"))
    text = speech(2)[:80]
    assert torch.equal(model.vectors(text, slots=4).vectors, again.vectors(text, slots=4).vectors)
    one, other = (m.generate("a", m.memories(text, slots=4), max_new_tokens=5) for m in (model, again))
    assert one == other
    assert main(["evaluate", str(run), "--json", "--rows", "4"]) == 0
    assert "context_gain/chunks/2" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_decoder_has_keys_and_values(kind: str, make: Any) -> None:
    model, plain = make("llama", kind), make("llama", "kv")
    text = ids(TEXT)
    for one, other in (
        (model.untrained().memories(text, slots=4), plain.untrained().memories(text, slots=4)),
        (model.memories(text, slots=4, mode="joint"), plain.memories(text, slots=4, mode="joint")),
    ):
        assert torch.equal(one.layers[-1].keys, other.layers[-1].keys)


def test_groups_are_nearly_equal_parts_of_blocks() -> None:
    tokens, counts = torch.tensor([[10, 10, 3], [7, 0, 0]]), torch.tensor([[3, 5, 1], [2, 0, 0]])
    found = group_ends(Blocks(tokens, torch.tensor([24, 8]), 10, 1), counts)
    for row, sizes, parts in zip(found.tolist(), tokens.tolist(), counts.tolist(), strict=True):
        known = [
            10 * block + math.ceil((i + 1) * size / part) - 1
            for block, (size, part) in enumerate(zip(sizes, parts, strict=True))
            for i in range(part)
        ]
        assert row == known + [-1] * (found.shape[1] - len(known))


def test_hidden_states_enter_within_the_context_only() -> None:
    plain, rows = decoder_of("gpt2"), torch.tensor(ids(8))
    with torch.no_grad():
        before = plain(rows).logits
        with entering(plain, {1: torch.zeros_like}):
            assert not torch.equal(plain(rows).logits, before)
        assert torch.equal(plain(rows).logits, before)
    assert len(layers_of(plain)) == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"injection": "inputs"}, "injection .'inputs'. must be 'kv', 'input', 'layer' or 'code'"),
        ({"injection": "layer", "injection_layer": 2}, "injection_layer .2. must lie between 1 and 1"),
        ({"injection": "code", "injection_layer": 0}, "injection_layer .0. must lie between 1 and 1"),
        ({"injection": "code", "injection_rank": 0}, "injection_rank .0. must be at least 1"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SlotWriter(SlotWriterConfig(**settings), decoder_of("llama"))


def test_what_an_injection_does_not_offer_is_refused_by_name(make: Any) -> None:
    vectors = make("llama", "layer").vectors("a", slots=1)
    with pytest.raises(UserError, match="'layer' do not stand in place of tokens"):
        make("llama", "layer").prompt_embeddings("a", vectors)
    with pytest.raises(UserError, match="2 prompts do not fit memories of 1 texts"):
        make("llama", "input").prompt_embeddings(["a", "b"], vectors)
    for refused in (lambda m: m.vectors("a", slots=1), lambda m: m.from_vectors(vectors)):
        with pytest.raises(UserError, match="'kv' are keys and values"):
            refused(make("llama", "kv"))
