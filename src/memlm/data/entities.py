"""Entities that may say something of a person: names, addresses, card-like numbers, dates and the like.

Patterns alone find them, so that the same text has the same entities everywhere. A stretch of text is of one kind: the
first of KINDS that matches it. Patterns of a user are searched in the whole text beside them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import regex

from memlm.errors import ConfigError, one_line, shown

_MONTHS = (
    "Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|"
    "Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?"
)
_DAY = "(?:0?[1-9]|[12][0-9]|3[01])"
_YEAR = r"(?:,? ?(?:1[0-9]|20)[0-9]{2}\b)"
_DATE = re.compile(
    r"(?<![\w./-])(?:"
    rf"[0-9]{{4}}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    rf"|{_DAY}([./-])(?:{_DAY})\1(?:[0-9]{{4}}|[0-9]{{2}})"
    rf"|{_DAY}(?:st|nd|rd|th)? (?:of )?(?:{_MONTHS})\b\.?{_YEAR}?"
    rf"|(?:{_MONTHS})\b\.? {_DAY}(?:st|nd|rd|th)?\b{_YEAR}?"
    r")(?![\w/-])"
)
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_CARD = re.compile(r"(?<![\w-])[0-9](?:[ -]?[0-9]){12,18}(?![ -]?[0-9])")
_PHONE = re.compile(r"(?<![\w+.,])(?:\+|\(\+?)?[0-9](?:[ ./()-]{0,2}[0-9]){6,14}(?![0-9])")
_YEARS = re.compile(r"[0-9]{4}[-/ ][0-9]{4}")
_NUMBER = re.compile(r"(?<![\w.,])[0-9](?:[0-9.,]*[0-9])?")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_TITLES = frozenset(("Dr", "Mr", "Mrs", "Ms", "Prof", "St"))
_DAYS = frozenset(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"))
_SENTENCE_ENDS, _BETWEEN = ".!?\n", " \t\"'“”‘’([«"
_TAKEN = "_"
"""Character in the place of what another kind has matched already; it is neither a letter nor a digit nor a space."""
_DIGITS_ALONE = frozenset(("cards", "phones"))
"""Kinds of which only the digits are compared."""
_SEPARATORS = r"[\s().+/-]{0,3}"
_MOST_PATTERNS, _LONGEST_PATTERN, _LONGEST_NAME = 16, 500, 40
_SECONDS = 1.0
"""Seconds that a user's pattern may search in one text."""


class Entity(NamedTuple):
    """An entity of a text.

    Attributes:
        kind: one of KINDS, or the name of a user's pattern.
        text: as it stands in the text.
        start: its first character.
        end: the character behind it.
    """

    kind: str
    text: str
    start: int
    end: int

    @property
    def same(self) -> tuple[str, str]:
        """The kind and the normalised text, which equal entities share."""
        return self.kind, _digits(self.text) if self.kind in _DIGITS_ALONE else normalised(self.text)

    def appears_in(self, text: str) -> bool:
        """Return whether a text has this entity, from the first to the last character, after normalisation."""
        if self.kind in _DIGITS_ALONE:
            number = _SEPARATORS.join(_digits(self.text))
            return re.search(rf"(?<![0-9]){number}(?![0-9])", text) is not None
        return f" {normalised(self.text)} " in f" {normalised(text)} "


def normalised(text: str) -> str:
    """Return a text without case and accents, with one space between words and signs, wherever spaces stood before."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[^\W_]+|\S", plain))


def _digits(text: str) -> str:
    return re.sub(r"[^0-9]", "", text)


@dataclass(frozen=True)
class EntityKinds:
    """The kinds of entities that are looked for.

    Attributes:
        own: patterns of the user by name.
    """

    own: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, patterns: Sequence[str]) -> EntityKinds:
        """Return the built-in kinds and those of patterns, each NAME=REGEX.

        Raises:
            ConfigError: too many or too long patterns, a name that is taken, or no regular expression.
        """
        if len(patterns) > _MOST_PATTERNS:
            raise ConfigError(f"{len(patterns)} patterns are more than {_MOST_PATTERNS}; join some of them with '|'.")
        own: dict[str, Any] = {}
        for pattern in patterns:
            name, found = _compiled(pattern)
            if name in own or name in KINDS:
                raise ConfigError(f"the pattern name '{name}' is taken; give another name than {', '.join(KINDS)}.")
            own[name] = found
        return cls(own)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all kinds."""
        return (*KINDS, *self.own)

    def find(self, text: str) -> list[Entity]:
        """Return the entities of a text, by kind.

        Raises:
            ConfigError: a user's pattern takes too long on this text.
        """
        found: list[Entity] = []
        left = text
        for kind, spans in KINDS.items():
            for start, end in list(spans(left)):
                found.append(Entity(kind, text[start:end], start, end))
                left = left[:start] + _TAKEN * (end - start) + left[end:]
        return found + [entity for name, pattern in self.own.items() for entity in _matches(name, pattern, text)]


