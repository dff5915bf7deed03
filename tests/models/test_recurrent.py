"""The recurrent baseline: every token reaches the next chunk, later ones reach nothing, gradients stop where asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from memlm.errors import ConfigError, MemoryShapeError
from memlm.models import RecurrentMemoryConfig, RecurrentMemoryForCausalLM
from memlm.shapes import IGNORE_INDEX
from tests.variants import GPT2_DECODER, LLAMA_DECODER, MIXER_DECODER

VOCAB = 23
VARIANTS: dict[str, dict[str, Any]] = {
    "mixer": {},
    "llama": {"decoder": LLAMA_DECODER},
    "gpt2": {"decoder": GPT2_DECODER},
    "one vector": {"memory_tokens": 1},
}


def recurrent(name: str = "mixer", **changes: Any) -> RecurrentMemoryForCausalLM:
    torch.manual_seed(0)
    sizes = {"chunk_length": 4, "num_chunks": 4, "memory_tokens": 2, "decoder": MIXER_DECODER}
    model = RecurrentMemoryForCausalLM(RecurrentMemoryConfig(**{**sizes, **VARIANTS[name], **changes})).eval()
    # the default start mixes little; these tests should see mixing
    for weight in (p for p in model.decoder.parameters() if p.ndim > 1):
        torch.nn.init.normal_(weight, std=0.3)
    return model


def documents(batch: int = 2, tokens: int = 16) -> Tensor:
    return torch.randint(2, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_token_reaches_later_chunks_and_no_earlier_position(name: str) -> None:
    model, ids = recurrent(name), documents()
    before = model(ids).logits
    for position in (0, 3, 7, 11, 15):  # the last token of a chunk too, which the reference code loses
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % VOCAB
        after = model(changed).logits
        torch.testing.assert_close(after[:, :position], before[:, :position], rtol=1e-6, atol=1e-6)
        assert not torch.allclose(after[:, 15], before[:, 15], atol=1e-7)


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_the_rest_of_the_batch_change_nothing(name: str) -> None:
    model, ids = recurrent(name), documents()
    alone = model(ids[:1, :11]).logits
    for left in (5, 0, 2):
        padded, mask = torch.full((1, 16), 7), torch.zeros(1, 16, dtype=torch.long)
        padded[:, left : left + 11], mask[:, left : left + 11] = ids[:1, :11], 1
        together = model(torch.cat([padded, ids[1:]]), torch.cat([mask, torch.ones_like(mask)]))
        torch.testing.assert_close(together.logits[:1, left : left + 11], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_one_chunk_is_the_decoder_behind_the_start(name: str) -> None:
    model, ids = recurrent(name), documents(1, 4)
    slots = model.config.memory_tokens
    inputs = torch.cat([model.start, model.get_input_embeddings()(ids[0])])
    expected = model.decoder(inputs_embeds=inputs[None], use_cache=False).logits[:, slots:]
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("depth", "reached"), [(None, True), (3, True), (1, False), (2, False)])
def test_gradients_pass_through_as_many_memories_as_asked(depth: int | None, reached: bool) -> None:
    model = recurrent(backpropagation_depth=depth)
    embedded: list[Tensor] = []
    table = model.get_input_embeddings()
    table.register_forward_hook(lambda _, __, out: embedded.append(out.requires_grad_()) or out.retain_grad())
    logits = model(documents(1, 12)).logits
    logits[:, 11].sum().backward()
    first = embedded[0].grad
    assert (first is not None and bool(first.abs().sum() > 0)) == reached


def test_memories_of_another_text_are_read_and_none_without_memory() -> None:
    model, ids = recurrent(), documents()
    memories = model.encode(ids)
    assert memories.shape == (2, 4, 2, 12)
    torch.testing.assert_close(model(ids, memories=memories).logits, model(ids).logits)
    assert not torch.allclose(model(ids, memories=memories.flip(0)).logits[:, 4:], model(ids).logits[:, 4:])
    changed = ids.clone()
    changed[:, 2] = 5
    without = [model(x, use_memory=False).logits[:, 4:] for x in (ids, changed)]
    assert torch.equal(*without)
    with pytest.raises(MemoryShapeError, match=r"writes \(2, 12\)"):
        model(ids, memories=memories[..., :5])
    with pytest.raises(MemoryShapeError, match="3 are read"):
        model(ids, memories=memories[:, :2])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_is_the_mean_over_asked_tokens_and_survives_saving(name: str, tmp_path: Path) -> None:
    model, ids = recurrent(name), documents()
    labels = ids.roll(-1, 1)
    labels[:, -1] = labels[0, 5:] = IGNORE_INDEX
    output = model(ids, labels=labels)
    mean = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(output.loss, mean)
    torch.testing.assert_close(model.train()(ids, labels=labels).loss, mean)
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is RecurrentMemoryForCausalLM
    assert torch.equal(again(ids).logits, model(ids).logits)


def test_chunks_that_do_not_fit_the_decoder_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"chunk_length \(4\).*memory_tokens \(9\) take 22 .* it has 16"):
        recurrent(memory_tokens=9)
    with pytest.raises(ConfigError, match=r"backpropagation_depth \(0\)"):
        recurrent(backpropagation_depth=0)
