"""Entities of texts: what counts as one, when two are the same, and patterns of users that hang on no text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlm.data import made_up_notes
from memlm.data.entities import KINDS, Entity, EntityKinds, passes_luhn
from memlm.errors import ConfigError

NOTHING = EntityKinds()
CASES: dict[str, list[tuple[str, str]]] = {
    "Call Mary Jones-Smith, and On Monday call Dr. José Álvarez.": [
        ("names", "Mary Jones-Smith"),
        ("names", "On"),
        ("names", "José Álvarez"),
    ],
    "Mary called. Yesterday he met IBM in winter.": [],
    "write to ann.lee+x@mail.example.org, not to ann@local": [("emails", "ann.lee+x@mail.example.org")],
    "card 4242-4242-4242-4242 or 4242424242424242": [("cards", "4242-4242-4242-4242"), ("cards", "4242424242424242")],
    "on 2024-02-29, 3/4/21, 12 March 2021, March 5th, 2019 and 7 May": [
        ("dates", "2024-02-29"),
        ("dates", "3/4/21"),
        ("dates", "12 March 2021"),
        ("dates", "March 5th, 2019"),
        ("dates", "7 May"),
    ],
    "at 2024-13-01 or 45/45/2020": [("phones", "2024-13-01"), ("phones", "45/45/2020")],
    "ring (201) 555-0123, +44 20 7946 0958 or 0301234567": [
        ("phones", "(201) 555-0123"),
        ("phones", "+44 20 7946 0958"),
        ("phones", "0301234567"),
    ],
    "in 1941-1945 it cost 84,500.50 for 7": [
        ("numbers", "1941"),
        ("numbers", "1945"),
        ("numbers", "84,500.50"),
        ("numbers", "7"),
    ],
}


@pytest.mark.parametrize("text", CASES)
def test_entities_are_found_and_each_stretch_is_of_one_kind(text: str) -> None:
    found = NOTHING.find(text)
    assert sorted(f[:2] for f in found) == sorted(CASES[text])
    assert all(text[f.start : f.end] == f.text for f in found)
    covered = [place for f in found for place in range(f.start, f.end)]
    assert len(covered) == len(set(covered))


def test_luhn_is_that_of_a_slow_sum() -> None:
    def slow(digits: str) -> bool:
        total = 0
        for place, digit in enumerate(reversed(digits)):
            value = int(digit) * (2 if place % 2 else 1)
            total += value // 10 + value % 10
        return total % 10 == 0

    for number in range(2000):
        assert passes_luhn(str(number)) == slow(str(number))
    assert passes_luhn("4242 4242 4242 4242")
    assert not passes_luhn("4242 4242 4242 4243")


@pytest.mark.parametrize(
    ("kind", "entity", "text", "appears"),
    [
        ("names", "José Álvarez", "we met jose   alvarez .", True),
        ("names", "José Álvarez", "we met jose alvarezzo", False),
        ("names", "José Álvarez", "we met alvarez jose", False),
        ("emails", "Ann.Lee@example.org", "to ann . lee @ example. org now", True),
        ("emails", "ann.lee@example.org", "to ann.lea@example.org now", False),
        ("cards", "4242 4242 4242 4242", "4242424242424242", True),
        ("cards", "4242 4242 4242 4242", "4242 - 4242 - 4242 - 4242,", True),
        ("cards", "4242 4242 4242 4242", "14242424242424242", False),
        ("phones", "(201) 555-0123", "( 201 ) 555 - 0123", True),
        ("phones", "(201) 555-0123", "(201) 555-0124", False),
        ("dates", "12 March 2021", "on 12 march 2021", True),
        ("dates", "2 March 2021", "on 12 march 2021", False),
        ("dates", "2021-03-12", "on 12 march 2021", False),
        ("numbers", "84,500", "pay 84, 500 now", True),
    ],
)
def test_an_entity_appears_from_its_first_to_its_last_character(
    kind: str, entity: str, text: str, *, appears: bool
) -> None:
    assert Entity(kind, entity, 0, 0).appears_in(text) is appears


@given(st.text(alphabet="aZ 9.@-+(/é_\n", max_size=60))
def test_every_entity_appears_in_its_own_text(text: str) -> None:
    for found in NOTHING.find(text):
        assert found.appears_in(found.text)
        assert found.same == Entity(found.kind, found.text.upper(), 0, 0).same or "é" in text


def test_hostile_texts_take_no_time() -> None:
    began = time.monotonic()
    for text in ("1 2 3-" * 5000, "Aa " * 10000, "a.@" * 10000, "a@" + "a-" * 10000, "(+" * 10000, "9" * 25000):
        NOTHING.find(text)
    assert time.monotonic() - began < 20


def test_patterns_of_a_user_are_kinds_of_their_own() -> None:
    kinds = EntityKinds.of(["invoices=INV-[0-9]{4}", "codes=(?i)[a-z]{2}[0-9]{2}\\b"])
    assert kinds.names == (*KINDS, "invoices", "codes")
    found = kinds.find("INV-1234 of ab12")
    assert {f[:2] for f in found} >= {("invoices", "INV-1234"), ("codes", "ab12")}
    assert found[-1].appears_in("of AB12.")


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["invoices"], "NAME=REGEX"),
        (["=x"], "NAME=REGEX"),
        (["a b=x"], "NAME=REGEX"),
        (["x="], "NAME=REGEX"),
        ([f"{'x' * 41}=x"], "NAME=REGEX"),
        (["x=("], "no regular expression"),
        (["x=a*"], "matches where nothing stands"),
        ([f"x={'a' * 501}"], "501 characters, more than 500"),
        (["names=x"], "'names' is taken"),
        (["x=a", "x=b"], "'x' is taken"),
        ([f"x{i}=a" for i in range(17)], "17 patterns are more than 16"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused_in_one_line(patterns: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        EntityKinds.of(patterns)
    assert "\n" not in str(caught.value)


def test_a_pattern_that_runs_away_is_stopped() -> None:
    kinds = EntityKinds.of(["slow=(?:a|a|aa)+(?:b|c)\\Z"])
    began = time.monotonic()
    with pytest.raises(ConfigError, match="'slow' takes more than 1 s on a text of 4000 characters"):
        kinds.find("a" * 4000)
    assert time.monotonic() - began < 10


def test_made_up_notes_have_what_an_audit_looks_for_and_reach_nobody() -> None:
    notes = made_up_notes(400, seed=1)
    assert notes == made_up_notes(400, seed=1) != made_up_notes(400, seed=2)
    found = [entity for note in notes for entity in NOTHING.find(note.text)]
    counts = {kind: sum(entity.kind == kind for entity in found) for kind in KINDS}
    assert all(counts[kind] > 100 for kind in ("names", "emails", "cards", "dates", "phones"))
    assert counts["numbers"] == 0
    assert all(e.text.startswith("9999") for e in found if e.kind == "cards")
    assert all("555-01" in e.text for e in found if e.kind == "phones")
    assert all(e.text.endswith("@example.org") for e in found if e.kind == "emails")
    known = {e.same for note in notes[:200] for e in NOTHING.find(note.text)}
    again = [e.same in known for note in notes[200:] for e in NOTHING.find(note.text) if e.kind == "names"]
    assert 20 < sum(again) < len(again) - 20
