"""Turns of a conversation as token ids, worded by a tokenizer's chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from memlm.data.tokenizer import encode_texts

_MARK = "\ue000{number}\ue001"
"""Stands in a template for what someone said; these characters are of private use."""


class Turn(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str


def behind_passages(passages: Sequence[str], question: str) -> str:
    """Return what is said to the decoder: passages and the question, or the question alone where there is no passage.

    Small decoders answer more often from a text that is named so (LOG.md).
    """
    if not passages:
        return question
    return "\n\n".join([f"Text: {passages[0]}", *passages[1:], f"Question: {question}\nAnswer with words of the text."])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], question: str) -> list[int]:
    """Return the token ids of a conversation up to the answer of a question.

    What was said is encoded as text: markers of a template that a question or an answer contains have no effect. A
    tokenizer without a template gets lines that begin with "Question:" and "Answer:".

    Args:
        tokenizer: of the decoder.
        turns: earlier questions and their answers.
        question: the new question.
    """
    said = [text for turn in turns for text in turn] + [question]
    marks = [_MARK.format(number=number) for number in range(len(said))]
    ids: list[int] = []
    for piece in re.split(r"(\ue000\d+\ue001)", _frame(tokenizer, marks)):
        if piece.startswith("\ue000"):
            ids += encode_texts(tokenizer, [said[int(piece[1:-1])]])[0]
        elif piece:
            ids += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase, marks: list[str]) -> str:
    if tokenizer.chat_template is None:
        pairs = [f"\n\nQuestion: {q}\nAnswer:\n{a}" for q, a in zip(marks[:-1:2], marks[1::2], strict=True)]
        return "".join([*pairs, f"\n\nQuestion: {marks[-1]}\nAnswer:\n"])
    roles = ["user" if number % 2 == 0 else "assistant" for number in range(len(marks))]
    messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
