"""Rows that ask for what stood in earlier chunks: facts that are planted or that the text states, or a chunk once more.

chunk 0               chunk 1               chunk 2 (the last)
... fact b ...        ... fact a ...        ... question a, answer a ... question b, answer b ...
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import encode_texts
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.errors import ConfigError

_FEWEST = 100
"""Words that a tokenizer must know as whole tokens; one with fewer gets the lists below."""
_NAMES = (
    *("Bellmont", "Carrow", "Delphine", "Eastlake", "Farnham", "Gilroy", "Hartwell", "Inverness", "Jasper", "Kendrick"),
    *("Lowell", "Merrick", "Norwood", "Oakden", "Prescott", "Quimby", "Ridgeway", "Sutton", "Thornton", "Winslow"),
)
_THINGS = ("amber", "barley", "cedar", "coal", "flour", "glass", "honey", "iron", "linen", "paper", "salt", "wool")
_MONTHS = ("January", "March", "April", "June", "August", "October", "November", "December")
_WORDINGS = (
    (
        "The office in {name} bought {number} tons of {thing}.",
        "In {name} the office bought",
        "{number} tons of {thing}.",
    ),
    ("{name} received its charter in {month} {year}.", "The charter of {name} was received in", "{month} {year}."),
    ("Room {number} is where Mr. {name} keeps the {thing}.", "Mr. {name} keeps the {thing} in room", "{number}."),
    (
        "The account of {name} was closed with {number} dollars.",
        "When it was closed, the account of {name} held",
        "{number} dollars.",
    ),
    ("Captain {name} sailed in {month} with a cargo of {thing}.", "The cargo of Captain {name} was", "{thing}."),
    ("The favourite subject of {name} is {thing}.", "When asked, {name} always talks about", "{thing}."),
    ("{name} hid the key behind the {thing}.", "The key of {name} is behind the", "{thing}."),
    ("For {name}, the sign is {thing}.", "The sign for {name} is", "{thing}."),
    ("The box marked {thing} belongs to {name}.", "The box of {name} is marked", "{thing}."),
    ("Under {name} the club chose {thing} as its emblem.", "The emblem of the club of {name} is", "{thing}."),
    ("{name} was told the code {thing}.", "The code that {name} was told is", "{thing}."),
    (
        "On the list, {name} stands next to {thing}.",
        "Question: What stands next to {name} on the list? Answer:",
        "{thing}.",
    ),
    ("{name} lives at {number} Mill Street.", "Question: At which number does {name} live? Answer:", "{number}."),
    ("The dog of {name} is named {thing}.", "Question: How is the dog of {name} named? Answer:", "{thing}."),
    ("{name} was born in {year}.", "Question: In which year was {name} born? Answer:", "{year}."),
)
"""Statements, questions and answers; no measurement words them so."""
_CUE, _LONGEST_ANSWER = 12, 6
"""Tokens of the text that ask for what followed them, and tokens of an answer from the text at most."""


class Fact(NamedTuple):
    """A fact as token ids: what is stated, what asks for it, and the answer; nothing is stated of a text's own fact."""

    statement: list[int]
    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class FactWriter:
    """Draws facts, whose names and things are words that the tokenizer knows as whole tokens.

    Attributes:
        tokenizer: of the decoder.
    """

    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def _pieces(self) -> list[str]:
        """The text of each token, a space in front where it begins a word."""
        pieces = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        return [re.sub("^[\u0120\u2581]", " ", piece or "") for piece in pieces]

    @cached_property
    def _words(self) -> tuple[Sequence[str], Sequence[str]]:
        names, things = (
            sorted({piece[1:] for piece in self._pieces if re.fullmatch(form, piece)} - {*TEST_NAMES, *TEST_WORDS})
            for form in (" [A-Z][a-z]{3,9}", " [a-z]{4,10}")
        )
        return names if len(names) >= _FEWEST else _NAMES, things if len(things) >= _FEWEST else _THINGS

    @cached_property
    def _telling(self) -> Bool[Tensor, " vocabulary"]:
        """True for tokens that begin a name or a number."""
        return torch.tensor([re.match(" ?[A-Z0-9]", piece) is not None for piece in self._pieces])

    def draw(self, generator: torch.Generator) -> Fact:
        """Return a fact to plant."""

        def one_of(count: int) -> int:
            return int(torch.randint(count, (1,), generator=generator))

        names, things = self._words
        values = {
            "name": names[one_of(len(names))],
            "thing": things[one_of(len(things))],
            "month": _MONTHS[one_of(len(_MONTHS))],
            "number": str(10 + one_of(990)),
            "year": str(1700 + one_of(300)),
        }
        texts = [" " + part.format(**values) for part in _WORDINGS[one_of(len(_WORDINGS))]]
        return Fact(*encode_texts(self.tokenizer, texts))

    def find(self, ids: Int[Tensor, " tokens"], generator: torch.Generator) -> Fact | None:
        """Return a name or number of a text, asked for by the tokens in front of it; None where there is none."""
        places = self._telling[ids[: -_LONGEST_ANSWER - 1]].nonzero()[:, 0]
        places = places[places >= _CUE]
        if not len(places):
            return None
        place = int(places[int(torch.randint(len(places), (1,), generator=generator))])
        ends = (i for i in range(1, _LONGEST_ANSWER) if not re.match(r"\w", self._pieces[int(ids[place + i])]))
        end = place + next(ends, _LONGEST_ANSWER)
        return Fact([], ids[place - _CUE : place].tolist(), ids[place:end].tolist())


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
    planted = [writer.draw(generator) for _ in range((count + 1) // 2)]
    _place(row[:last], [fact.statement for fact in planted], generator)
    found = [writer.find(row[:last], generator) for _ in range(count - len(planted))]
    facts = planted + [fact for fact in found if fact is not None]
    starts = _place(row[last:], [[*fact.question, *fact.answer] for fact in facts], generator)
    for fact, start in zip(facts, starts, strict=True):
        begin = last + start + len(fact.question)
        answer[begin : begin + len(fact.answer)] = True
    return row, answer


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
