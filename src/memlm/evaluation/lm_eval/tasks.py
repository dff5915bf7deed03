"""Tasks for lm-evaluation-harness: random facts in held-out prose, with a question after a long context.

    memlm_recall   which of four words belongs to a name, stated early in the text     multiple choice
    memlm_write    the same, generated                                                 generate_until
    memlm_cloze    the last word of a sentence that occurs early in the text           loglikelihood
    memlm_prose    the prose itself                                                    loglikelihood_rolling

Each is a YAML file beside a JSONL file, so that `lm_eval --include_path` reads them too.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memlm.data import Document
from memlm.data.synthetic import TEST_NAMES, TEST_WORDS
from memlm.errors import DataError
from memlm.files import write_file_atomic

_CHOICES = 4
_SENTENCE = re.compile(r"[^.!?]+[.!?]")
_CLOZE = re.compile(r"(?:\S+ ){7,24}[a-z]{4,}\.")
"""A sentence of eight words or more that ends with a word of four letters or more."""
_MEAN: dict[str, Any] = {"aggregation": "mean", "higher_is_better": True}
_PERPLEXITY: dict[str, Any] = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
TASKS: dict[str, dict[str, Any]] = {
    "memlm_recall": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc", **_MEAN}],
    },
    "memlm_write": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{answer}}",
        "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "ignore_case": True, **_MEAN}],
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
    },
    "memlm_cloze": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": " {{answer}}",
        "metric_list": [{"metric": "acc", **_MEAN}, _PERPLEXITY],
    },
    "memlm_prose": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{context}}",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
            {"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
        ],
    },
}


def write_tasks(folder: Path, documents: Sequence[Document], *, questions: int, words: int, seed: int = 0) -> None:
    """Write all tasks to a folder.

    Args:
        folder: the folder, which may exist.
        documents: held-out prose.
        questions: the number of questions of each task, or of texts of memlm_prose.
        words: words of prose before each question.
        seed: the seed of facts and positions.

    Raises:
        DataError: the documents are shorter than `words`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)  # noqa: S311 - facts, no secrets
    prose = [_stretch(documents, words, draw) for _ in range(questions)]
    facts = [_recall(sentences, draw) for sentences in prose]
    rows_of = {
        "memlm_recall": facts,
        "memlm_write": facts,
        "memlm_cloze": [_cloze(sentences, draw) for sentences in prose],
        "memlm_prose": [{"context": "".join(sentences).strip()} for sentences in prose],
    }
    for name, rows in rows_of.items():
        data = folder / f"{name}.jsonl"
        write_file_atomic(data, "".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
            "test_split": "test",
            **TASKS[name],
            "metadata": {"version": 1.0},
        }
        write_file_atomic(folder / f"{name}.yaml", yaml.safe_dump(settings, sort_keys=False))


def _stretch(documents: Sequence[Document], words: int, draw: random.Random) -> list[str]:
    """Return consecutive sentences of one document, with at least `words` words in all."""
    for document in draw.sample(list(documents), len(documents)):
        sentences = _SENTENCE.findall(" ".join(document.text.split()))
        lengths = [len(sentence.split()) for sentence in sentences]
        last = next((i for i in range(len(lengths), -1, -1) if sum(lengths[i:]) >= words), None)
        if last is None:
            continue
        first = draw.randint(0, last)
        for end in range(first + 1, len(sentences) + 1):
            chosen = sentences[first:end]
            if sum(lengths[first:end]) >= words and _repeatable(chosen):
                return chosen
    longest = max((len(document.text.split()) for document in documents), default=0)
    raise DataError(
        f"the tasks need documents of {words} words with a sentence for a question, and the longest held-out one has "
        f"{longest}; lower --memory-after or give longer text (--text)."
    )


def _repeatable(sentences: Sequence[str]) -> list[str]:
    """Return the sentences of the first quarter that can be cloze questions."""
    early = [sentence.strip() for sentence in sentences[: max(1, len(sentences) // 4)]]
    return [sentence for sentence in early if _CLOZE.fullmatch(sentence)]


def _recall(sentences: Sequence[str], draw: random.Random) -> dict[str, Any]:
    name, choices = draw.choice(TEST_NAMES), draw.sample(TEST_WORDS, _CHOICES)
    label = draw.randrange(_CHOICES)
    fact = f" The secret word of {name} is {choices[label]}."
    place = draw.randint(1, max(1, len(sentences) // 4))
    text = "".join([*sentences[:place], fact, *sentences[place:]]).strip()
    return {
        "context": f"{text}\n\nThe secret word of {name} is",
        "choices": [f" {choice}" for choice in choices],
        "label": label,
        "answer": choices[label],
    }


def _cloze(sentences: Sequence[str], draw: random.Random) -> dict[str, Any]:
    sentence = draw.choice(_repeatable(sentences))
    known, _, answer = sentence.removesuffix(".").rpartition(" ")
    return {"context": f"{''.join(sentences).strip()}\n\nOnce more: {known}", "answer": answer}
