"""Hostile command lines, as tables: each is answered with one line and exit code 2, and no file is harmed.

Every row runs in this process. A command line is a template: `@` stands for each of the bad names of its table.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from memlm.cli import main
from memlm.data import train_tokenizer
from tests.conftest import speech
from tests.training.test_pretrained import llama_config

Capture = pytest.CaptureFixture[str]
TRAIN = "train autoencoder-tiny --steps 1 --no-progress --out out"
ASK = "ask q --model decoder --text a.txt --max-new-tokens 1"
PROBE = "probe --encoder run --text corpus --lengths 8 --no-controls --steps 1 --out out"

NO_TEXT = (
    *("nope", "bad/empty", "bad/empty.jsonl", "bad/six.jsonl", "bad/binary", "bad/broken", "bad/loop", "bad/folder"),
    *("bad/deep.json", "bad/deep.jsonl", "bad/huge.json", "bad/zero", "/dev/zero", "/dev/null", "bad/socket"),
    *("bad/nul.txt", "''", "' '", "'a\0b'", "'[31m'", "no/such/place", "bad/six/below", "x" * 5000, "'no*thing'"),
)
"""Sources of text that hold none."""
NO_MODEL = (
    *("nope", "bad/six", "bad/empty", "bad/binary", "bad/broken", "bad/loop", "bad/folder", "bad/deep.json"),
    *("bad/zero", "/dev/zero", "bad/socket", "bad/sixmodel", "bad/gguf", "''", "'a\0b'", "a.txt/b", "x" * 5000),
)
"""Folders of models that hold none."""
NO_STORE = (
    *("nope", "bad/six", "bad/empty", "bad/binary", "bad/broken", "bad/loop", "bad/folder", "run", "memory", "''"),
    *("'a\0b'", "a.txt/b", "x" * 5000, "bad/zero", "bad/socket"),
)
NO_ID = ("nope", "''", "' '", "A.TXT", "a.txt/", "'a\0b'", "'[31m'", "x" * 5000, "../a.txt", "-", "'*'")
NO_COUNT = ("0", "-1", "nan", "inf", "-inf", str(2**70), "1e308", "9" * 5000, "abc", "''", "1.5", "0x10", "1_0x")
NO_NUMBER = ("-1", "nan", "inf", "-inf", "1e309", "9" * 400, "abc", "''", "1,5")

TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sources of text": (
        (
            f"{TRAIN} --text @",
            "evaluate run --text @",
            "ask q --model decoder --text @",
            "chat --model decoder --text @",
            f"{PROBE} --text @",
        ),
        NO_TEXT,
    ),
    "folders of models": (
        (
            "evaluate @",
            "regenerate word --model @",
            "generate word --model @",
            "remember b.txt --store new --model @",
            "export @ out",
            "ask q --text a.txt --model @",
        ),
        NO_MODEL,
    ),
    "stores": (("stats @", "recall @ a.txt", "search @ q", "forget @ a.txt", "verify @"), NO_STORE),
    "ids": (("recall s @", "forget s @", "search s q --document @", "generate x --store s --read @"), NO_ID),
    "counts": (
        (
            "search s q -k @",
            "remember b.txt --store new --model memory --workers @",
            "evaluate run --rows @",
            f"{TRAIN} --text corpus --steps @",
            "remember b.txt --store new --model decoder --tokens-per-memory=@x",
            "claims --seeds @",
            "claims --workers @",
            "probe --encoder run --seeds @",
            "bench inference --lengths @",
            "eval-harness --model memory --limit @",
            "probe-table --num-layers @",
            f"{ASK} --slots @",
        ),
        NO_COUNT,
    ),
    "numbers": (
        (
            "generate x --model memory --temperature @",
            "generate x --model memory --fidelity @",
            "remember b.txt --store new --model memory --wait @",
            f"{ASK} --tokens-per-memory @",
            "claims --share @",
        ),
        NO_NUMBER,
    ),
}
ROWS = [
    (f"{table}: {line[:48]} | {shlex.quote(bad)[:24]}", line.replace("@", bad))
    for table, (lines, bads) in TABLES.items()
    for line in lines
    for bad in bads
]
SINGLE = {
    # flags
    "evaluate run --jsn": "Did you mean '--json'",
    "search s q --kk 3": "--kk",
    "train autoencoder-tiny --training.stepz 3": "--training.steps",
    f"train autoencoder-tiny --{'x' * 9000} 3": "unknown flag",
    f"recipes {'y' * 9000}": "unknown recipe",
    "trian": "Did you mean 'train'",
    "evaluate": "Missing",
    "evaluate run extra": "extra",
    "probe --encoder run --bits 3": "--bits",
    "probe --encoder run --size huge": "--size",
    "ask q --model decoder --text a.txt --device tpu": "--device",
    "generate x --model memory --beyond never": "--beyond",
    "remember b.txt --store new --model memory --bits 5": "--bits",
    "claims --quick maybe": "maybe",
    "generate --model memory": "Missing",
    "bench training": "training",
    # sizes that cannot fit are refused before anything is written
    f"{TRAIN} --text corpus --model.hidden_size 1048576": "GiB",
    f"{TRAIN} --text corpus --training.batch_size 1048576 --model.hidden_size 16384": "GiB",
    f"{TRAIN} --text corpus --model.bottleneck_size 100000000": "at most",
    f"{TRAIN} --text corpus --data.vocab_size 1000000000": "vocab_size",
    f"{TRAIN} --text corpus --model.num_encoder_layers 1000000": "512",
    "bench inference --hidden-size 1048576": "GiB",
    # parts that do not fit each other
    "bench inference --num-heads 3": "num_heads (3)",
    "probe-table --hidden-size 17": "num_heads (16)",
    f"{TRAIN} --text corpus --config ''": "--config ('') is empty",
    f"{TRAIN} --text corpus --config bad/zero": "is a device",
    f"{TRAIN} --text corpus --config bad/folder": "Is a directory",
    f"{TRAIN} --text corpus --config bad/binary": "cannot read settings",
    f"{TRAIN} --text corpus --config bad/deep.json": "nested too deeply",
    f"{TRAIN} --text corpus --config bad/broken": "bad/broken",
    f"{TRAIN} --text corpus --data.tokenizer ' '": "tokenizer",
    f"{TRAIN} --text 'a\udcff.txt'": "not UTF-8",
    "train memory-curriculum-tiny --out out --no-progress --encoder run": "must not exceed the encoder's",
    "train memory-pretrained --out out --text corpus --decoder memory/config.json": "has no hidden_size",
    "remember b.txt --store new --model memory --retrieval ''": "--retrieval ('') is empty",
    "remember b.txt --store '\x1b[31m' --model memory": "cannot be shown",
    "search s q --retrieval memory": "searched by memories",
    "ask q --questions bad/six.jsonl --model decoder --text a.txt": "give one question",
    "probe --embeddings bad/zero --texts a.txt": "no vectors",
    "probe --embeddings bad/six --texts a.txt": "bad/six",
    "probe --encoder run --texts a.txt": "go together",
}


def _place(folder: Path, finished_run: Path, memory_run: Path, corpus: Path) -> None:
    """Fill a folder with good things and, in `bad`, with hostile ones."""
    for name, source in (("run", finished_run), ("memory", memory_run), ("corpus", corpus)):
        shutil.copytree(source, folder / name)
    tokenizer = train_tokenizer([speech(i) for i in range(4)], vocab_size=262)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(3)
    LlamaForCausalLM(llama_config(len(tokenizer))).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    for name in "ab":
        (folder / f"{name}.txt").write_text(speech(ord(name), 30))
    bad = folder / "bad"
    for name in ("folder", "gguf", "sixmodel"):
        (bad / name).mkdir(parents=True)
    for name in ("six", "six.jsonl"):
        (bad / name).write_bytes(b"abcdef")
    for name in ("empty", "empty.jsonl"):
        (bad / name).touch()
    (bad / "binary").write_bytes(b"\x7fELF\0\xff" * 500)
    (bad / "broken").symlink_to("gone")
    (bad / "loop").symlink_to("loop")
    (bad / "zero").symlink_to("/dev/zero")
    (bad / "deep.json").write_text("[" * 100_000)
    (bad / "deep.jsonl").write_text('{"text":' * 100_000)
    (bad / "huge.json").write_text('{"text": 1' + "0" * 5000 + "}")
    (bad / "nul.txt").write_text("a\0b")
    (bad / "gguf" / "model.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    (bad / "sixmodel" / "model.safetensors").write_bytes(b"abcdef")
    shutil.copy(folder / "decoder" / "config.json", bad / "sixmodel")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, finished_run: Path, memory_run: Path, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    _place(folder, finished_run, memory_run, corpus)
    old = Path.cwd()
    os.chdir(folder)
    try:
        unix = socket.socket(socket.AF_UNIX)
        unix.bind("bad/socket")
        unix.close()
        assert main(["remember", "a.txt", "--model", "memory", "--store", "s"]) == 0
    finally:
        os.chdir(old)
    return folder


def state(folder: Path) -> dict[str, str]:
    """Return the contents of all files and links; the names of SQLite's working files do not count."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_file() and not name.endswith(("-wal", "-shm")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.is_dir():
            found[name] = ""
    return found


