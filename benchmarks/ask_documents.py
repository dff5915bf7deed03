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

from benchmarks.context_gain import Source
from benchmarks.planted_facts import percent
from memlm.data import encode_texts
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.models.slots import MemoryDecoder
from memlm.session import AskSettings, DocumentSession

_CHOICES = 8
WORDINGS = (
    ("The password of {name} was {word}.", "What was the password of {name}?"),
    ("In the ledger, {name} is entered under the word {word}.", "Under which word does the ledger enter {name}?"),
    ("The ship of {name} was called the {word}.", "What was the ship of {name} called?"),
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
    ways: tuple[str, ...] = (
        *("ask", "the same prompt alone", "memories only", "passages only", "last tokens", "the right document"),
        "nothing",
    )
    """Ways to read the documents."""
    seed: int = 0
    """Seed of the facts."""
    reading: AskSettings = field(default_factory=AskSettings)
    """How `ask` reads documents."""


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
    subjects = [(name, wording) for name in TEST_NAMES for wording in WORDINGS]
    for name, (statement, question) in draw.sample(subjects, min(options.questions, len(subjects))):
        document, words = draw.randrange(len(texts)), draw.sample(TEST_WORDS, _CHOICES)
        right = draw.randrange(_CHOICES)
        fact = statement.format(name=name, word=words[right]).removesuffix(".")
        sentences[document].insert(draw.randrange(1, max(2, len(sentences[document]))), fact)
        facts.append(Fact(document, question.format(name=name), tuple(words), right))
    return [". ".join(parts) for parts in sentences], facts


class Result(NamedTuple):
    """Whether a question was answered, by choice and in the decoder's own words, and what was read."""

    chosen: bool
    said: bool
    inputs: int


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
        return answered(alone.fork(), fact, "\n\n".join(filter(None, [text_of(fact), fact.question])))

    def prompted(fact: Fact) -> str:
        return "\n\n".join(passage.text for passage in session.passages(fact.question)[: options.reading.passages])

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
    return Result(int(np.argmin(nats)) == fact.right, said, answer.tokens + answer.memories)


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
    model = MemoryDecoder.from_pretrained(options.decoder, dtype="float32")
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


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(tyro.cli(Options))
