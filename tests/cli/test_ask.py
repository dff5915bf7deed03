"""`memlm ask` and `memlm chat`: what they print, and one clear line for what can be wrong."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

from memlm.cli import main
from tests.conftest import speech
from tests.training.test_pretrained import decoder  # noqa: F401


@pytest.fixture
def place(tmp_path: Path, decoder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder with documents, questions and a decoder."""
    monkeypatch.chdir(tmp_path)
    Path("decoder").symlink_to(decoder)
    Path("a.txt").write_text(speech(1))
    Path("odd\u202ename.txt").write_text("A harbour \u001b[31m is red.")
    Path("q.jsonl").write_text('{"question": "What is red?"}\n{"question": "And what is not?", "id": "other"}\n')
    Path("broken.jsonl").write_text('{"question": "What')
    Path("none.jsonl").write_text('{"text": "no question"}\n')
    return tmp_path


ASK = ["--model", "decoder", "--text", "a.txt", "--max-new-tokens", "3"]


def test_answers_stream_and_say_what_was_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "What is red?", *ASK, "--text", "odd\u202ename.txt"]) == 0
    told = capsys.readouterr()
    assert "memories; support" in told.err
    assert "\u202e" not in told.err  # what moves the cursor is escaped
    assert "\x1b" not in told.err
    assert "\\u202ename.txt 0-" in told.err


def test_many_questions_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--questions", "q.jsonl", "--json", *ASK]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["question"] for one in found] == ["What is red?", "And what is not?"]
    assert found[1]["id"] == "other"
    assert {"text", "passages", "tokens", "memories", "left_out", "support"} <= set(found[0])
    # questions do not see each other
    assert main(["ask", "And what is not?", "--json", *ASK]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (alone["tokens"], alone["text"]) == (found[1]["tokens"], found[1]["text"])


def test_passages_are_cited_in_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "What is red?", "--json", *ASK, "--text", "odd\u202ename.txt"]) == 0
    [passage] = json.loads(capsys.readouterr().out)["passages"]
    assert set(passage) == {"document", "start", "end", "text", "score"}
    text = Path("odd\u202ename.txt").read_text()
    assert text[passage["start"] : passage["end"]] == passage["text"]


def test_what_documents_do_not_support_is_not_found(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "What is red?", *ASK, "--least-support", "1000"]) == 0
    assert "below 1000: not found in the documents" in capsys.readouterr().err


def test_a_page_shows_what_was_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("b.txt").write_text("<b>The harbour is red.</b> " + speech(2, 400))
    limited = ["--slots", "20", "--tokens-per-memory", "64", "--page", "page.html"]
    assert main(["ask", "What is red?", *ASK, "--text", "b.txt", *limited]) == 0
    page = Path("page.html").read_text()
    assert "&lt;b&gt;The harbour is red.&lt;/b&gt;" in page
    assert "<b>The" not in page
    assert 'title="64.0 tokens per memory' in page
    assert 'class="left-out"' in page
    assert ", and as tokens" in page


def test_chat_remembers(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("What is red?\nAnd then?\n\nnot asked\n"))
    assert main(["chat", *ASK]) == 0
    told = capsys.readouterr().err
    counts = [int(line.split()[1]) for line in told.splitlines() if "more as" in line]
    assert len(counts) == 2


CASES: dict[str, tuple[list[str], str]] = {
    "a page of many questions": (
        ["ask", "--questions", "q.jsonl", *ASK, "--page", "x.html"],
        "--page shows one question",
    ),
    "a support that is no number": (
        ["ask", "Who?", *ASK, "--least-support", "nan"],
        "least-support (nan) must be a number",
    ),
    "no question": (["ask", *ASK], "give one question, or --questions"),
    "an empty question": (["ask", "", *ASK], "the question is empty"),
    "two kinds of questions": (["ask", "Who?", "--questions", "q.jsonl", *ASK], "give one question"),
    "no documents": (["ask", "Who?", "--model", "decoder"], "give documents: --text FILES, or --store DIR"),
    "two kinds of documents": (["ask", "Who?", *ASK, "--store", "s"], "give documents"),
    "no model": (["ask", "Who?", "--text", "a.txt"], "no model; give --model"),
    "a model that is none": (["ask", "Who?", "--model", "a.txt", "--text", "a.txt"], "a.txt"),
    "a file that is not there": (["ask", "Who?", "--model", "decoder", "--text", "b.txt"], "b.txt"),
    "no such store": (["ask", "Who?", "--store", "nowhere"], "nowhere"),
    "questions that are no JSON": (["ask", "--questions", "broken.jsonl", *ASK], "broken.jsonl"),
    "questions without a question": (["ask", "--questions", "none.jsonl", *ASK], "question"),
    "a ratio below 1": (["ask", "Who?", *ASK, "--tokens-per-memory", "0"], "--tokens-per-memory (0.0) must be"),
    "a ratio that is no number": (["ask", "Who?", *ASK, "--tokens-per-memory", "few"], "few"),
    "a budget of 0": (["ask", "Who?", *ASK, "--slots", "0"], "slots (0) must be"),
    "a huge budget": (["ask", "Who?", *ASK, "--slots", str(2**70)], "slots"),
    "no room for the answer": (["ask", "Who?", *ASK[:-1], "5000"], "leaves no room for documents"),
    "an answer of no token": (["ask", "Who?", *ASK[:-1], "0"], "--max-new-tokens (0) must be a whole number from 1 to"),
    "a flag that is none": (["ask", "Who?", *ASK, "--slot", "3"], "--slots"),
    "chat without documents": (["chat", "--model", "decoder"], "give documents"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_inputs(case: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, message = CASES[case]
    before = {path: path.read_bytes() for path in place.glob("*.*")}
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert len([line for line in told.splitlines() if line]) == 1
    assert {path: path.read_bytes() for path in place.glob("*.*")} == before


def test_vectors_of_a_store_are_searched_too(place: Path, memory_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", "s", "--model", "decoder"]
    assert main(["remember", "a.txt", *store, "--tokens-per-memory", "4", "--retrieval", str(memory_run)]) == 0
    found = {}
    for flag in ("--vectors", "--no-vectors"):
        assert main(["ask", "Xyzzy?", "--json", "--max-new-tokens", "1", "--store", "s", flag]) == 0
        found[flag] = json.loads(capsys.readouterr().out.splitlines()[-1])["passages"]
    # a word that no text has finds nothing, and the nearest vector always something
    assert found["--vectors"]
    assert not found["--no-vectors"]
