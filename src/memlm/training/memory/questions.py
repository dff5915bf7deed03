"""Rows that ask for what stood in earlier chunks: facts that are planted or that the text states, or a chunk once more.

chunk 0               chunk 1               chunk 2 (the last)
... fact b ...        ... fact a ...        ... question a, answer a ... question b, answer b ...
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from memlm.data import encode_texts
from memlm.data.conversation import Turn, behind_passages, prompt_ids
from memlm.errors import ConfigError
from memlm.training.memory.fact_writer import Fact, FactWriter, SpokenFact


def with_facts(
    ids: Int[Tensor, " tokens"], writer: FactWriter, count: int, chunk_length: int, generator: torch.Generator
) -> tuple[Int[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Return a row whose last chunk asks for facts of the chunks before it; True for the answers.

    Args:
        ids: (tokens), at least two chunks.
        writer: draws the facts.
        count: number of facts; half of them are planted, and the others are found in the text.
        chunk_length: tokens of a chunk.
        generator: draws the facts and their places.

    Raises:
        ConfigError: a chunk is shorter than the facts.
    """
    last, row, answer = len(ids) - chunk_length, ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
    planted = _fitting(writer, (count + 1) // 2, last, chunk_length // count, generator)
    _place(row[:last], [fact.statement for fact in planted], generator)
    found = [writer.find(row[:last], generator) for _ in range(count - len(planted))]
    facts = planted + [fact for fact in found if fact is not None]
    starts = _place(row[last:], [[*fact.question, *fact.answer] for fact in facts], generator)
    for fact, start in zip(facts, starts, strict=True):
        begin = last + start + len(fact.question)
        answer[begin : begin + len(fact.answer)] = True
    return row, answer


_TRIES = 100


def _fitting(writer: FactWriter, count: int, tokens: int, asked: int, generator: torch.Generator) -> list[Fact]:
    """Return facts to plant into so many tokens, of which each takes at most `asked` tokens to ask for and answer."""
    found: list[Fact] = []
    for _ in range(_TRIES):
        fact = writer.draw(generator)
        if len(fact.statement) <= tokens // count and len(fact.question) + len(fact.answer) <= asked:
            found.append(fact)
        if len(found) == count:
            return found
    raise ConfigError(
        f"facts do not fit: a question and its answer have {asked} tokens of a chunk; give a larger chunk_length, "
        "fewer facts_per_row, or fact_share=0."
    )


def with_conversation(
    ids: Int[Tensor, " tokens"], writer: FactWriter, count: int, chunk_length: int, generator: torch.Generator
) -> tuple[Int[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Return a row that ends with a conversation about facts of the chunks before the last; True for the answers.

    The conversation is worded by the decoder's chat template. Half of the questions come with the sentence that states
    the fact, as a search would find it.

    Args:
        ids: (tokens), at least two chunks.
        writer: draws the facts.
        count: number of facts, all of them planted; fewer where a chunk has no room for the conversation.
        chunk_length: tokens of a chunk.
        generator: draws the facts and their places.

    Raises:
        ConfigError: a chunk is shorter than a question and its answer, or than the facts.
    """
    last, row, answer = len(ids) - chunk_length, ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
    facts = [writer.draw_spoken(generator) for _ in range(count)]
    shown = (torch.rand(count, generator=generator) < 0.5).tolist()
    spoken, answers = _conversation(facts, shown, writer, chunk_length)
    _place(row[:last], encode_texts(writer.tokenizer, [f" {fact.statement}" for fact in facts]), generator)
    begin = len(ids) - len(spoken)
    row[begin:] = torch.tensor(spoken, dtype=row.dtype)
    for start, length in answers:
        answer[begin + start : begin + start + length] = True
    return row, answer


def _conversation(
    facts: Sequence[SpokenFact], shown: Sequence[bool], writer: FactWriter, most: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of a conversation, at most so many, and where its answers begin and how long they are."""
    turns, ids, places = list[Turn](), list[int](), list[tuple[int, int]]()
    for fact, with_statement in zip(facts, shown, strict=True):
        question = behind_passages([fact.statement] if with_statement else [], fact.question)
        prompt = prompt_ids(writer.tokenizer, turns, question)
        [said] = encode_texts(writer.tokenizer, [fact.answer])
        # some templates write earlier turns in another way than the one that is to be answered
        if len(prompt) + len(said) > most or prompt[: len(ids)] != ids:
            break
        ids, places = [*prompt, *said], [*places, (len(prompt), len(said))]
        turns.append(Turn(question, fact.answer))
    if not places:
        raise ConfigError(
            f"a question and its answer do not fit {most} tokens; give a larger chunk_length, or chat_share=0."
        )
    return ids, places


def _place(ids: Int[Tensor, " tokens"], parts: Sequence[list[int]], generator: torch.Generator) -> list[int]:
    """Write parts over tokens, in any order, each in a range of its own, and return where they begin."""
    size = len(ids) // len(parts)
    longest = max(map(len, parts))
    if longest > size:
        raise ConfigError(
            f"{len(parts)} facts of up to {longest} tokens do not fit {len(ids)} tokens; give a larger chunk_length, "
            "fewer facts_per_row, or fact_share=0."
        )
    starts: list[int] = []
    for part, place in zip(parts, torch.randperm(len(parts), generator=generator).tolist(), strict=True):
        start = place * size + int(torch.randint(size - len(part) + 1, (1,), generator=generator))
        ids[start : start + len(part)] = torch.tensor(part, dtype=ids.dtype)
        starts.append(start)
    return starts


def read_again(ids: Int[Tensor, " tokens"], chunk_length: int, generator: torch.Generator) -> Int[Tensor, " tokens"]:
    """Return a row whose last chunk is one of those before it once more."""
    chunk = int(torch.randint(len(ids) // chunk_length - 1, (1,), generator=generator))
    return torch.cat([ids[:-chunk_length], ids[chunk * chunk_length : (chunk + 1) * chunk_length]])
