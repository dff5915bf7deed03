"""Facts that training rows state and ask for: planted ones, and names and numbers of a text itself."""

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

_FEWEST = 100
"""Words that a tokenizer must know as whole tokens; one with fewer gets the lists below."""
_NAMES = (
    *("Bellmont", "Carrow", "Delphine", "Eastlake", "Farnham", "Gilroy", "Hartwell", "Inverness", "Jasper", "Kendrick"),
    *("Lowell", "Merrick", "Norwood", "Oakden", "Prescott", "Quimby", "Ridgeway", "Sutton", "Thornton", "Winslow"),
)
_THINGS = ("amber", "barley", "cedar", "coal", "flour", "glass", "honey", "iron", "linen", "paper", "salt", "wool")
_MONTHS = ("January", "March", "April", "June", "August", "October", "November", "December")


class _Wording(NamedTuple):
    """How a fact is stated, begun once more, asked for in a conversation, and answered."""

    statement: str
    begun: str
    asked: str
    answer: str


_WORDINGS = (
    _Wording(
        "The office in {name} bought {number} tons of {thing}.",
        "In {name} the office bought",
        "How much did the office in {name} buy, and of what?",
        "{number} tons of {thing}.",
    ),
    _Wording(
        "{name} received its charter in {month} {year}.",
        "The charter of {name} was received in",
        "When did {name} get its charter?",
        "{month} {year}.",
    ),
    _Wording(
        "Room {number} is where Mr. {name} keeps the {thing}.",
        "Mr. {name} keeps the {thing} in room",
        "In which room does Mr. {name} keep the {thing}?",
        "{number}.",
    ),
    _Wording(
        "The account of {name} was closed with {number} dollars.",
        "When it was closed, the account of {name} held",
        "How many dollars did {name} have when the account was closed?",
        "{number} dollars.",
    ),
    _Wording(
        "Captain {name} sailed in {month} with a cargo of {thing}.",
        "The cargo of Captain {name} was",
        "Which cargo did Captain {name} carry?",
        "{thing}.",
    ),
    _Wording(
        "The favourite subject of {name} is {thing}.",
        "When asked, {name} always talks about",
        "What does {name} like to talk about most?",
        "{thing}.",
    ),
    _Wording(
        "{name} hid the key behind the {thing}.",
        "The key of {name} is behind the",
        "Behind what is the key of {name} hidden?",
        "{thing}.",
    ),
    _Wording("For {name}, the sign is {thing}.", "The sign for {name} is", "Which sign stands for {name}?", "{thing}."),
    _Wording(
        "The box marked {thing} belongs to {name}.",
        "The box of {name} is marked",
        "How is the box of {name} marked?",
        "{thing}.",
    ),
    _Wording(
        "Under {name} the club chose {thing} as its emblem.",
        "The emblem of the club of {name} is",
        "Which emblem did the club choose under {name}?",
        "{thing}.",
    ),
    _Wording(
        "{name} was told the code {thing}.",
        "The code that {name} was told is",
        "Tell me the code of {name}.",
        "{thing}.",
    ),
    _Wording(
        "On the list, {name} stands next to {thing}.",
        "Question: What stands next to {name} on the list? Answer:",
        "Next to what does {name} stand on the list?",
        "{thing}.",
    ),
    _Wording(
        "{name} lives at {number} Mill Street.",
        "Question: At which number does {name} live? Answer:",
        "Where on Mill Street does {name} live?",
        "{number}.",
    ),
    _Wording(
        "The dog of {name} is named {thing}.",
        "Question: How is the dog of {name} named? Answer:",
        "What name does the dog of {name} have?",
        "{thing}.",
    ),
    _Wording(
        "{name} was born in {year}.",
        "Question: In which year was {name} born? Answer:",
        "Since when has {name} been alive?",
        "{year}.",
    ),
)
"""Facts to plant; no measurement words them so."""
_CUE, _LONGEST_ANSWER = 12, 6
"""Tokens of the text that ask for what followed them, and tokens of an answer from the text at most."""


class Fact(NamedTuple):
    """A fact that is asked for by how it goes on, as token ids; nothing is stated of a text's own fact."""

    statement: list[int]
    question: list[int]
    answer: list[int]


class SpokenFact(NamedTuple):
    """A fact that is asked for in a conversation."""

    statement: str
    question: str
    answer: str


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
        wording, values = self._drawn(generator)
        texts = [f" {part.format(**values)}" for part in (wording.statement, wording.begun, wording.answer)]
        return Fact(*encode_texts(self.tokenizer, texts))

    def draw_spoken(self, generator: torch.Generator) -> SpokenFact:
        """Return a fact to plant, and to ask for in a conversation."""
        wording, values = self._drawn(generator)
        return SpokenFact(*(part.format(**values) for part in (wording.statement, wording.asked, wording.answer)))

    def _drawn(self, generator: torch.Generator) -> tuple[_Wording, dict[str, str]]:
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
        return _WORDINGS[one_of(len(_WORDINGS))], values

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
