"""Answers about documents: read as memories, beside what a sceptic would read instead.

OMP_NUM_THREADS=1 python -m benchmarks.ask_documents --decoder PATH_OR_HUB_ID

Facts are planted in documents, and each is asked for by another wording. The decoder chooses one of eight words by
their likelihood, and gives an answer of its own, which is right where it contains the word. Beside `ask` stand its own
prompt without memories, the found passages alone and the last tokens alone, with as many decoder inputs as `ask` has,
and all tokens of the right document.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import tyro
from rich.progress import track

from benchmarks.planted_facts import percent
from benchmarks.source import Source
from memlm.data import encode_texts
from memlm.data.conversation import behind_passages
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.errors import DataError
from memlm.models.slots import MemoryDecoder
from memlm.session import AskSettings, DocumentSession

_CHOICES = 8
WORDINGS = (
    ("The password of {name} was {word}.", "What was the password of {name}?"),
    ("In the ledger, {name} is entered under the word {word}.", "Under which word does the ledger enter {name}?"),
    ("The ship of {name} was called the {word}.", "What was the ship of {name} called?"),
    ("{name} wrote the word {word} on the wall.", "Which word did {name} write on the wall?"),
    ("The letter from {name} spoke only of a {word}.", "Of what did the letter from {name} speak?"),
    ("{name} paid for the meal with a {word}.", "With what did {name} pay for the meal?"),
    ("A picture of a {word} hung above the desk of {name}.", "What was in the picture above the desk of {name}?"),
    ("The horse of {name} answers to {word}.", "To which name does the horse of {name} answer?"),
    ("The parcel for {name} held a {word}.", "What did the parcel for {name} hold?"),
)


@dataclass(frozen=True)
class Options(Source):
    """A decoder, documents and sizes."""

    num_documents: int = 10
    """Documents that are read."""
    tokens: int = 4000
    """Tokens of each document, at most."""
    questions: int = 50
    """Questions in all."""
    absent: int = 0
    """Questions about facts that no document states, to see how well support tells them from the others."""
    ways: tuple[str, ...] = (
        *("ask", "the same prompt alone", "memories only", "passages only", "last tokens", "the right document"),
        "nothing",
    )
    """Ways to read the documents."""
    seed: int = 0
    """Seed of the facts."""
    reading: AskSettings = field(default_factory=AskSettings)
    """How `ask` reads documents."""


Subject = tuple[str, tuple[str, str]]
"""A name, and a wording of a statement and its question."""


class Fact(NamedTuple):
    """A fact in a document.

    Attributes:
        document: number of the document.
        question: asks for the word.
        words: the words to choose from.
        right: index of the word that the document states.
    """

    document: int
    question: str
    words: tuple[str, ...]
    right: int


def planted(texts: Sequence[str], options: Options) -> tuple[list[str], list[Fact]]:
    """Return texts with a fact behind a sentence each, and the facts."""
    draw = random.Random(options.seed)  # noqa: S311 (places, not secrets)
    sentences, facts = [text.split(". ") for text in texts], list[Fact]()
    for name, (statement, question) in subjects(options)[0]:
        document, words = draw.randrange(len(texts)), draw.sample(TEST_WORDS, _CHOICES)
        right = draw.randrange(_CHOICES)
        fact = statement.format(name=name, word=words[right]).removesuffix(".")
        sentences[document].insert(draw.randrange(1, max(2, len(sentences[document]))), fact)
        facts.append(Fact(document, question.format(name=name), tuple(words), right))
    return [". ".join(parts) for parts in sentences], facts


def subjects(options: Options) -> tuple[list[Subject], list[Subject]]:
    """Return the names and wordings of facts that are stated, and of those that are not.

    Raises:
        DataError: there are fewer names and wordings than facts.
    """
    every = [(name, wording) for name in TEST_NAMES for wording in WORDINGS]
    if options.questions + options.absent > len(every):
        raise DataError(f"questions and absent ({options.questions + options.absent}) must not exceed {len(every)}.")
    drawn = random.Random(options.seed).sample(every, options.questions + options.absent)  # noqa: S311
    return drawn[: options.questions], drawn[options.questions :]


class Result(NamedTuple):
    """Whether a question was answered, by choice and in the decoder's own words, what was read, and the support."""

    chosen: bool
    said: bool
    inputs: int
    support: float


Way = Callable[[Fact], Result]