def _compiled(given: str) -> tuple[str, Any]:
    name, sign, pattern = given.partition("=")
    if not sign or not pattern or not re.fullmatch(r"[A-Za-z][\w-]*", name) or len(name) > _LONGEST_NAME:
        raise ConfigError(f"a pattern ({shown(given)}) must be NAME=REGEX, as in invoices='INV-[0-9]{{6}}'.")
    if len(pattern) > _LONGEST_PATTERN:
        raise ConfigError(f"the pattern '{name}' has {len(pattern)} characters, more than {_LONGEST_PATTERN}.")
    try:
        found = regex.compile(pattern)
        empty = found.search("", timeout=_SECONDS) is not None
    except (regex.error, TimeoutError, RecursionError, OverflowError, MemoryError, ValueError) as error:
        raise ConfigError(f"the pattern '{name}' is no regular expression ({one_line(str(error))}).") from error
    if empty:
        raise ConfigError(f"the pattern '{name}' matches where nothing stands; let it ask for a character at least.")
    return name, found


def _matches(name: str, pattern: Any, text: str) -> Iterator[Entity]:
    try:
        for match in pattern.finditer(text, timeout=_SECONDS):
            if match[0].strip():
                yield Entity(name, match[0], *match.span())
    except TimeoutError:
        raise ConfigError(
            f"the pattern '{name}' takes more than {_SECONDS:g} s on a text of {len(text)} characters; "
            "make it simpler, without repetitions inside repetitions."
        ) from None


def passes_luhn(text: str) -> bool:
    """Return whether the digits of a text have the check digit of payment cards (ISO/IEC 7812)."""
    digits = [int(digit) for digit in reversed(_digits(text))]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _spans(pattern: re.Pattern[str], holds: Callable[[str], bool] = bool) -> Callable[[str], Iterator[tuple[int, int]]]:
    return lambda text: (match.span() for match in pattern.finditer(text) if holds(match[0]))


def _is_phone(text: str) -> bool:
    """Return whether digits look like a phone number: written with a prefix or in groups, and no pair of years."""
    grouped = re.search(r"[ ()/-]", text) is not None or text.count(".") > 1
    return (text[0] in "+(0" or grouped) and not _YEARS.fullmatch(text)


def _names(text: str) -> Iterator[tuple[int, int]]:
    """Yield runs of capitalised words; a word that begins a sentence belongs to none."""
    run: list[re.Match[str]] = []
    for word in _WORD.finditer(text):
        proper = _is_proper(word[0]) and not _begins_sentence(text, word.start())
        if run and not (proper and text[run[-1].end() : word.start()] == " "):
            yield run[0].start(), run[-1].end()
            run = []
        run += [word] if proper else []
    if run:
        yield run[0].start(), run[-1].end()


def _is_proper(word: str) -> bool:
    return word[0].isupper() and not word.isupper() and word not in _TITLES and word not in _DAYS


def _begins_sentence(text: str, start: int) -> bool:
    before = text[max(0, start - 40) : start].rstrip(_BETWEEN)
    if not before:
        return True
    return before[-1] in _SENTENCE_ENDS and not before[:-1].endswith(tuple(_TITLES))


KINDS: Final[Mapping[str, Callable[[str], Iterator[tuple[int, int]]]]] = {
    "emails": _spans(_EMAIL),
    "cards": _spans(_CARD, passes_luhn),
    "dates": _spans(_DATE),
    "phones": _spans(_PHONE, _is_phone),
    "numbers": _spans(_NUMBER),
    "names": _names,
}
"""Functions that yield the first character and the end of each entity of a kind, in the order of the search."""
