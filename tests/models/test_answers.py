"""Scores of answers behind prompts are those of the decoder that reads each prompt and answer by itself."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from memlm.models.slots import MemoryDecoder
from memlm.models.slots.answers import score_answers
from tests.models.test_slots import FAMILIES, decoder_of, ids

PROMPTS = [[5, 6, 7, 8, 9], [10, 11]]
ANSWERS = [[[20, 21, 22], [23]], [[24], [25, 26]]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("behind", [True, False])
def test_answers_are_scored_as_if_each_were_read_by_itself(
    family: str, behind: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = MemoryDecoder(decoder_of(family), tokenizer)
    memories = model.memories(ids(19, 12), tokens_per_memory=3) if behind else None
    found = score_answers(model, PROMPTS, ANSWERS, memories)
    for i, prompt in enumerate(PROMPTS):
        own = None if memories is None else memories.rows(torch.tensor([i]))
        for j, answer in enumerate(ANSWERS[i]):
            with torch.no_grad():
                logits = model.decoder(**model.inputs([[*prompt, *answer]], own)).logits[0, -len(answer) - 1 : -1]
            nats = torch.nn.functional.cross_entropy(logits.float(), torch.tensor(answer), reduction="none")
            torch.testing.assert_close(found.nats[i, j, : len(answer)], nats, atol=1e-4, rtol=1e-4)
            assert not bool(found.nats[i, j, len(answer) :].any())
            assert found.likeliest[i, j].tolist()[: len(answer)] == (logits.argmax(-1) == torch.tensor(answer)).tolist()
            assert bool(found.likeliest[i, j, len(answer) :].all())
