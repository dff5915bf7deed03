"""The memory model against its slow twin, and what its masks promise, for every variant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from memlm.errors import ConfigError, MemoryShapeError, UserError
from memlm.models import (
    ChunkEncoder,
    ChunkEncoderConfig,
    MemoryModelConfig,
    MemoryModelForCausalLM,
    TextAutoencoder,
    TextAutoencoderConfig,
    encoder_of,
)
from memlm.models.memory.naive import naive_logits
from memlm.models.memory.slots import UNUSED, slot_table
from memlm.shapes import IGNORE_INDEX
from tests.variants import MEMORY_ENCODER, MEMORY_MODELS, MIXER_DECODER, TINY

VOCAB = 23
TOKENS = 16


def config(name: str = "ours", **changes: Any) -> MemoryModelConfig:
    chosen = {**MEMORY_MODELS[name], **changes}
    encoder = {**MEMORY_ENCODER, **chosen.pop("encoder", {})}
    sizes = {"chunk_length": 4, "num_chunks": 4, "slots_per_chunk": 2, "memory_token_id": VOCAB}
    decoder = chosen.pop("decoder", MIXER_DECODER)
    if chosen.get("layout") == "fixed" and decoder is MIXER_DECODER:
        decoder = {**decoder, "max_position_embeddings": 20}
    return MemoryModelConfig(
        encoder={"model_type": "memlm_chunk_encoder", **encoder}, decoder=decoder, **{**sizes, **chosen}
    )


def memory_model(name: str = "ours", **changes: Any) -> MemoryModelForCausalLM:
    torch.manual_seed(0)
    model = MemoryModelForCausalLM(config(name, **changes)).eval()
    for module in model.modules():  # the default start mixes little; these tests should see mixing
        if type(module).__name__ == "TokenMixing":
            torch.nn.init.normal_(module.weight, std=0.5)
    return model


def documents(batch: int = 2, tokens: int = TOKENS) -> Tensor:
    return torch.randint(2, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MEMORY_MODELS)
@settings(max_examples=4, deadline=None)
@given(tokens=st.integers(1, 16), left=st.integers(0, 3), right=st.integers(0, 3))
def test_parallel_equals_sequential_in_logits_and_gradients(name: str, tokens: int, left: int, right: int) -> None:
    model = memory_model(name).double()
    ids = torch.nn.functional.pad(documents(2, tokens), (left, right), value=5)
    mask = torch.nn.functional.pad(torch.ones(2, tokens, dtype=torch.long), (left, right))
    mask[0, left] = tokens == 1  # one row a token shorter
    asked = torch.randn(2, tokens + left + right, 24).double() * mask[..., None]
    gradients = []
    for logits in (model(ids, mask).logits, naive_logits(model, ids, mask)):
        model.zero_grad()
        (logits * asked).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    fast, slow = model(ids, mask).logits * mask[..., None], naive_logits(model, ids, mask)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    for ours, oracle in zip(*gradients, strict=True):
        if ours is not None or oracle is not None:
            ours = torch.zeros_like(oracle) if ours is None else ours
            torch.testing.assert_close(ours, torch.zeros_like(ours) if oracle is None else oracle, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in MEMORY_MODELS if "oracle" not in n])
def test_later_chunks_change_nothing_and_earlier_ones_do(name: str) -> None:
    model = memory_model(name)
    ids = documents()
    before = model(ids).logits
    for position in (3, 4, 9, 15):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCAB
        after = model(changed).logits
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=1e-6, atol=1e-6)
        reaches = name != "no memory" or position == 15
        assert torch.allclose(after[:, 15], before[:, 15], atol=1e-7) != reaches


@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_padding_and_the_rest_of_the_batch_change_nothing(name: str) -> None:
    model = memory_model(name)
    ids = documents()
    alone = model(ids[:1, :11]).logits
    for left in (5, 0, 2):
        padded = torch.full((1, 16), 7)
        mask = torch.zeros(1, 16, dtype=torch.long)
        padded[:, left : left + 11], mask[:, left : left + 11] = ids[:1, :11], 1
        together = model(torch.cat([padded, ids[1:]]), torch.cat([mask, torch.ones_like(mask)]))
        torch.testing.assert_close(together.logits[:1, left : left + 11], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [4, 2])
@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_training_loss_of_asked_tokens_equals_the_loss_of_all(name: str, first: int) -> None:
    model = memory_model(name)
    ids = documents(3)
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORE_INDEX
    labels[:, torch.arange(TOKENS) % 4 >= first] = IGNORE_INDEX
    labels[0, :8] = labels[1, 4:] = IGNORE_INDEX
    owners, weights = torch.tensor([0, 1, 1]), torch.tensor([2.0, 1.0])
    evaluated = model(ids, labels=labels, objective=owners, loss_weights=weights)
    trained = model.train()(ids, labels=labels, objective=owners, loss_weights=weights)
    assert trained.logits is None
    torch.testing.assert_close(trained.loss, evaluated.loss)
    assert torch.equal(trained.num_targets, evaluated.num_targets)
    assert torch.equal(trained.num_correct, evaluated.num_correct)
    nats = torch.nn.functional.cross_entropy(
        evaluated.logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none"
    ).sum(1)
    means = [nats[0] / (labels[0] != IGNORE_INDEX).sum(), nats[1:].sum() / (labels[1:] != IGNORE_INDEX).sum()]
    torch.testing.assert_close(evaluated.loss, (2 * means[0] + means[1]) / 3)


@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_kept_memories_give_what_encoding_gives(name: str) -> None:
    model = memory_model(name)
    ids = documents()
    memories = model.encode(ids)
    assert memories.shape[:2] == (2, 4)
    torch.testing.assert_close(model(ids, memories=memories).logits, model(ids).logits)
    other = model(ids, memories=memories.flip(0)).logits
    assert torch.allclose(other, model(ids).logits) == (name == "no memory")


@pytest.mark.parametrize("name", MEMORY_MODELS)
def test_save_and_load_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = memory_model(name)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is MemoryModelForCausalLM
    assert torch.equal(again.eval()(documents()).logits, model(documents()).logits)
    same = ("layout", "filler", "slots_per_chunk", "freeze_encoder", "use_memory", "memory_token_id")
    assert [getattr(again.config, n) for n in same] == [getattr(model.config, n) for n in same]


PROMPTED = [
    name
    for name, changes in MEMORY_MODELS.items()
    if "filler" not in changes and changes.get("layout") not in ("fixed", "oracle")
]


@pytest.mark.parametrize("name", [n for n in PROMPTED if n != "no memory"])
def test_prompts_with_slots_equal_documents_cached_uncached_and_padded(name: str) -> None:
    model = memory_model(name)
    ids = documents()
    whole = model(ids[:, :11]).logits[:, 8:11]
    memories = model.encode(ids[:, :8])
    prompt = model.prompt([[memories[row], ids[row, 8:11].tolist()] for row in range(2)])
    for use_cache in (True, False):
        inputs = model.prepare_inputs_for_generation(**prompt, use_cache=use_cache)
        torch.testing.assert_close(model(**inputs).logits[:, -3:], whole, rtol=1e-5, atol=1e-5)
    arguments = {"max_new_tokens": 2, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(**prompt, use_cache=True, **arguments)
    assert torch.equal(cached, model.generate(**prompt, use_cache=False, **arguments))

    # a row with one memory and a shorter tail beside it changes nothing
    both = model.prompt([[memories[0], ids[0, 8:11].tolist()], [memories[1, :1], ids[1, 4:5].tolist()]])
    mixed = model.generate(**both, use_cache=True, **arguments)
    assert torch.equal(mixed[0, -5:], cached[0, -5:])
    short = model(ids[1:, :5]).logits[:, 4]
    inputs = model.prepare_inputs_for_generation(**both, use_cache=False)
    torch.testing.assert_close(model(**inputs).logits[1:, -1], short, rtol=1e-5, atol=1e-5)


def test_no_generated_token_stands_for_a_slot() -> None:
    model = memory_model("llama decoder")
    with torch.no_grad():  # a head that would write nothing else
        model.get_output_embeddings().weight.zero_()
    memories = model.encode(documents()[:, :8])
    prompt = model.prompt([[memories[row], documents()[row, 8:11].tolist()] for row in range(2)])
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor(VOCAB), 9.0))
    written = model.generate(**prompt, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert not bool((written[:, -3:] == VOCAB).any())


def test_more_chunks_than_in_training() -> None:
    model = memory_model("llama decoder")
    ids = documents(1, 40)
    torch.testing.assert_close(model(ids).logits, naive_logits(model, ids, torch.ones_like(ids)), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="5 chunks take 12 decoder positions and it has 10"):
        memory_model(decoder={**MIXER_DECODER, "max_position_embeddings": 10})(documents(1, 20))
    for name in ("ours", "gpt2 decoder"):
        with pytest.raises(UserError, match="5 chunks do not fit the 4 this model was trained on"):
            memory_model(name)(documents(1, 20))


@pytest.mark.parametrize("name", [n for n in MEMORY_MODELS if "oracle" in n])
def test_an_oracle_knows_its_own_chunk_and_none_after_it(name: str) -> None:
    model = memory_model(name)
    ids = documents()
    before = model(ids).logits
    changed = ids.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCAB
    after = model(changed).logits
    assert torch.equal(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4], before[:, 4], atol=1e-7)


def test_frozen_encoders_have_no_gradients_and_no_noise() -> None:
    model = memory_model("frozen", encoder={"noise_bits": 4}).train()
    assert not model.encoder.training
    ids = documents()
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.encoder.parameters())
    assert torch.equal(model.encode(ids), model.encode(ids))


def test_an_autoencoders_encoder_is_bit_equal() -> None:
    autoencoder = TextAutoencoder(TextAutoencoderConfig(**TINY)).eval()
    ids, mask = torch.randint(2, 23, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    assert torch.equal(encoder_of(autoencoder)(ids, mask), autoencoder.encode(ids, mask))


def test_reconstruction_is_an_objective_of_its_own() -> None:
    model = memory_model("reconstruction head")
    ids = documents()
    out = model(ids, labels=ids, reconstruction_labels=ids, loss_weights=torch.tensor([0.0, 1.0]))
    assert out.num_targets.tolist() == [32, 32]
    out.loss.backward()
    assert model.reconstruction.head.weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in model.decoder.parameters())
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters())
    with pytest.raises(UserError, match="no reconstruction head"):
        memory_model()(ids, labels=ids, reconstruction_labels=ids)


def test_layouts_by_hand() -> None:
    _ = UNUSED
    assert slot_table("aligned", chunks=3, memory_blocks=2).tolist() == [[_, _], [_, 0], [0, 1]]
    assert slot_table("fixed", chunks=3, memory_blocks=3).tolist() == [[_, _, _], [0, _, _], [0, 1, _]]
    assert slot_table("oracle", chunks=3, memory_blocks=3).tolist() == [[_, _, 0], [_, 0, 1], [0, 1, 2]]
    assert slot_table("aligned", chunks=4, memory_blocks=2)[3].tolist() == [1, 2]
    assert slot_table("fixed", chunks=4, memory_blocks=2)[3].tolist() == [1, 2]


def test_errors_name_both_values() -> None:
    with pytest.raises(ConfigError, match=r"layout \('alinged'\) must be .*Did you mean 'aligned'"):
        config(layout="alinged")
    with pytest.raises(ConfigError, match=r"chunk_length \(9\) must not exceed the encoder's \(4\)"):
        config(chunk_length=9)
    with pytest.raises(ConfigError, match=r"memory_token_id \(7\) must lie beyond the tokenizer's 23 ids"):
        config(memory_token_id=7)
    with pytest.raises(ConfigError, match=r"injection \('hidden'\) .* needs the oracle layout, not 'aligned'"):
        config(injection="hidden")
    with pytest.raises(ConfigError, match="filler .* has no place in the variable layout"):
        config(layout="variable", filler="learned")
    with pytest.raises(ConfigError, match=r"first_token_id \(3\) must .* variable layout, not 'aligned'"):
        config(first_token_id=3)
    with pytest.raises(ConfigError, match=r"first_token_id \(0\) must not be the padding id \(0\)"):
        config(layout="variable", first_token_id=0)
    with pytest.raises(ConfigError, match=r"slots_per_chunk \(3\) must be divisible by memories_per_chunk \(2\)"):
        config(encoder={"memories_per_chunk": 2}, slots_per_chunk=3, readout="repeated")
    with pytest.raises(ConfigError, match="encoder must be a configuration"):
        MemoryModelConfig(decoder=MIXER_DECODER)
    with pytest.raises(UserError, match="5 tokens do not fit this encoder's chunk of 4"):
        ChunkEncoder(ChunkEncoderConfig(**MEMORY_ENCODER))(documents(1, 5), torch.ones(1, 5).long())
    model = memory_model()
    ids = documents()
    with pytest.raises(UserError, match="nothing to learn from"):
        model(ids, labels=torch.full_like(ids, IGNORE_INDEX))
    with pytest.raises(MemoryShapeError, match="do not fit 2 documents"):
        model(ids, memories=torch.zeros(2, 3, 1, 5))
    with pytest.raises(MemoryShapeError, match="memories of 2 chunks are too few: 3 are read"):
        model(ids, memories=torch.zeros(2, 2, 1, 8))
    with pytest.raises(UserError, match="give the memories too"):
        model.read_prompt(torch.full((1, 2), VOCAB))
    with pytest.raises(UserError, match="prompts need masked fillers"):
        memory_model("paper").prompt([[torch.zeros(1, 1, 8), [3]]])


@pytest.mark.parametrize("name", [n for n in MEMORY_MODELS if n != "no memory"])
def test_what_a_memory_gives_back_is_what_a_blank_copy_reads(name: str) -> None:
    model = memory_model(name)
    memories = model.encode(documents(3, 4))[:, 0]
    # the copy of a text of half the chunks, all of which are this one
    blanks = torch.zeros(3, 12, dtype=torch.long)
    read = model(blanks, memories=memories[:, None].expand(-1, 3, -1, -1)).logits[:, 8:]
    torch.testing.assert_close(model.decode(memories), read)
    torch.testing.assert_close(model.decode(memories[1:2]), read[1:2], rtol=1e-5, atol=1e-5)
    assert model.decode(memories[:0]).shape == (0, *read.shape[1:])
    with pytest.raises(MemoryShapeError, match="NaN or infinite"):
        model.decode(memories * torch.nan)
    with pytest.raises(MemoryShapeError, match="do not fit"):
        model.decode(memories[..., :-1])


def test_a_model_without_memory_gives_nothing_back() -> None:
    with pytest.raises(UserError, match="never reads its memories"):
        memory_model("no memory").decode(torch.zeros(1, 1, 8))
