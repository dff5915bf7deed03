"""Generation with a key-value cache equals generation without, by the names that every transformers gives the cache."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from memlm.models.base import CACHE_NAME
from tests.models.test_memory import PROMPTED, VOCAB, documents, memory_model
from tests.models.test_mixer import language_model
from tests.models.test_pretrained import FAMILIES, GATED, LORA, around
from tests.variants import MIXERS

NEW_TOKENS = 5


@pytest.fixture(autouse=True)
def _no_notes_of_deprecation(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers logs once a process, and pytest therefore does not see."""

    def fail(_logger: Any, message: str, *_: Any, **__: Any) -> None:
        assert "deprecated" not in message, message

    monkeypatch.setattr(logging.Logger, "warning_once", fail)


def generated(model: Any, prompt: dict[str, Tensor], *, use_cache: bool) -> tuple[Tensor, Tensor]:
    """Tokens (rows, tokens) and logits (rows, tokens, vocabulary) of greedy generation."""
    found = model.generate(
        **prompt,
        use_cache=use_cache,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert found.get(CACHE_NAME) is None or use_cache
    assert not use_cache or found[CACHE_NAME].get_seq_length() == prompt["input_ids"].shape[1] + NEW_TOKENS - 1
    return found.sequences[:, -NEW_TOKENS:], torch.stack(found.logits, dim=1)


def assert_cache_changes_nothing(model: Any, prompt: dict[str, Tensor]) -> None:
    (cached, with_cache), (uncached, without) = (generated(model, prompt, use_cache=use) for use in (True, False))
    assert torch.equal(cached, uncached)
    torch.testing.assert_close(with_cache, without, rtol=1e-4, atol=1e-4)


def prompt_of(model: Any) -> dict[str, Tensor]:
    """Rows of several lengths: two memories, one, none; the shorter ones padded on the left."""
    ids = documents()
    memories = model.encode(ids[:, :8])
    full, short = [memories[0], ids[0, 8:11].tolist()], [memories[1, :1], ids[1, 4:5].tolist()]
    return model.prompt([full, short, [ids[0, :2].tolist()]])


@pytest.mark.parametrize("name", MIXERS)
def test_mixers(name: str) -> None:
    ids, mask = torch.tensor([[0, 5, 3], [4, 2, 9]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert_cache_changes_nothing(language_model(**MIXERS[name]), {"input_ids": ids, "attention_mask": mask})


@pytest.mark.parametrize("name", PROMPTED)
def test_memory_models(name: str) -> None:
    model = memory_model(name)
    assert_cache_changes_nothing(model, prompt_of(model))


@pytest.mark.parametrize("lora", [None, LORA, GATED])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_models_around_pretrained_decoders(family: str, lora: dict[str, Any] | None) -> None:
    model, _ = around(family, lora=lora)
    assert_cache_changes_nothing(model, prompt_of(model))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_both_names(name: str) -> None:
    ids = torch.randint(2, VOCAB, (2, 6))
    for read in (language_model(), memory_model().read_prompt):
        whole = read(ids, use_cache=False).logits
        cache = DynamicCache()
        first = read(ids[:, :4], **{name: cache})
        second = read(ids[:, 4:], **{name: first[CACHE_NAME]})
        assert first[CACHE_NAME] is cache
        torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)