def ways_to_read(model: MemoryDecoder, texts: Sequence[str], options: Options) -> Mapping[str, Way]:
    """Return the ways by name."""
    session = DocumentSession(model, options.reading)
    for number, text in enumerate(texts):
        session.read(text, name=str(number))
    alone = DocumentSession(model, options.reading)
    memories_only = replace(options.reading, passages=0)

    @cache
    def ask(fact: Fact) -> Result:
        return answered(session.fork(), fact, fact.question)

    def shown(text_of: Callable[[Fact], str], fact: Fact) -> Result:
        return answered(alone.fork(), fact, behind_passages(list(filter(None, [text_of(fact)])), fact.question))

    def prompted(fact: Fact) -> str:
        return "\n\n".join(
            passage.text.strip() for passage in session.passages(fact.question)[: options.reading.passages]
        )

    def passages(fact: Fact) -> str:
        return within([passage.text for passage in session.passages(fact.question)], ask(fact).inputs, model)

    return {
        "ask": ask,
        "the same prompt alone": partial(shown, prompted),
        "memories only": lambda fact: answered(session.fork(memories_only), fact, fact.question),
        "passages only": partial(shown, passages),
        "last tokens": partial(shown, lambda fact: last("\n\n".join(texts), ask(fact).inputs, model)),
        "the right document": partial(shown, lambda fact: texts[fact.document]),
        "nothing": partial(shown, lambda fact: ""),
    }


def answered(session: DocumentSession, fact: Fact, question: str) -> Result:
    """Return how a session answers."""
    nats = session.nats(question, [f"{word}." for word in fact.words])
    answer = session.ask(question, max_new_tokens=24)
    said = fact.words[fact.right] in answer.text.lower()
    return Result(int(np.argmin(nats)) == fact.right, said, answer.tokens + answer.memories, answer.support)


def support_line(model: MemoryDecoder, texts: Sequence[str], stated: Sequence[Result], options: Options) -> str:
    """Return how well the support of `ask` tells facts that are stated from facts that are not."""
    session, draw = DocumentSession(model, options.reading), random.Random(options.seed)  # noqa: S311
    for number, text in enumerate(texts):
        session.read(text, name=str(number))
    asked = [question.format(name=name) for name, (_, question) in subjects(options)[1]]
    facts = [Fact(0, question, tuple(draw.sample(TEST_WORDS, _CHOICES)), 0) for question in asked]
    without = [answered(session.fork(), fact, fact.question).support for fact in track(facts, "absent", transient=True)]
    within = [result.support for result in stated]
    higher = np.mean([(one > other) + (one == other) / 2 for one in within for other in without])
    return (
        f"support, median: {np.median(within):.2f} of {len(within)} stated facts, {np.median(without):.2f} of "
        f"{len(without)} absent ones; a stated one has the higher of two with probability {higher:.2f}"
    )


def within(passages: Sequence[str], tokens: int, model: MemoryDecoder) -> str:
    """Return as many passages as fit into a number of tokens, best first."""
    kept, left = list[str](), tokens
    for passage, ids in zip(passages, encode_texts(model.tokenizer, list(passages)), strict=True):
        if len(ids) > left:
            break
        kept.append(passage.strip())
        left -= len(ids)
    return "\n\n".join(kept)


def last(text: str, tokens: int, model: MemoryDecoder) -> str:
    """Return the last tokens of a text."""
    return model.tokenizer.decode(encode_texts(model.tokenizer, [text])[0][-tokens:])  # pyright: ignore


def main(options: Options) -> None:
    """Measure and print."""
    model = options.load()
    documents = options.documents()[: options.num_documents]
    rows = encode_texts(model.tokenizer, [document.text for document in documents])
    texts = [str(model.tokenizer.decode(row[: options.tokens])) for row in rows]
    texts, facts = planted(texts, options)
    every = ways_to_read(model, texts, options)
    print(f"{len(facts)} facts in {len(texts)} documents of up to {options.tokens} tokens, {options.split}")
    print("| | one of eight, % | in its own words, % | decoder inputs |\n|---|---|---|---|", flush=True)
    for name in options.ways:
        found = [every[name](fact) for fact in track(facts, description=name, transient=True)]
        columns = [np.array([x.chosen for x in found], float), np.array([x.said for x in found], float)]
        cells = [percent(column, np.ones(len(found)), np.arange(len(found))) for column in columns]
        print(f"| {name} | {' | '.join(cells)} | {np.mean([x.inputs for x in found]):.0f} |", flush=True)
    if options.absent:
        print(support_line(model, texts, [every["ask"](fact) for fact in facts], options))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(tyro.cli(Options))
