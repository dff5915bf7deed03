"""One reader of text: every format gives the same documents, and what cannot be read is left out and counted."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memlm.data import load_documents, stream_documents
from memlm.errors import DataError, did_you_mean, one_line

TEXTS = ["first \u2028 line", 'commas, "quotes"\nand\x85lines', "zweiter 你好 \U0001f600", "with\ttab and\rreturn"]


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()


def array(texts: list[str]) -> bytes:
    return json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1).encode()


def table(texts: list[str], delimiter: str = ",") -> bytes:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows([["number", "text"], *enumerate(texts)])
    return stream.getvalue().encode()


def parquet(texts: list[str]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "other": texts}), stream)
    return stream.getvalue()


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    "jsonl": jsonl,
    "NDJSON": jsonl,
    "json": array,
    "Json": jsonl,
    "csv": table,
    "CSV": lambda texts: table(texts, ";"),
    "tsv": lambda texts: table(texts, "\t"),
    "parquet": parquet,
}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".XZ": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_in_every_compression_gives_the_same_texts(kind: str, packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}{packed}"
    path.write_bytes(PACKERS[packed](FORMATS[kind](TEXTS)))
    assert [d.text for d in load_documents(str(path), strict=True)] == TEXTS
    assert ["".join(text) for _, text in stream_documents(str(path), strict=True)] == TEXTS


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=5))
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_every_text_comes_back(kind: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(FORMATS[kind](texts))
    assert [d.text for d in load_documents(str(path), strict=True)] == texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_byte_order_marks(name: str, encoding: str, tmp_path: Path) -> None:
    kind = name.split(".")[1]
    content = b"grey caf\xc3\xa9" if kind == "txt" else FORMATS[kind](["grey café"])
    content = content.decode().encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert [d.text for d in load_documents(str(tmp_path / name), strict=True)] == ["grey café"]


BAD_LINES: dict[str, bytes] = {
    "not JSON": b"{oops",
    "not UTF-8": b'{"text": "caf\xe9"}',
    "a number": b"3",
    "a list": b'["text"]',
    "no such field": b'{"body": "x"}',
    "null": b'{"text": null}',
    "a number for a text": b'{"text": 5}',
    "half a pair": b'{"text": "\\ud800"}',
    "a NUL byte": b'{"text": "a\0b"}',
    "deep": b"[" * 100_000,
    "a long number": b'{"text": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_one_bad_line_is_left_out_and_counted(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + BAD_LINES[name] + b'\n{"text": "two"}\n')
    with caplog.at_level(logging.WARNING, "memlm.data"):
        assert [d.text for d in load_documents(str(path))] == ["one", "two"]
    assert "left out 1 of 3 items" in caplog.text
    assert "a.jsonl:2" in caplog.text
    with pytest.raises(DataError, match="a.jsonl:2"):
        load_documents(str(path), strict=True)


@pytest.mark.parametrize(
    ("rows", "texts"),
    [
        (b"text,n\none,1\ntwo,2,3\nthree,3\n", ["one", "three"]),
        (b"text\none, two\nthree\n", ["three"]),
        (b'text,n\none,1\n"a"b,2\nthree,3\n', ["one", "three"]),
        (b"text,n\none,1\ncaf\xe9,2\nthree,3\n", ["one", "three"]),
        (b"text\r\none\r\n\r\nthree\r\n", ["one", "three"]),
        (b"text\n" + b"x" * 200_000 + b"\n", ["x" * 200_000]),
        (b'text,n\none,1\n"open,2\nthree,3\n', ["one"]),
    ],
)
def test_rows_of_csv(rows: bytes, texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(rows)
    assert [d.text for d in load_documents(str(tmp_path / "a.csv"))] == texts


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 1, "1"], ["1", "1#2", "1#3"]),
        (["a", "a#2", "a"], ["a", "a#2", "a#3"]),
        ([None, "", {"x": 1}], ["{}:1", "{}:2", "{}:3"]),
        (["\ud800", True, 2.5], ["{}:1", "{}:2", "2.5"]),
    ],
)
def test_ids_are_unique(ids: list[Any], found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": "x"}) + "\n" for i in ids))
    assert [d.id for d in load_documents(str(path))] == [name.format(path) for name in found]


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"meta": {"body": "x"}}, "meta.body"),
        ({"meta.body": "x", "meta": {"body": "y"}}, "meta.body"),
        ({"a.b": {"c": "x"}}, "a.b.c"),
        ({"messages": [{"content": "no"}, {"content": "x"}]}, "messages.1.content"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_dotted_names(record: dict[str, Any], field: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([record]), path)
    else:
        path.write_text(json.dumps(record))
    assert [d.text for d in load_documents(str(path), text_field=field)] == ["x"]
    with pytest.raises(DataError, match="no (field|column) 'nothing'"):
        load_documents(str(path), text_field="nothing")


def test_what_a_folder_of_texts_does_not_mean(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = {"a.md": b"a", "deep/b.txt": b"b", "deep/c.JSONL": b'{"text": "c"}'}
    others = {
        ".git/config": b"x",
        ".env": b"x",
        "deep/.hidden/x.txt": b"x",
        "env/pyvenv.cfg": b"x",
        "env/lib/x.py": b"x",
        "conda/conda-meta/history": b"x",
        "node_modules/x.js": b"x",
        "__pycache__/x.txt": b"x",
        "picture.png": b"\x89PNG\0\1",
        "empty.txt": b"",
        "blank.txt": b" \n",
        "cut.txt.gz": b"\x1f\x8b\x08\0cut",
    }
    for name, content in (kept | others).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "link.txt").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    for read in (load_documents, lambda source: [n for n, _ in stream_documents(source)]):
        caplog.clear()
        assert len(read(str(tmp_path))) == 3
        for part in (
            "3 hidden",
            "1 binary",
            "2 empty",
            "3 unreadable",
            "2 of virtual environments",
            "1 linked folders",
        ):
            assert part in caplog.text, caplog.text
    assert [d.text for d in load_documents(str(tmp_path / "**" / "*.txt"))] == ["b"]
    assert [d.text for d in load_documents(str(tmp_path / ".env"))] == ["x"]
    assert [d.text for d in load_documents(str(tmp_path / "env" / "lib"))] == ["x"]
    with pytest.raises(DataError, match="cut.txt.gz|link.txt|pipe"):
        load_documents(str(tmp_path), strict=True)


def test_a_text_of_which_a_line_is_not_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\ncaf\xe9\ntwo\n")
    assert [d.text for d in load_documents(str(path))] == ["one\ntwo\n"]
    assert "1 not UTF-8" in caplog.text
    with pytest.raises(DataError, match="not UTF-8 at byte 7"):
        load_documents(str(path), strict=True)


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_devices_are_refused(source: str) -> None:
    with pytest.raises(DataError, match="is a device"):
        load_documents(source)


def test_a_pipe_is_read(tmp_path: Path) -> None:
    end, start = os.pipe()
    os.write(start, b"from a pipe")
    os.close(start)
    assert ["".join(text) for _, text in stream_documents(f"/dev/fd/{end}")] == ["from a pipe"]
    os.close(end)


def test_a_broken_link_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").symlink_to("gone.txt")
    with pytest.raises(DataError, match="is a link to 'gone.txt', which is not there"):
        load_documents(str(tmp_path / "a.txt"))


def test_streams_keep_every_byte_of_plain_text(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\r\ntwo\0 \xe2\x80\xa8"
    (tmp_path / "a.txt").write_bytes(content)
    [(name, text)] = stream_documents(str(tmp_path / "a.txt"))
    assert (name, "".join(text).encode()) == (str(tmp_path / "a.txt"), content)


def test_one_bad_file_among_several(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_bytes(b"good")
    sources = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert [d.text for d in load_documents(sources)] == ["good"]
    assert [name for name, _ in stream_documents(sources)] == sources[1:]
    with pytest.raises(DataError, match="no text at"):
        load_documents([*sources, str(tmp_path / "none.txt")])
    with pytest.raises(DataError, match="no source of text"):
        load_documents([])


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    assert load_documents(str(tmp_path))[0].id.endswith(r"caf\xe9.txt")


def test_advice_is_short() -> None:
    assert len(did_you_mean("zzz" * 10_000, [f"{number} {'x' * 300}" for number in range(100_000)])) < 5000
    assert len(did_you_mean("zzz", [f"name{number}" for number in range(100_000)])) < 500
    assert did_you_mean("nme7", ["name7", "other"]) == "Did you mean 'name7'?"
    assert one_line("a\x1b]0;title\x07\u202eb\nc") == "a\\x1b]0;title\\x07\\u202eb c"
