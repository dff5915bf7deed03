"""A long document, kept on disk as memories: time and memory of encoding, and facts found in it behind a budget.

OMP_NUM_THREADS=1 python -m benchmarks.long_document --decoder PATH_OR_HUB_ID

Documents are joined to one text of so many tokens, and facts are planted at several depths. A process of its own
reads the text as a stream and writes its memories to a store; its resident memory is measured after each part. Facts
are then asked for behind a budget of slots: one that uses the question, and one that reads all of the text alike.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
import tyro
from rich.progress import track

from benchmarks.ask_documents import WORDINGS, Fact, Result, answered
from benchmarks.planted_facts import percent
from benchmarks.source import Source
from benchmarks.store import resident_bytes
from memlm.data import encode_texts
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.models.slots import MemoryDecoder
from memlm.session import AskSettings, DocumentSession
from memlm.store import TextStore

_CHOICES = 8
_PIECE = 4096
"""Characters that are given to the store at once."""


@dataclass(frozen=True)
class Options(Source):
    """A decoder, documents and sizes."""

    tokens: int = 100_000
    """Tokens of the document, at least; documents are repeated where they have fewer."""
    depths: tuple[int, ...] = (0, 25, 50, 75, 100)
    """Places of the facts, in percent of the text."""
    facts: int = 4
    """Facts at each depth."""
    bits: int = 4
    """Bits of each stored number."""
    seed: int = 0
    """Seed of the facts."""
    reading: AskSettings = field(default_factory=AskSettings)
    """How documents are read where the question is used."""


class Written(NamedTuple):
    """Time and memory of encoding.

    Attributes:
        seconds: from the first token to the last memory on the disk.
        settled: resident bytes after a tenth of the text.
        peak: most resident bytes after that.
        bytes: of the store.
    """

    seconds: float
    settled: int
    peak: int
    bytes: int


def joined(model: MemoryDecoder, options: Options) -> str:
    """Return a text of so many tokens."""
    parts, left = list[str](), options.tokens
    documents = options.documents()
    while left > 0:
        for document in documents:
            [ids] = encode_texts(model.tokenizer, [document.text])
            parts.append(document.text)
            left -= len(ids)
            if left <= 0:
                break
    return "\n\n".join(parts)


def planted(text: str, options: Options) -> tuple[str, list[tuple[int, Fact]]]:
    """Return the text with facts behind sentences at each depth, and the facts with their depths."""
    draw, sentences = random.Random(options.seed), text.split(". ")  # noqa: S311 (places, not secrets)
    subjects = draw.sample([(n, w) for n in TEST_NAMES for w in WORDINGS], len(options.depths) * options.facts)
    facts, places = list[tuple[int, Fact]](), list[tuple[int, str]]()
    for number, (name, (statement, question)) in enumerate(subjects):
        depth, words = options.depths[number // options.facts], draw.sample(TEST_WORDS, _CHOICES)
        right = draw.randrange(_CHOICES)
        place = 1 + round(depth / 100 * (len(sentences) - 2))
        places.append((place, statement.format(name=name, word=words[right]).removesuffix(".")))
        facts.append((depth, Fact(0, question.format(name=name), tuple(words), right)))
    for place, sentence in sorted(places, reverse=True):
        sentences.insert(place, sentence)
    return ". ".join(sentences), facts


def write(decoder: str, text: str, folder: str, bits: int) -> Written:
    """Write the memories of a text to a new store, and measure."""
    torch.set_grad_enabled(False)
    held: list[int] = []
    done = [0]

    def watch(size: int, _: int) -> None:
        done[0] += size
        if done[0] > len(text) // 10:
            held.append(resident_bytes())

    pieces = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
    with TextStore.open(folder, decoder, write=True, bits=bits, tokens_per_memory=8) as store:  # pyright: ignore
        began = time.perf_counter()
        list(store.add([("text", pieces)], progress=watch))
        seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return Written(seconds, held[0], max(held), size)


def apart(decoder: str, text: str, folder: str, bits: int) -> Written:
    """Write in a process of its own, so that only its memory is measured."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(write, (decoder, text, folder, bits))


def first_token_seconds(session: DocumentSession, question: str) -> float:
    """Return the seconds from a question to the first token of its answer, with all memories on the disk."""
    began = time.perf_counter()
    session.fork().ask(question, max_new_tokens=1)
    return time.perf_counter() - began


def rows_of(facts: Sequence[tuple[int, Fact]], found: Sequence[Result], options: Options) -> Iterator[str]:
    """Yield the cells of a way: for each depth, and for all facts, how many were chosen and said, in percent."""
    for depth in (*options.depths, None):
        kept = [result for (place, _), result in zip(facts, found, strict=True) if depth in (place, None)]
        ones, numbers = np.ones(len(kept)), np.arange(len(kept))
        columns = [np.array([getattr(result, name) for result in kept], float) for name in ("chosen", "said")]
        yield " / ".join(percent(column, ones, numbers) for column in columns)


def main(options: Options) -> None:
    """Measure and print."""
    model = options.load()
    text, facts = planted(joined(model, options), options)
    every = replace(options.reading, dense_chunks=0, passages=0)
    with TemporaryDirectory() as folder:
        quarter = apart(options.decoder, text[: len(text) // 4], f"{folder}/quarter", options.bits)
        whole = apart(options.decoder, text, f"{folder}/whole", options.bits)
        for name, found in (("a quarter", quarter), ("all", whole)):
            settled, peak, size = (x / 2**20 for x in (found.settled, found.peak, found.bytes))
            held = f"{settled:.0f} MiB resident after a tenth, {peak:.0f} MiB at most"
            print(f"{name}: encoded in {found.seconds:.1f} s; {held}; {size:.1f} MiB on disk", flush=True)
        heads = [f"{depth} %" for depth in options.depths]
        print(f"chosen / said, % of {options.facts} facts at each depth, {len(facts)} in all, at most ", end="")
        print(f"{options.reading.slots} slots\n| | {' | '.join(heads)} | all | first token, s |")
        print("|---" * (len(heads) + 3) + "|", flush=True)
        with TextStore.open(f"{folder}/whole", options.decoder) as store:
            for name, settings in (("with the question", options.reading), ("all alike", every)):
                session = DocumentSession(store.codec.model, settings)  # pyright: ignore
                session.read_stored(store, "text")
                seconds = first_token_seconds(session, facts[0][1].question)
                results = [
                    answered(session.fork(), fact, fact.question) for _, fact in track(facts, name, transient=True)
                ]
                print(f"| {name} | {' | '.join(rows_of(facts, results, options))} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(tyro.cli(Options))
