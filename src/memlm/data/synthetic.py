"""Synthetic texts: random tokens without structure, texts with planted facts, and notes about made-up people."""

from __future__ import annotations

import random
from collections.abc import Collection
from datetime import date, timedelta
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memlm.data.corpus import Document
from memlm.data.entities import passes_luhn
from memlm.data.packing import PackedRows
from memlm.errors import DataError

TEST_NAMES = (
    *("Alice", "Martin", "Clara", "Victor", "Nora", "Oscar", "Helen", "Simon", "Julia", "Frank", "Rosa", "Edgar"),
    *("Anna", "Peter", "Laura", "Henry", "Emma", "Jacob", "Grace", "Louis", "Ruth", "Walter", "Irene", "Hugo"),
)
TEST_WORDS = (
    *("river", "garden", "silver", "mountain", "harbor", "winter", "bridge", "orange", "forest", "window", "castle"),
    *("summer", "letter", "island", "engine", "market", "copper", "valley", "candle", "meadow", "thunder", "basket"),
    *("village", "cotton", "lantern", "desert", "anchor", "pepper", "marble", "falcon", "saddle", "temple"),
)
"""Names and words that measurements of recall ask for; facts of training rows never hold them."""


def random_rows(
    num_rows: int, row_length: int, vocab_size: int, *, seed: int, exclude: Collection[int] = ()
) -> PackedRows:
    """Return rows of tokens drawn uniformly from ids below `vocab_size` without `exclude`; every row is a document.

    Raises:
        DataError: all token ids are excluded.
    """
    allowed = torch.tensor([i for i in range(vocab_size) if i not in set(exclude)])
    if not len(allowed):
        raise DataError(f"all {vocab_size} token ids are excluded; leave at least one.")
    generator = torch.Generator().manual_seed(seed)
    ids = allowed[torch.randint(len(allowed), (num_rows, row_length), generator=generator)]
    names = tuple(f"random-{i}" for i in range(num_rows))
    return PackedRows(ids, torch.ones_like(ids), torch.arange(num_rows), names)


class Planted(NamedTuple):
    """Texts with planted facts.

    Attributes:
        input_ids: (rows, tokens).
        target_mask: (rows, tokens), True for the tokens of facts to be predicted.
    """

    input_ids: Int[Tensor, "rows tokens"]
    target_mask: Bool[Tensor, "rows tokens"]