@pytest.fixture
def untouched(place: Path) -> Iterator[None]:
    """Check that a test changes nothing; what it makes is removed, so that the next test does not see it."""
    before = state(place)
    yield
    after = state(place)
    for name in sorted(after.keys() - before.keys(), reverse=True):
        path = place / name
        path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path, ignore_errors=True)
    assert after == before


def refused(line: str, capsys: Capture) -> str:
    """Return the line with which a command line is refused."""
    capsys.readouterr()

    code = main(shlex.split(line))

    out, err = capsys.readouterr()
    assert code == 2, (code, err)
    errors = [found for found in err.splitlines() if found.startswith("memlm: error:")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    assert not [found for found in err.splitlines() if not found.startswith("memlm: ")], err
    assert len(errors[0]) < 2100
    assert errors[0].isprintable()
    assert out == ""
    return errors[0]


def test_there_are_at_least_400() -> None:
    assert len(ROWS) + len(SINGLE) >= 400
    assert len({line for _, line in ROWS}) == len(ROWS)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("line", [line for _, line in ROWS], ids=[name for name, _ in ROWS])
def test_bad_values_are_refused(line: str, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    refused(line, capsys)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("line", SINGLE, ids=[line[:60] for line in SINGLE])
def test_bad_commands_are_refused_with_the_right_words(
    line: str, place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert SINGLE[line] in refused(line, capsys)


def test_a_pipe_without_a_writer_is_refused_and_one_with_a_writer_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from memlm.data import load_documents, records
    from memlm.errors import DataError

    monkeypatch.setattr(records, "_PATIENCE", 0.2)
    pipe = tmp_path / "pipe.txt"
    os.mkfifo(pipe)
    with pytest.raises(DataError, match="a pipe that no program writes to"):
        load_documents(str(pipe))
    writer = threading.Thread(target=lambda: pipe.write_text("people of the nation"))
    writer.start()
    assert [document.text for document in load_documents(str(pipe))] == ["people of the nation"]
    writer.join()
