"""Rows that ask for what stood in an earlier chunk: a fact that is planted there, or the chunk's text once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data import encode_texts
from memlm.errors import ConfigError

_NAMES = (
    *("Bellmont", "Carrow", "Delphine", "Eastlake", "Farnham", "Gilroy", "Hartwell", "Inverness", "Jasper", "Kendrick"),
    *("Lowell", "Merrick", "Norwood", "Oakden", "Prescott", "Quimby", "Ridgeway", "Sutton", "Thornton", "Winslow"),
)
_THINGS = ("amber", "barley", "cedar", "coal", "flour", "glass", "honey", "iron", "linen", "paper", "salt", "wool")
_MONTHS = ("January", "March", "April", "June", "August", "October", "November", "December")
_WORDINGS = (
    (
        " The office in {name} bought {number} tons of {thing}.",
        " In {name} the office bought",
        " {number} tons of {thing}.",
    ),
    (" {name} received its charter in {month} {year}.", " The charter of {name} was received in", " {month} {year}."),
    (" Room {number} is where Mr. {name} keeps the {thing}.", " Mr. {name} keeps the {thing} in room", " {number}."),
    (
        " The account of {name} was closed with {number} dollars.",
        " When it was closed, the account of {name} held",
        " {number} dollars.",
    ),
    (" Captain {name} sailed in {month} with a cargo of {thing}.", " The cargo of Captain {name} was", " {thing}."),
)
"""Statements, questions and answers; no task of the harness is worded so."""


class Fact(NamedTuple):
    """A fact as token ids: what is stated, and what is asked and answered later."""

    statement: list[int]
    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class FactWriter:
    """Draws facts.

    Attributes:
        tokenizer: of the decoder.
    """

    tokenizer: PreTrainedTokenizerBase

    def draw(self, generator: torch.Generator) -> Fact:
        """Return a fact."""

        def one_of(count: int) -> int:
            return int(torch.randint(count, (1,), generator=generator))

        values = {
            "name": _NAMES[one_of(len(_NAMES))],
            "thing": _THINGS[one_of(len(_THINGS))],
            "month": _MONTHS[one_of(len(_MONTHS))],
            "number": str(10 + one_of(990)),
            "year": str(1700 + one_of(300)),
        }
        texts = [part.format(**values) for part in _WORDINGS[one_of(len(_WORDINGS))]]
        return Fact(*encode_texts(self.tokenizer, texts))


def with_fact(
    ids: Int[Tensor, " tokens"], fact: Fact, chunk_length: int, generator: torch.Generator
) -> tuple[Int[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Return a row with a fact stated before the last chunk and asked for in the last one; True for the answer.

    Raises:
        ConfigError: a chunk is shorter than the fact.
    """
    last, asked = len(ids) - chunk_length, [*fact.question, *fact.answer]
    longest = max(len(fact.statement), len(asked))
    if chunk_length < longest:
        raise ConfigError(
            f"chunk_length ({chunk_length}) is shorter than a fact ({longest} tokens); set fact_share to 0."
        )
    stated_at = int(torch.randint(last - len(fact.statement) + 1, (1,), generator=generator))
    asked_at = last + int(torch.randint(chunk_length - len(asked) + 1, (1,), generator=generator))
    row, answer = ids.clone(), torch.zeros_like(ids, dtype=torch.bool)
    row[stated_at : stated_at + len(fact.statement)] = torch.tensor(fact.statement)
    row[asked_at : asked_at + len(asked)] = torch.tensor(asked)
    answer[asked_at + len(fact.question) : asked_at + len(asked)] = True
    return row, answer


def read_again(ids: Int[Tensor, " tokens"], chunk_length: int, generator: torch.Generator) -> Int[Tensor, " tokens"]:
    """Return a row whose last chunk is one of those before it once more."""
    chunk = int(torch.randint(len(ids) // chunk_length - 1, (1,), generator=generator))
    return torch.cat([ids[:-chunk_length], ids[chunk * chunk_length : (chunk + 1) * chunk_length]])
