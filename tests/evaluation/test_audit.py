"""The audit: what counts as recovered, its floors, who was seen in training, and when nothing may be said."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from memlm.cli import main
from memlm.data import Document, Passages, made_up_notes, train_tokenizer
from memlm.data.entities import EntityKinds
from memlm.errors import DataError
from memlm.evaluation.probe.audit import Audit, TextsRead, check_enough
from memlm.evaluation.probe.retention import Retention
from memlm.evaluation.probe.stored import read_store
from memlm.reports.page import PageContent, render
from memlm.store import TextStore
from tests.conftest import speech
from tests.evaluation.test_retention import LinearCode, settings
from tests.training.test_pretrained import decoder  # noqa: F401

NAMES = [
    f"{first}{end} {last}" for first in ("An", "Bel", "Cor", "Dan") for end in "aeiou" for last in ("Berg", "Holt")
]


def audited(read: Sequence[str], *, documents: int = 40, blank: str = "", seen: int = 0, **more: Any) -> Audit:
    """Audit one text with a name for each of NAMES, of which some are in a training text."""
    texts = tuple(f"we met {name} here" for name in NAMES)
    passages = Passages(texts, torch.arange(len(texts)) % documents, tuple(map(str, range(documents))))
    training = [f"there was {name}" for name in NAMES[:seen]]
    found = TextsRead(passages, read, [blank] * len(texts))
    return Audit.of(found, EntityKinds(), split="notes", training=training, **more)


def test_counts_are_those_of_a_slow_search_and_seen_names_stand_apart() -> None:
    read = [f"they saw {name.lower()} ." if i % 3 else "nobody" for i, name in enumerate(NAMES)]
    audit = audited(read, seen=12)
    slow = {
        "seen": [NAMES[i].lower() in read[i] for i in range(12)],
        "unseen": [NAMES[i].lower() in read[i] for i in range(12, 40)],
    }
    rows = {row.group: row for row in audit.rows()}
    assert {g: (row.count, row.recovered.count) for g, row in rows.items()} == {
        g: (f"{sum(found)} of {len(found)}", len(found)) for g, found in slow.items()
    }
    assert rows["unseen"].status == "recovered"
    assert rows["unseen"].recovered.interval_note == "bootstrap over 28 documents"
    assert rows["seen"].status == "too few to judge"
    assert "%" not in str(rows["seen"])
    assert {r.entity.text for r in audit.recovered()} == {n for i, n in enumerate(NAMES) if i % 3}
    lines = [json.loads(line) for line in audit.to_json_lines().splitlines()]
    assert [line["recovered"] for line in lines] == [bool(i % 3) for i in range(40)]
    assert {"kind", "entity", "document", "seen", "text", "read", "blank_memory", "shuffled_memory"} <= lines[0].keys()
    assert "no text has" in audit.lines()[-1]
    assert [m.name for m in audit.measurements()][:3] == [
        "names_recovered/seen",
        "names_recovered/seen/blank_memory",
        "names_recovered/seen/shuffled_memory",
    ]


@pytest.mark.parametrize(
    ("read", "more", "status"),
    [
        ([f"saw {name}" for name in NAMES], {}, "recovered"),
        ([f"saw {name}" for name in NAMES], {"documents": 9}, "too few to judge"),
        (["nobody"] * 40, {}, "at the floor"),
        (["nobody"] * 40, {"unsure": "the probe did not learn"}, "inconclusive"),
        # whoever always writes all names recovers all of them, and so does a blank vector
        ([" and ".join(NAMES)] * 40, {"blank": " and ".join(NAMES)}, "at the floor"),
        # another text's vector gives as much
        ([" and ".join(NAMES)] * 40, {}, "at the floor"),
    ],
)
def test_a_verdict_needs_entities_documents_and_floors_below(
    read: list[str], more: dict[str, Any], status: str
) -> None:
    [row] = audited(read, **more).rows()
    assert (row.group, row.status) == ("unseen", status)
    assert bool(row.reason) == (status in ("too few to judge", "inconclusive"))


def test_five_texts_are_refused_in_one_line(tmp_path: Path) -> None:
    class Forbidden(LinearCode):
        def encode(self, texts: Sequence[str]) -> Tensor:
            raise AssertionError("nothing is encoded")

    notes = made_up_notes(5)
    encoder = Forbidden(train_tokenizer([note.text for note in notes], vocab_size=300))
    with pytest.raises(DataError, match=r"^5 documents are too few for an audit, .* 10 of them; give 50 or more"):
        Retention.measure(encoder, notes, out=tmp_path / "o", settings=settings(audit=True), cache=tmp_path / "c")
    with pytest.raises(DataError, match=r"give 10 or more\.$"):
        check_enough(9, given=9, needed=10, remedy="")


@pytest.mark.filterwarnings("ignore")
def test_records_come_back_from_vectors_that_hold_them(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [Document(f"d{i}", speech(i, words=40)) for i in range(60)]
    pattern = "topics=(?:peace|war|trade|harvest)"
    probe = {"size": "small", "steps": 24, "batch_size": 32, "evaluate_every": 12, "learning_rate": 1e-2}
    few = {"controls": False, "held_out_passages": 100, "word_passes": 1, "probe": probe}
    chosen = settings(audit=True, audit_pattern=[pattern], **few)
    encoder, folders = LinearCode(tokenizer), {"out": tmp_path / "out", "cache": tmp_path / "cache"}
    result = Retention.measure(encoder, documents, settings=chosen, **folders)
    roundings = ("", ", fp16", ", int8", ", binary")
    assert [audit.split for audit in result.audits] == [f"8 tokens{rounding}" for rounding in roundings]
    whole, fp16, _, binary = (audit.rows()[0] for audit in result.audits)
    assert (whole.name, whole.status) == ("seen topics", "recovered")
    assert whole.recovered.value > 0.8 > binary.recovered.value
    assert whole.recovered.count == sum(len(re.findall(pattern[7:], t)) for t in result.audits[0].texts.passages.texts)
    assert fp16.recovered.value == pytest.approx(whole.recovered.value, abs=0.05)
    assert {"emails", "cards", "dates", "phones", "names"} <= set(result.audits[0].absent())
    assert result.verdict()["audit"]["8 tokens"][0]["status"] == "recovered"
    measured = {m.name for m in result.measurements if m.split == "8 tokens, int8"}
    assert measured == {f"topics_recovered/seen{control}" for control in ("", "/blank_memory", "/shuffled_memory")}


@pytest.mark.filterwarnings("ignore")
def test_a_store_of_slots_says_first_that_it_keeps_the_text(
    tmp_path: Path,
    decoder: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"id": n.id, "text": n.text[-30:]}) + "\n" for n in made_up_notes(12)]
    Path("notes.jsonl").write_text("".join(lines))
    assert (
        main(["remember", "notes.jsonl", "--model", str(decoder), "--store", "n.mem", "--tokens-per-memory", "1"]) == 0
    )
    capsys.readouterr()
    assert main(["probe", "--store", "n.mem", "--audit", "--out", "o", "--held-out-passages", "12"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("This store keeps its texts themselves, deflated: whoever has its folder reads everything")
    assert "too few to judge" in told
    verdict = json.loads(Path("o/verdict.json").read_text())
    assert {row["status"] for row in verdict["audit"]["n.mem"]} == {"too few to judge"}
    assert {row["group"] for row in verdict["audit"]["n.mem"]} == {"all"}
    page = Path("o/report.html").read_text()
    assert "Audit of n.mem" in page
    assert "This store keeps its texts" in page
    with TextStore.open("n.mem", str(decoder)) as store:
        read = read_store(store, limit=5, cue=4)
        assert len(read.passages) == len(read.read) == 5
        assert read.passages.document_index.tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(DataError, match="no chunk of 'n.mem' has more than the 4000 tokens of the cue"):
            read_store(store, limit=5, cue=4000)


def test_the_memories_of_an_autoencoder_are_read_without_corrections(
    tmp_path: Path, finished_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes").mkdir()
    for note in made_up_notes(10):
        Path("notes", f"{note.id}.txt").write_text(note.text)
    assert main(["remember", "notes", "--model", str(finished_run), "--store", "n.mem"]) == 0
    capsys.readouterr()
    assert main(["probe", "--store", "n.mem", "--audit", "--out", "o", "--json"]) == 0
    *measured, verdict = map(json.loads, capsys.readouterr().out.splitlines())
    assert "corrections of its memories" in verdict["headline"]
    assert all(re.fullmatch(r"\w+_recovered(/shuffled_memory)?", line["name"]) for line in measured)
    with TextStore.open("n.mem", str(finished_run)) as store:
        read = read_store(store, limit=3, cue=8)
        assert read.blank is None
        assert read.read[0] == store.reading(next(iter(store.store.documents())).id)


def test_the_page_lists_recovered_records_beside_what_was_read() -> None:
    audit = audited([f"saw <b>{name}</b>" if i % 2 else "nobody" for i, name in enumerate(NAMES)])
    page = render(PageContent("t", "h", "c", audit.measurements(), (), (), audits=[audit]))
    assert "Recovered, and on no floor: 20" in page
    assert f"names · {NAMES[1]} · 1 · unseen" in page
    assert f"we met {NAMES[1]} here" in page
    assert f"saw &lt;b&gt;{NAMES[1]}&lt;/b&gt;" in page
    assert f"we met {NAMES[2]} here" not in page
    assert "no text has emails, cards, dates, phones, numbers" in page
    assert "50.00 %" in page
