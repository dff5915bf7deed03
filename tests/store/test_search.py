"""Search against the slow obvious way, over memories and over vectors of one's own encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from memlm.data import corpus as parts_module
from memlm.encoders import FunctionEncoder, open_encoder
from memlm.errors import DamagedStoreError, MemoryShapeError, StoreError, UserError
from memlm.store import ChunkCodec, StoreSearch, TextStore, dequantize, ingest
from tests.conftest import speech
from tests.encoders.embedders import POOL, embedder


@pytest.fixture(scope="session")
def codec(memory_run: Path) -> ChunkCodec:
    return ChunkCodec.load(memory_run)


def written(folder: Path, codec: ChunkCodec, texts: dict[str, str], **options: object) -> TextStore:
    with TextStore.open(folder, codec, write=True, **options) as store:  # type: ignore[arg-type]
        list(store.add((name, [text]) for name, text in texts.items()))
    return TextStore.open(folder, codec, retrieval=options.get("retrieval"))  # type: ignore[arg-type]


def letters(texts: list[str]) -> list[list[float]]:
    return [[1.0 + text.count(c) for c in "aeiou"] for text in texts]


def test_the_nearest_are_those_of_the_slow_way(
    codec: ChunkCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART", 60)
    texts = {str(i): speech(i, 3 + 9 * i) for i in range(5)} | {"empty": ""}
    query = speech(3)[5:40]
    with written(tmp_path / "s", codec, texts) as store:
        asked = F.normalize(store.query_vectors(query), dim=-1)
        slow = sorted(
            (
                (float((asked @ F.normalize(memory.flatten(), dim=0)).max()), name, number, chunk)
                for name in texts
                for number, part in enumerate(store.parts(name))
                for chunk, memory in enumerate(dequantize(part.memories))
            ),
            reverse=True,
        )[:7]
        hits = store.search(query, 7)
        assert [hit.score for hit in hits] == pytest.approx([score for score, *_ in slow], abs=1e-5)
        places = {(name, number, chunk) for _, name, number, chunk in slow[:6]}
        assert {(h.id, h.part or 0, h.chunk) for h in hits[:6]} == places
        for hit in hits:
            assert store.text_of(hit) in texts[hit.id]
        assert {h.id for h in store.search(query, 100, documents=["1", "3"])} == {"1", "3"}
        assert len(store.search(query, 10_000)) == store.store.stats().chunks


def test_an_own_encoder_is_searched_in_place_of_memories(codec: ChunkCodec, tmp_path: Path) -> None:
    encoder = FunctionEncoder(letters, name="letters", fingerprint="1")
    texts = {"a": "aaaa aaaa aaaa", "o": "oooo oooo oooo", "u": "uuuu uuuu uuuu"}
    with written(tmp_path / "s", codec, texts, retrieval=encoder) as store:
        assert store.search("ooo", 1)[0].id == "o"
        assert all(store.recall(name) == text for name, text in texts.items())
    with (
        TextStore.open(tmp_path / "s", codec) as store,
        pytest.raises(StoreError, match="searched by a retrieval encoder; give"),
    ):
        store.search("ooo")
    other = FunctionEncoder(letters, name="letters", fingerprint="2")
    with pytest.raises(StoreError, match="searched by vectors of another encoder"):
        TextStore.open(tmp_path / "s", codec, retrieval=other)
    written(tmp_path / "plain", codec, texts).close()
    with pytest.raises(StoreError, match="searched by memories, not by this retrieval encoder"):
        TextStore.open(tmp_path / "plain", codec, retrieval=encoder)


def test_prompts_of_a_retrieval_encoder_stand_before_documents_and_queries(codec: ChunkCodec, tmp_path: Path) -> None:
    """Declared ones by default; a prompt that is given to a new store stays with it."""
    folder = embedder(tmp_path / "model", POOL, vectors={"prompts": {"query": "query: ", "document": "passage: "}})
    bare = open_encoder(folder, prompt="")
    for prompt, before in ((None, "passage: "), ("title: ", "title: ")):
        place = tmp_path / f"store {before[:2]}"
        with TextStore.open(place, codec, write=True, retrieval=folder, prompt=prompt) as store:
            list(store.add([("a", ["the people"])]))
        with TextStore.open(place, codec, retrieval=folder) as store:
            [document] = store.parts("a")
            texts = [store.text_of(hit) for hit in sorted(store.search("peace", 9), key=lambda hit: hit.chunk)]
            assert document.vectors is not None
            kept, own = dequantize(document.vectors), bare.encode([before + text for text in texts])
            assert F.cosine_similarity(kept, own).min() > 0.999
            assert torch.allclose(store.query_vectors("peace"), bare.encode(["query: peace"]), atol=1e-6)
            assert torch.allclose(store.query_vectors("peace", "to: "), bare.encode(["to: peace"]), atol=1e-6)
            with pytest.raises(UserError, match="no prompt 'qurey'"):
                store.search("peace", prompt="qurey")
    with (
        written(tmp_path / "plain", codec, {"a": "the people"}) as store,
        pytest.raises(StoreError, match=r"takes no prompt \('query'\)"),
    ):
        store.search("peace", prompt="query")


def test_parts_of_a_text_that_is_not_whole_are_not_found(
    codec: ChunkCodec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART", 60)
    monkeypatch.setattr(ingest, "_BATCH_CHARACTERS", 100)

    def interrupted() -> Iterator[str]:
        yield speech(2)
        raise KeyboardInterrupt

    with TextStore.open(tmp_path / "s", codec, write=True) as store:
        with pytest.raises(KeyboardInterrupt):
            list(store.add([("a", [speech(1)]), ("b", interrupted())]))
        assert any(e.id.startswith("b") for e in store.store.entries())
        assert {h.id for h in store.search(speech(2), 1000)} == {"a"}


def test_what_is_written_is_found_at_once(codec: ChunkCodec, tmp_path: Path) -> None:
    written(tmp_path / "s", codec, {"a": speech(1)}).close()
    with TextStore.open(tmp_path / "s", codec, write=True) as store:
        assert {h.id for h in store.search("people", 1000)} == {"a"}
        list(store.add([("b", [speech(2)])]))
        assert {h.id for h in store.search("people", 1000)} == {"a", "b"}
        store.delete(["a"])
        assert {h.id for h in store.search("people", 1000)} == {"b"}


def test_mistakes_are_one_line(codec: ChunkCodec, tmp_path: Path) -> None:
    with written(tmp_path / "s", codec, {}) as store:
        assert store.search("people") == []
        with pytest.raises(UserError, match="the query is empty"):
            store.search("")
        with pytest.raises(UserError, match=r"k \(0\) must be a whole number from 1"):
            store.search("a", 0)
        with pytest.raises(StoreError, match="no document 'x'"):
            store.search("a", documents=["x"])
        search = StoreSearch(store.store)
        with pytest.raises(MemoryShapeError, match=r"a query of shape \(1, 3\) does not fit"):
            search.nearest(torch.zeros(1, 3))
        with pytest.raises(MemoryShapeError, match="NaN or infinite"):
            search.nearest(torch.full((1, search.vectors.shape[1]), torch.nan))


def test_a_damaged_segment_is_not_searched(codec: ChunkCodec, tmp_path: Path) -> None:
    written(tmp_path / "s", codec, {"a": speech(1)}).close()
    segment = next((tmp_path / "s" / "segments").iterdir())
    content = bytearray(segment.read_bytes())
    content[-3] ^= 1
    segment.write_bytes(content)
    with TextStore.open(tmp_path / "s", codec) as store, pytest.raises(DamagedStoreError, match="not what was written"):
        store.search("a")
