"""Words of texts, also in scripts that put no spaces between them."""

from __future__ import annotations

import re

# Thai, Lao, Burmese, Khmer, kana and Han
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
# behind a space that no end of a sentence and no quotation mark precedes
_NAME = re.compile(r"(?<=[^\W\d_] |[,;] )[^\W\d_a-z][^\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+")


def spaced(text: str) -> str:
    """Return a text with spaces between every two characters of scripts that have none."""
    return _UNSPACED.sub(_pairs, text)


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case; in scripts without spaces, every two characters."""
    return _WORD.findall(spaced(text).lower())


def name_words_of(text: str) -> set[str]:
    """Return words that are parts of names, in lower case: capitalised ones that do not begin a sentence."""
    return {found.lower() for found in _NAME.findall(text) if found[0].isupper()}


def _pairs(found: re.Match[str]) -> str:
    run = found[0]
    return f" {' '.join(run[i : i + 2] for i in range(max(1, len(run) - 1)))} "
