"""The privacy audit: which entities of a text appear in the text that was read back from its vector or memories.

An entity is *recovered* where it appears in the text that was read back, from its first to its last character, after
the normalisation of `data.entities`. Two floors say what that is worth: the text that is read from a blank vector (or
without memories), and the text that was read from another text's vector. Entities of training texts are counted apart
from unseen ones, since a decoder may know the former by heart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from memlm.data import Passages
from memlm.data.entities import Entity, EntityKinds
from memlm.errors import DataError
from memlm.evaluation.probe.verdict import above, percent
from memlm.measurement import GREEDY, DocumentTally, Measurement, measure_ratio
from memlm.measurement.intervals import MIN_UNITS

LEAST = 20
"""Entities of a kind below which there is no verdict."""
Status = Literal["recovered", "at the floor", "too few to judge", "inconclusive"]
FLOORS = ("blank_memory", "shuffled_memory")
_FLOOR_WORDS = {"blank_memory": "nothing", "shuffled_memory": "another text's vector"}


class TextsRead(NamedTuple):
    """Texts beside what was read back.

    Attributes:
        passages: the texts.
        read: what was read from the vector of each.
        blank: what was read from a blank vector in the place of each; None where there is no such reading.
    """

    passages: Passages
    read: Sequence[str]
    blank: Sequence[str] | None = None


@dataclass(frozen=True)
class Record:
    """An entity of a text, and where it was found.

    Attributes:
        entity: of the text.
        passage: number of the text.
        seen: whether training texts have it, too; None where nothing was trained.
        recovered: whether it appears in the text that was read back.
        floors: the same for the text that was read from a blank vector, and from another text's.
    """

    entity: Entity
    passage: int
    seen: bool | None
    recovered: bool
    floors: Mapping[str, bool]

    @property
    def group(self) -> str:
        """The group that it is counted in: seen, unseen, or all."""
        return "all" if self.seen is None else "seen" if self.seen else "unseen"


@dataclass(frozen=True)
class Row:
    """The finding of one kind of entities.

    Attributes:
        kind: of the entities.
        group: seen (in training texts, too), unseen, or all.
        status: what was found.
        reason: why there is no verdict; empty otherwise.
        recovered: share of entities that were recovered.
        floors: the same from a blank vector and from another text's.
        documents: that have such an entity.
    """

    kind: str
    group: str
    status: Status
    reason: str
    recovered: Measurement
    floors: Mapping[str, Measurement]
    documents: int

    @property
    def name(self) -> str:
        """The kind and the group, in words."""
        return self.kind if self.group == "all" else f"{self.group} {self.kind}"

    @property
    def count(self) -> str:
        """The number of recovered entities of all, in words."""
        return f"{round(self.recovered.value * self.recovered.count)} of {self.recovered.count}"

    @property
    def verdict(self) -> str:
        """The status, with its reason."""
        return f"{self.status} ({self.reason})" if self.reason else self.status

    def __str__(self) -> str:
        if self.status == "too few to judge":
            return f"{self.name}: {self.count}; {self.verdict}"
        own, floors = self.recovered, [f"{_FLOOR_WORDS[n]} gives {percent(m.value)}" for n, m in self.floors.items()]
        interval = "" if own.low is None or own.high is None else f" [{100 * own.low:.1f}, {100 * own.high:.1f}]"
        return f"{self.name}: {self.count}, {percent(own.value)}{interval}; {', '.join(floors)}: {self.verdict}"


@dataclass(frozen=True)
class Audit:
    """The entities of some texts, and which of them were recovered.

    Attributes:
        split: name of the texts.
        texts: the texts, and what was read back.
        records: every entity.
        kinds: names of the kinds that were looked for.
        unsure: why silence of this reading means nothing; empty where the reading works.
    """

    split: str
    texts: TextsRead
    records: Sequence[Record]
    kinds: Sequence[str]
    unsure: str = ""

    @classmethod
    def of(
        cls, texts: TextsRead, kinds: EntityKinds, *, split: str, training: Sequence[str] | None, unsure: str = ""
    ) -> Audit:
        """Look for the entities of texts in what was read back.

        Args:
            texts: the texts, and what was read back.
            kinds: of entities.
            split: name of the texts.
            training: texts that the reading was trained on; None where it was not trained.
            unsure: why silence of this reading means nothing; empty where the reading works.

        Raises:
            ConfigError: a user's pattern takes too long.
        """
        known = None if training is None else {entity.same for text in training for entity in kinds.find(text)}
        # half of all texts away, which is in another document where there are several
        another = [*texts.read[(half := len(texts.read) // 2) :], *texts.read[:half]]
        readings = {"shuffled_memory": another} | ({} if texts.blank is None else {"blank_memory": texts.blank})
        records = [
            Record(
                entity,
                number,
                None if known is None else entity.same in known,
                entity.appears_in(texts.read[number]),
                {name: entity.appears_in(readings[name][number]) for name in FLOORS if name in readings},
            )
            for number, text in enumerate(texts.passages.texts)
            for entity in kinds.find(text)
        ]
        return cls(split, texts, records, kinds.names, unsure)

    def rows(self) -> list[Row]:
        """Return the finding of each kind and group that occurs."""
        groups = dict.fromkeys(r.group for r in sorted(self.records, key=lambda record: record.group))
        return [row for kind in self.kinds for group in groups if (row := self._row(kind, group)) is not None]

    def _row(self, kind: str, group: str) -> Row | None:
        chosen = [r for r in self.records if r.entity.kind == kind and r.group == group]
        if not chosen:
            return None
        where = f"{kind}_recovered" + ("" if group == "all" else f"/{group}")
        own = self._measured(where, chosen, [r.recovered for r in chosen])
        names = chosen[0].floors
        floors = {n: self._measured(f"{where}/{n}", chosen, [r.floors[n] for r in chosen]) for n in names}
        documents = len({int(self.texts.passages.document_index[r.passage]) for r in chosen})
        status, reason = self._status(own, list(floors.values()), documents)
        return Row(kind, group, status, reason, own, floors, documents)

    def _measured(self, name: str, chosen: Sequence[Record], found: Sequence[bool]) -> Measurement:
        index = self.texts.passages.document_index
        numbers = torch.tensor([record.passage for record in chosen])
        sums, counts = torch.zeros(len(index)), torch.zeros(len(index))
        sums.index_add_(0, numbers, torch.tensor(found).float())
        counts.index_add_(0, numbers, torch.ones(len(numbers)))
        tally = DocumentTally(len(self.texts.passages.document_ids))
        tally.add(index, sums, counts)
        return measure_ratio(name, "fraction", tally, self.split, protocol=GREEDY)

    def _status(self, own: Measurement, floors: Sequence[Measurement], documents: int) -> tuple[Status, str]:
        if own.count < LEAST:
            return "too few to judge", f"{LEAST} are needed"
        if documents < MIN_UNITS:
            return "too few to judge", f"in {documents} documents, {MIN_UNITS} are needed"
        if own.low and above(own, floors):
            return "recovered", ""
        return ("inconclusive", self.unsure) if self.unsure else ("at the floor", "")

    def absent(self) -> list[str]:
        """Return the kinds that no text has."""
        there = {record.entity.kind for record in self.records}
        return [kind for kind in self.kinds if kind not in there]

    def measurements(self, suffix: str = "") -> list[Measurement]:
        """Return the shares of recovered entities and their floors; a suffix stands behind their names."""
        found = [m for row in self.rows() for m in (row.recovered, *row.floors.values())]
        return [m.model_copy(update={"name": m.name + suffix}) for m in found]

    def lines(self) -> list[str]:
        """Return the findings in words, those of a kind in a line."""
        rows = [f"audit of {self.split}, {row}" for row in self.rows()]
        absent = ", ".join(self.absent())
        return rows + ([f"audit of {self.split}: no text has {absent}"] if absent else [])

    def recovered(self) -> list[Record]:
        """Return the entities that were recovered and that no floor has."""
        return [record for record in self.records if record.recovered and not any(record.floors.values())]

    def document(self, record: Record) -> str:
        """Return the id of the document of a record."""
        passages = self.texts.passages
        return passages.document_ids[int(passages.document_index[record.passage])]

    def as_json(self) -> list[dict[str, object]]:
        """Return the findings as values of JSON."""
        return [
            {
                "kind": row.kind,
                "group": row.group,
                "status": row.status,
                "reason": row.reason,
                "recovered": round(row.recovered.value * row.recovered.count),
                "count": row.recovered.count,
                "documents": row.documents,
                "low": row.recovered.low,
                "high": row.recovered.high,
                "floors": {name: m.value for name, m in row.floors.items()},
            }
            for row in self.rows()
        ]

    def to_json_lines(self) -> str:
        """Return every entity as a line of JSON, with its text and what was read back."""
        return "".join(json.dumps(self._record(record)) + "\n" for record in self.records)

    def _record(self, record: Record) -> dict[str, object]:
        passages, number = self.texts.passages, record.passage
        return {
            "split": self.split,
            "kind": record.entity.kind,
            "entity": record.entity.text,
            "document": self.document(record),
            "seen": record.seen,
            "recovered": record.recovered,
            **record.floors,
            "text": passages.texts[number],
            "read": self.texts.read[number],
        }


def check_enough(documents: int, *, given: int, needed: int, remedy: str) -> None:
    """Check that there are enough documents for an audit.

    Args:
        documents: that are audited.
        given: documents in all.
        needed: documents in all that would be enough.
        remedy: what else would help.

    Raises:
        DataError: there are fewer documents than an interval needs.
    """
    if documents < MIN_UNITS:
        raise DataError(
            f"{given} documents are too few for an audit, which must hold out {MIN_UNITS} of them; give {needed} or "
            f"more{remedy}."
        )