def plant_pairs(
    input_ids: Int[Tensor, "rows tokens"], *, pairs: int, allowed: Collection[int], generator: torch.Generator
) -> Planted:
    """Plant pairs of a key and a value, both from `allowed`, at random positions of each row that do not overlap.

    Values are the targets.

    Raises:
        DataError: the text has no room for the pairs, or no token ids are allowed.
    """
    rows, tokens = input_ids.shape
    if not 1 <= pairs <= tokens // 2 or not allowed:
        raise DataError(f"{pairs} pairs of {len(allowed)} tokens do not fit {tokens} tokens of text.")
    keys = torch.stack([torch.randperm(tokens // 2, generator=generator)[:pairs] for _ in range(rows)]) * 2
    ids = torch.tensor(sorted(allowed))
    drawn = ids[torch.randint(len(ids), (rows, pairs, 2), generator=generator)]
    planted = input_ids.scatter(1, keys, drawn[..., 0]).scatter(1, keys + 1, drawn[..., 1])
    return Planted(planted, torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, keys + 1, True))


def plant_number(
    input_ids: Int[Tensor, "rows tokens"], *, digits: Collection[int], length: int, generator: torch.Generator
) -> Planted:
    """Plant a number of `length` random digits, given by their token ids, at a random position in each row.

    The digits are the targets.

    Raises:
        DataError: the number is longer than the text, or there are no digits.
    """
    rows, tokens = input_ids.shape
    if not 1 <= length <= tokens or not digits:
        raise DataError(f"a number of {length} digits ({len(digits)} known) does not fit {tokens} tokens of text.")
    ids = torch.tensor(sorted(digits))
    starts = torch.randint(tokens - length + 1, (rows, 1), generator=generator)
    positions = starts + torch.arange(length)
    drawn = ids[torch.randint(len(ids), (rows, length), generator=generator)]
    target_mask = torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, positions, True)
    return Planted(input_ids.scatter(1, positions, drawn), target_mask)


def ordinary_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens that are not special."""
    special = set(tokenizer.all_special_ids)
    return [i for i in range(len(tokenizer)) if i not in special]


def digit_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of the tokens of single digits; digits that are not one token are left out."""
    found = (tokenizer.encode(str(digit), add_special_tokens=False) for digit in range(10))
    return [ids[0] for ids in found if len(ids) == 1]


_FIRST = (
    *("Alma", "Boris", "Celia", "Dario", "Edith", "Felix", "Gina", "Harald", "Ines", "Jonas", "Karin", "Leon"),
    *("Mona", "Nils", "Olga", "Pedro", "Quinn", "Ruben", "Sonja", "Tariq", "Ursula", "Vasco", "Wanda", "Yusuf"),
)
_LAST = (
    *("Abbott", "Brandt", "Castro", "Dalton", "Ekberg", "Fowler", "Gruber", "Hansen", "Ito", "Jensen", "Keller"),
    *("Lindgren", "Moretti", "Novak", "Okafor", "Petrov", "Quist", "Rossi", "Sato", "Tanaka", "Ulrich", "Vargas"),
)
_SYLLABLES = ("bel", "cor", "dan", "fer", "gor", "hul", "jam", "kes", "lor", "mir", "nov", "pel", "rud", "sten", "tov")
_ENDS = ("ek", "is", "man", "ova", "sen", "ti", "wick", "zak")
_TOPICS = (
    *("the broken boiler", "a late delivery", "her new glasses", "his knee after the operation", "the lease"),
    *("two missing parcels", "the school trip", "a refund for the chairs", "the noise at night", "an allergy to nuts"),
    *("the car that was towed", "a second opinion", "the wedding menu", "a leaking roof", "the lost keys"),
)
_NOTES = (
    "Spoke with {name} on {date} about {topic}. Wants to be called back at {phone}.",
    "On {date} we wrote to {email} about {topic}, and {name} agreed.",
    "Payment for {topic} came from {name}, card {card}, on {date}.",
    "The customer {name} asked about {topic}. Reach them by {email} or {phone}.",
    "Reminder: {topic} is due on {date}. Charge the card {card} and tell {name}.",
    "Visit by {name}, {date}. We talked of {topic}. The new number is {phone}.",
    "A complaint about {topic} came from {email}. Later {name} paid with {card}.",
)
_REGULARS = 400
"""People of whom several notes are written."""


def made_up_notes(count: int, *, seed: int = 0) -> list[Document]:
    """Return short notes about people who do not exist, to try an audit with.

    More than half of the notes are about people who are in other notes, too, with the same numbers. No number can reach
    or charge anyone: phone numbers are of the range 555-01xx, which is kept for fiction, addresses are of example.org,
    and card numbers begin with 9999, which no scheme issues, with a valid check digit.

    Args:
        count: number of notes; each is a document.
        seed: of everything in them.
    """
    draw = random.Random(seed)  # noqa: S311 (texts, not secrets)
    regulars = [_person(draw, known=True) for _ in range(_REGULARS)]
    notes: list[Document] = []
    for number in range(count):
        person = draw.choice(regulars) if draw.random() < 0.6 else _person(draw, known=False)
        day = date(2023, 1, 1) + timedelta(days=draw.randrange(730))
        form = f"{day.day} {day:%B %Y}" if draw.random() < 0.5 else day.isoformat()
        text = draw.choice(_NOTES).format(**person, date=form, topic=draw.choice(_TOPICS))
        notes.append(Document(f"note-{number}", text))
    return notes


def _person(draw: random.Random, *, known: bool) -> dict[str, str]:
    """Return name, phone number, address and card of a person; the names of unknown ones are made of syllables."""
    made = "".join(draw.choices(_SYLLABLES, k=2)).capitalize() + draw.choice(_ENDS)
    first, last = draw.choice(_FIRST), draw.choice(_LAST) if known else made
    digits = "9999" + "".join(str(draw.randrange(10)) for _ in range(11))
    digits += next(d for d in "0123456789" if passes_luhn(digits + d))
    return {
        "name": f"{first} {last}",
        "phone": f"({draw.randrange(201, 990)}) 555-01{draw.randrange(100):02}",
        "email": f"{first}.{last}{draw.randrange(100)}@example.org".lower(),
        "card": " ".join(digits[i : i + 4] for i in range(0, 16, 4)),
    }
