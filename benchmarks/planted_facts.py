"""Facts that stand in old text, asked for behind memories of it, beside what a sceptic would read instead.

OMP_NUM_THREADS=1 python -m benchmarks.planted_facts --decoder PATH_OR_HUB_ID

A row is old text with a fact at a random place, a window of recent tokens, and a question. The decoder chooses one of
eight words by their likelihood; a word is recalled whole where each of its tokens is the most likely one. Names, words
and wordings are none of those that writers are trained with. A passage of the old text is also begun again, and of its
next tokens those are counted that the decoder ranks first, each behind the right ones before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from benchmarks.source import Source
from memlm.data import encode_texts
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.evaluation.memory.context_gain import ContextGainSettings, encodings, gain_rows
from memlm.evaluation.memory.contexts import BASELINES, nothing
from memlm.measurement.intervals import Units, ratio_interval, sum_by
from memlm.models.slots import MemoryDecoder, SlotMemories
from memlm.models.slots.answers import score_answers

_CHOICES = 8
_WORDINGS = (
    (" The secret word of {name} is {word}.", " The secret word of {name} is"),
    (" In the ledger, the word beside {name} is {word}.", " The word that the ledger has beside {name} is"),
    (" They agreed that {word} would be the password of {name}.", " The password of {name} was"),
)


_CUE, _PASSAGE = 16, 32
"""Tokens with which a passage is begun again, and tokens behind them that are counted."""


@dataclass(frozen=True)
class Options(Source):
    """A decoder, text and sizes."""

    modes: tuple[str, ...] = ("joint", "chunks")
    """Ways of encoding."""
    measure: ContextGainSettings = field(
        default_factory=lambda: ContextGainSettings(ratios=(4, 16), scored=1, baselines=("truncation",))
    )
    """Rows, contexts and ratios."""


class Questions(NamedTuple):
    """Facts in old text, as token ids.

    Attributes:
        old: old text of each row, with a fact.
        asked: recent tokens and the question.
        choices: the words to choose from, for each row.
        right: the index of the word that was stated.
        again: a cue and the passage behind it in old text, behind recent tokens, for each row.
        document: (rows,), the document of each row.
    """

    old: list[list[int]]
    asked: list[list[int]]
    choices: list[list[list[int]]]
    right: list[int]
    again: list[tuple[list[int], list[int]]]
    document: NDArray[np.int64]


def questions(model: MemoryDecoder, options: Options) -> Questions:
    """Return rows with facts."""
    settings = options.measure
    rows = gain_rows(options.documents(), model.tokenizer, settings)
    draw, found = random.Random(settings.seed), Questions([], [], [], [], [], rows.document)  # noqa: S311
    for ids in rows.ids.tolist():
        words, name = draw.sample(TEST_WORDS, _CHOICES), draw.choice(TEST_NAMES)
        right, (statement, question) = draw.randrange(_CHOICES), draw.choice(_WORDINGS)
        texts = [statement.format(name=name, word=words[right]), question.format(name=name)]
        stated, asked, *choices = encode_texts(model.tokenizer, [*texts, *(f" {word}" for word in words)])
        place = draw.randrange(settings.context - len(stated))
        old = [*ids[:place], *stated, *ids[place : settings.context - len(stated)]]
        recent = ids[settings.context : settings.context + settings.window]
        begun = draw.randrange(settings.context - _CUE - _PASSAGE + 1)
        scored = begun + _CUE
        found.old.append(old)
        found.asked.append([*recent, *asked])
        found.again.append(([*recent, *old[begun:scored]], old[scored : scored + _PASSAGE]))
        found.choices.append(choices)
        found.right.append(right)
    return found


class Recalled(NamedTuple):
    """What a decoder recalls of old text.

    Attributes:
        right: (rows,), 1 where the right word is the likeliest of eight.
        whole: (rows,), 1 where the right word is recalled whole.
        again: (rows,), the share of a passage's tokens that are ranked first.
    """

    right: Float[Tensor, " rows"]
    whole: Float[Tensor, " rows"]
    again: Float[Tensor, " rows"]


def recalled(model: MemoryDecoder, rows: Questions, part: range, memories: SlotMemories) -> Recalled:
    """Return what a decoder recalls behind memories of some rows."""
    found = score_answers(model, [rows.asked[row] for row in part], [rows.choices[row] for row in part], memories)
    right = torch.tensor([rows.right[row] for row in part], device=found.nats.device)
    whole = found.likeliest.all(-1).gather(1, right[:, None])[:, 0]
    cues, passages = zip(*(rows.again[row] for row in part), strict=True)
    again = score_answers(model, cues, [[passage] for passage in passages], memories).likeliest[:, 0].float().mean(1)
    return Recalled((found.nats.sum(-1).argmin(1) == right).float().cpu(), whole.float().cpu(), again.cpu())


def contexts(model: MemoryDecoder, old: list[list[int]], options: Options) -> Iterator[tuple[str, SlotMemories]]:
    """Yield what is read in place of old text, by name."""
    settings = options.measure
    joint = model.encode(old, mode="joint")
    yield "nothing", nothing(joint)
    yield "all tokens", joint.at(tokens_per_memory=1)
    baselines = {name: BASELINES[name](model, joint, old) for name in settings.baselines}
    ways = encodings(model, options.modes, untrained=settings.untrained)
    encoded = {name: way.encode(old) for name, way in ways.items()}
    for ratio in settings.ratios:
        for name, read in baselines.items():
            yield f"{name} / {ratio}", read(settings.context // ratio)
        for name, texts in encoded.items():
            memories = texts.at(tokens_per_memory=ratio)
            yield f"{name} / {ratio}", memories
            yield f"{name}, another text's / {ratio}", memories.rows(torch.arange(len(old)).roll(1))


def cell(values: NDArray[np.float64], counts: NDArray[np.float64], owner: NDArray[np.int64], form: str) -> str:
    """Return a ratio of sums, with its interval over the owners, such as documents, of the values."""
    if not counts.sum():
        return ""
    size = int(owner.max()) + 1
    found = ratio_interval(Units(sum_by(owner, values, size), sum_by(owner, counts, size), str(size)))
    text = f"{values.sum() / counts.sum():{form}}"
    return text if found.low is None or found.high is None else f"{text} [{found.low:{form}}, {found.high:{form}}]"


def percent(values: NDArray[np.float64], counts: NDArray[np.float64], owner: NDArray[np.int64]) -> str:
    """Return a ratio of sums in percent, as `cell` does."""
    return cell(100 * values, counts, owner, ".1f")


def main(options: Options) -> None:
    """Measure and print."""
    model = options.load()
    rows, settings = questions(model, options), options.measure
    found: dict[str, list[Recalled]] = {}
    starts = range(0, len(rows.old), settings.batch_size)
    for start in track(starts, description="reading rows", transient=True):
        part = range(start, min(start + settings.batch_size, len(rows.old)))
        for name, memories in contexts(model, [rows.old[row] for row in part], options):
            found.setdefault(name, []).append(recalled(model, rows, part, memories))
    print(f"{settings.context} old tokens, window {settings.window}, {len(rows.old)} facts, {options.split}")
    heads = ("one of eight, %", "of what all tokens add, %", "recalled whole, %", f"{_PASSAGE} tokens read again, %")
    print(f"| | {' | '.join(heads)} |\n" + "|---" * (len(heads) + 1) + "|")
    scores = {
        name: [torch.cat(column).double().numpy() for column in zip(*parts, strict=True)]
        for name, parts in found.items()
    }
    alone, full = scores["nothing"][0], scores["all tokens"][0]
    ones = np.ones_like(alone)
    for name, (right, whole, again) in scores.items():
        pairs = ((right, ones), (right - alone, full - alone), (whole, ones), (again, ones))
        print(f"| {name} | {' | '.join(percent(*pair, rows.document) for pair in pairs)} |")


if __name__ == "__main__":
    main(tyro.cli(Options))
