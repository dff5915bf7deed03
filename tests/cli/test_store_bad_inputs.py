"""What can be wrong with a store or a session: one line, exit code 2, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from memlm.cli import main
from memlm.store.format.header import NAME, sealed_text
from tests.cli.test_bad_inputs import Make, refused, write
from tests.conftest import speech
from tests.encoders.embedders import embedder, with_code


def remember(*arguments: str) -> Make:
    return lambda folder: ["remember", *arguments, "--store", str(folder / "s")]


def on_store(command: str, *arguments: str, damage: Callable[[Path], object] = lambda _: None) -> Make:
    def make(folder: Path) -> list[str]:
        damage(folder / "s")
        return [command, str(folder / "s"), *arguments]

    return make


def header(**changes: object) -> Callable[[Path], object]:
    """Other settings under a hash that is right."""

    def damage(store: Path) -> None:
        values = json.loads((store / NAME).read_text()) | changes
        values.pop("sha256")
        (store / NAME).write_text(sealed_text(values, indent=2))

    return damage


def flipped(pattern: str, place: float) -> Callable[[Path], object]:
    def damage(store: Path) -> None:
        path = next(iter(sorted(store.glob(pattern))))
        content = bytearray(path.read_bytes())
        content[int(place * len(content))] ^= 16
        path.write_bytes(content)

    return damage


def cut(pattern: str) -> Callable[[Path], object]:
    def damage(store: Path) -> None:
        path = next(iter(store.glob(pattern)))
        path.write_bytes(path.read_bytes()[:-40])

    return damage


def generate(*arguments: str) -> Make:
    return lambda folder: [
        "generate",
        "people",
        "--max-new-tokens",
        "2",
        *(a.replace("{folder}", str(folder)) for a in arguments),
    ]


def another_text(folder: Path) -> list[str]:
    (folder / "a.txt").write_text("another text")
    return remember("a.txt")(folder)


CASES: dict[str, tuple[Make, tuple[str, ...]]] = {
    # writing
    "no files": (remember(), ("no files",)),
    "a file that is not there": (remember("none.txt"), ("'none.txt' is not there",)),
    "a folder without texts": (
        lambda f: ((f / "nothing").mkdir(), remember("nothing")(f))[1],
        ("'nothing' is a folder without texts",),
    ),
    "a run in place of a folder of texts": (remember("memory"), ("memory/", "has no field 'text'")),
    "a file that is not UTF-8": (
        lambda f: remember(Path(write(f / "bad.txt", b"good \xff")).name)(f),
        ("'bad.txt' is not UTF-8 near byte 5",),
    ),
    "a file twice": (remember("a.txt", "a.txt"), ("'a.txt' is given twice",)),
    "a document with another text": (another_text, ("'a.txt' is in", "--replace")),
    "another model than the store's": (
        lambda f: [*remember("b.txt")(f), "--model", str(f / "run")],
        ("written by another encoder",),
    ),
    "a model that is not there": (lambda f: [*remember("b.txt")(f), "--model", "none"], ("no config.json in 'none'",)),
    "a new store without a model": (lambda f: ["remember", "b.txt", "--store", str(f / "new")], ("needs a model",)),
    "other bits than the store's": (
        lambda f: [*remember("b.txt")(f), "--bits", "4"],
        ("keeps numbers in 8 bits, not 4",),
    ),
    "bits that cannot be": (lambda f: [*remember("b.txt")(f), "--bits", "5"], ("5",)),
    "no workers": (lambda f: [*remember("b.txt")(f), "--workers", "0"], ("--workers (0)",)),
    "an encoder for a store without": (
        lambda f: [*remember("b.txt")(f), "--retrieval", str(f / "memory")],
        ("searched by memories, not by this retrieval encoder",),
    ),
    "a retrieval encoder that is not there": (
        lambda f: [
            "remember",
            "b.txt",
            "--store",
            str(f / "new"),
            "--model",
            str(f / "memory"),
            "--retrieval",
            "./none",
        ],
        ("none",),
    ),
    "a retrieval encoder with code of its own": (
        lambda f: [
            *remember(
                "b.txt",
                "--model",
                str(f / "memory"),
                "--retrieval",
                with_code(Path(embedder(f / "coded", declared=False))),
            )(f / "new")
        ],
        ("code of its own", "--trust-remote-code"),
    ),
    "a prompt without a retrieval encoder": (
        lambda f: [*remember("b.txt")(f), "--prompt", "query"],
        ("--prompt is for a retrieval encoder",),
    ),
    "a store in place of a file": (
        lambda f: ["remember", "b.txt", "--store", str(f / "a.txt"), "--model", str(f / "memory")],
        ("a.txt",),
    ),
    # not a store
    "no store": (lambda f: ["stats", str(f / "none")], ("is not a store of memories",)),
    "a run in place of a store": (lambda f: ["stats", str(f / "memory")], ("is not a store of memories",)),
    "a store of a newer format": (
        on_store("stats", damage=header(format=3)),
        ("has format 3, this memlm reads up to 2",),
    ),
    "a header with more in it": (on_store("stats", damage=header(more=1)), ("is not a store's header",)),
    "a header of impossible bits": (on_store("stats", damage=header(bits=5)), ("is not a store's header",)),
    "a flipped header": (on_store("stats", damage=flipped(NAME, 0.5)), (NAME,)),
    "no index": (on_store("stats", damage=lambda s: (s / "index.sqlite").unlink()), ("index.sqlite' is missing",)),
    "an index of other bytes": (
        on_store("stats", damage=lambda s: (s / "index.sqlite").write_bytes(os.urandom(8192))),
        ("index.sqlite", "restore it from a copy"),
    ),
    # reading
    "an unknown id": (on_store("recall", "a.tx"), ("no document 'a.tx'", "Did you mean 'a.txt'?")),
    "a path as id": (on_store("recall", "../../etc/passwd"), ("no document '../../etc/passwd'",)),
    "an id with control characters": (on_store("recall", "a\x1f0\x1f0"), ("no document",)),
    "a segment cut short": (on_store("recall", "a.txt", damage=cut("segments/*")), ("cannot be read",)),
    "no segment": (
        on_store("recall", "a.txt", damage=lambda s: next((s / "segments").iterdir()).unlink()),
        ("cannot be read",),
    ),
    "a flipped segment": (on_store("recall", "a.txt", damage=flipped("segments/*", 0.9)), ("damaged",)),
    "a store whose model is gone": (
        lambda f: (shutil.rmtree(f / "memory"), on_store("recall", "a.txt")(f))[1],
        ("say where it is (--model RUN)",),
    ),
    "a model trained on": (on_store("recall", "a.txt", "--model", "run"), ("written by another encoder",)),
    # searching
    "a prompt for memories": (on_store("search", "people", "--prompt", "q: "), ("takes no prompt ('q: ')",)),
    "an empty query": (on_store("search", ""), ("the query is empty",)),
    "no hits asked for": (on_store("search", "people", "-k", "0"), ("k (0)",)),
    "an unknown document to search": (on_store("search", "people", "--document", "x"), ("no document 'x'",)),
    "a flipped segment to search": (on_store("search", "people", damage=flipped("segments/*", 0.9)), ("not what was",)),
    # removing
    "nothing to forget": (on_store("forget"), ("no ids",)),
    "an unknown document to forget": (on_store("forget", "a.txt", "x"), ("no document 'x'",)),
    # generating
    "no model to generate": (generate(), ("no model",)),
    "an autoencoder to generate": (generate("--model", "{folder}/run"), ("not 'memlm_memory'",)),
    "an unknown document to read": (generate("--store", "{folder}/s", "--read", "x"), ("no document 'x'",)),
    "a file to read that is not there": (
        generate("--model", "{folder}/memory", "--read", "none.txt"),
        ("no text at 'none.txt'",),
    ),
    "a fidelity that cannot be": (generate("--model", "{folder}/memory", "--fidelity", "2"), ("fidelity (2.0)",)),
    "a session that is none": (
        generate("--model", "{folder}/memory", "--session", "{folder}/s"),
        ("holds something else than memlm wrote", "give another folder"),
    ),
    # timing
    "what cannot be timed": (lambda _: ["bench", "training"], ("training",)),
    "lengths of no whole chunks": (lambda _: ["bench", "inference", "--lengths", "300"], ("300", "chunks of 128")),
}


@pytest.fixture(scope="session")
def small_store(memory_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a store of it, and texts."""
    folder = tmp_path_factory.mktemp("stores")
    shutil.copytree(memory_run, folder / "memory")
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text(speech(ord(name), 30))
    old = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["remember", "a.txt", "--model", "memory", "--store", "s"]) == 0
    finally:
        os.chdir(old)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_two_nothing_lost(
    name: str,
    small_store: Path,
    finished_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(small_store, folder)
    shutil.copytree(finished_run, folder / "run")
    header(model=str(folder / "memory"))(folder / "s")
    monkeypatch.chdir(folder)
    make, words = CASES[name]
    refused(make(folder), words, folder, capsys)
    assert len(CASES) >= 30


def test_a_second_writer_is_told(
    small_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from memlm.store import MemoryStore

    shutil.copytree(small_store, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with MemoryStore.open("s", write=True):
        assert main(["remember", "b.txt", "--store", "s"]) == 2
    assert "another process writes to 's'; wait for it (--wait SECONDS)" in capsys.readouterr().err
    assert main(["remember", "b.txt", "--store", "s", "--wait", "1"]) == 0
