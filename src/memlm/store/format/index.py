"""The index: which documents there are and where they stand, in SQLite (WAL), every row under a hash of its own.

SQLite makes a write whole or not at all, also when the power goes; it does not see a flipped bit. So each row carries a
seal (a hash of its fields), and one row of state carries the sum of all seals: no row can change, vanish or come back
unseen.

A file beside it, `seal.json`, holds a hash of the whole index at rest, so that a flipped bit is seen where no row is.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from memlm.errors import DamagedStoreError, StoreError
from memlm.files import write_file_atomic
from memlm.store.format.segments import Segment, SegmentSlice, file_hash

NAME = "index.sqlite"
_SUMS = 2**256
_BUSY_SECONDS = 30.0
_TABLES = """
CREATE TABLE documents (
  id TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE,
  segment INTEGER NOT NULL, first_chunk INTEGER NOT NULL, chunks INTEGER NOT NULL,
  first_byte INTEGER NOT NULL, num_bytes INTEGER NOT NULL,
  text_sha256 TEXT NOT NULL, text_bytes INTEGER NOT NULL, tokens INTEGER NOT NULL, right_tokens INTEGER NOT NULL,
  data_sha256 TEXT NOT NULL, seal TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE segments (
  number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, size INTEGER NOT NULL, chunks INTEGER NOT NULL, seal TEXT NOT NULL
);
CREATE TABLE state (
  one INTEGER PRIMARY KEY CHECK (one = 1), commits INTEGER NOT NULL, next_place INTEGER NOT NULL,
  next_segment INTEGER NOT NULL, documents INTEGER NOT NULL, root TEXT NOT NULL, seal TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class Entry:
    """A document as the index knows it, in the order of its columns."""

    id: str
    order: int
    segment: int
    first_chunk: int
    chunks: int
    first_byte: int
    num_bytes: int
    text_sha256: str
    text_bytes: int
    tokens: int
    num_correct: int
    data_sha256: str

    @property
    def place(self) -> SegmentSlice:
        """Where its tensors are."""
        return SegmentSlice(self.segment, self.first_chunk, self.chunks, self.first_byte, self.num_bytes)

    @property
    def fidelity(self) -> float:
        """Share of its tokens that its memories give back by themselves; 1 where it has none."""
        return self.num_correct / self.tokens if self.tokens else 1.0


@dataclass(frozen=True)
class State:
    """What all rows together are."""

    commits: int
    next_place: int
    next_segment: int
    documents: int
    root: int


class Index:
    """One connection, for reading or for one writer."""

    def __init__(self, folder: Path, *, write: bool) -> None:
        self.path = folder / NAME
        with self._damage_said():
            self._connection = _connect(self.path, write=write)

    @staticmethod
    def create(folder: Path) -> None:
        """An index without documents."""
        connection = sqlite3.connect(folder / NAME, isolation_level=None)
        with _closing(connection):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_TABLES)
            _write_state(connection, State(commits=0, next_place=0, next_segment=0, documents=0, root=0))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """What is read inside is of one moment, whatever is written beside it."""
        with self._damage_said():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def state(self) -> State:
        """The state.

        Raises:
            DamagedStoreError: it is not what was written.
        """
        with self._damage_said():
            row = self._connection.execute(
                "SELECT commits, next_place, next_segment, documents, root, seal FROM state"
            ).fetchone()
        if row is None or not isinstance(row[4], str) or row[5] != _seal(row[:5]):
            raise self._damaged("its state")
        commits, next_place, next_segment, documents, root, _ = row
        return State(commits, next_place, next_segment, documents, int(root, 16))

    def find(self, name: str) -> Entry | None:
        """A document, or None."""
        if any("\ud800" <= character <= "\udfff" for character in name):
            return None  # half a character: SQLite would not take it
        with self._damage_said():
            row = self._connection.execute("SELECT * FROM documents WHERE id = ?", (name,)).fetchone()
        return None if row is None else self._entry(row)

    def entries(self) -> Iterator[Entry]:
        """All documents in the order in which they were written."""
        with self._damage_said():
            for row in self._connection.execute("SELECT * FROM documents ORDER BY place"):
                yield self._entry(row)

    def segments(self) -> list[Segment]:
        """All segments by number."""
        with self._damage_said():
            rows = self._connection.execute("SELECT * FROM segments ORDER BY number").fetchall()
        for row in rows:
            if row[-1] != _seal(row[:-1]):
                raise self._damaged(f"its row of segment {row[0]}")
        return [Segment(*row[:-1]) for row in rows]

    def change(
        self,
        *,
        add: Iterable[Entry] = (),
        remove: Iterable[str] = (),
        add_segments: Iterable[Segment] = (),
        remove_segments: Iterable[int] = (),
    ) -> None:
        """All of it or nothing; removed before added, so that an id may be in both.

        Raises:
            StoreError: the disk is full or the folder cannot be written; the index is as it was.
        """
        run = self._connection.execute
        with self._damage_said():
            run("BEGIN IMMEDIATE")
            try:
                state = self.state()
                count, root = state.documents, state.root
                place, segment = state.next_place, state.next_segment
                for name in remove:
                    root -= int(run("DELETE FROM documents WHERE id = ? RETURNING seal", (name,)).fetchone()[0], 16)
                    count -= 1
                for number in remove_segments:
                    gone = run("DELETE FROM segments WHERE number = ? RETURNING seal", (number,)).fetchone()
                    root -= int(gone[0], 16)
                for found in add_segments:
                    root += self._insert("segments", astuple(found))
                    segment = max(segment, found.number + 1)
                for entry in add:
                    root += self._insert("documents", astuple(entry))
                    count, place = count + 1, max(place, entry.order + 1)
                _write_state(self._connection, State(state.commits + 1, place, segment, count, root % _SUMS))
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise

    def settle(self) -> bool:
        """Move what was written into the main file; False where a reader is in the way."""
        with self._damage_said():
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def problems(self) -> list[str]:
        """Everything in the index that is not as it was written, one line each."""
        try:
            with self.snapshot():
                wrong = [row[0] for row in self._connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
                if wrong:
                    return [f"{NAME}: {' '.join(str(wrong[0]).split())}"]
                state = self.state()
                entries = list(self.entries())
                seals = [*map(_seal_of, entries), *map(_seal_of, self.segments())]
        except DamagedStoreError as error:
            return [str(error)]
        if len(entries) != state.documents or sum(seals) % _SUMS != state.root:
            return [f"{NAME}: rows are missing or were added ({len(entries)} documents, {state.documents} written)"]
        return []

    def _insert(self, table: str, values: tuple[object, ...]) -> int:
        seal = _seal(values)
        marks = ", ".join("?" * (len(values) + 1))
        self._connection.execute(f"INSERT INTO {table} VALUES ({marks})", (*values, seal))  # noqa: S608  (our names)
        return int(seal, 16)

    def _entry(self, row: tuple[object, ...]) -> Entry:
        if row[-1] != _seal(row[:-1]):
            raise self._damaged(f"its row of document {ascii(row[0])[:60]}")
        return Entry(*row[:-1])  # type: ignore[arg-type]  (the seal says that they are what was written)

    def _damaged(self, what: str) -> DamagedStoreError:
        return DamagedStoreError(f"'{self.path}' is damaged ({what} is not what was written); restore it from a copy.")

    @contextmanager
    def _damage_said(self) -> Generator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # a full disk, a lock; also what a damaged file can look like
            raise StoreError(f"'{self.path}': {error}; nothing was changed.") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError) as error:
            raise DamagedStoreError(f"'{self.path}' is damaged ({error}); restore it from a copy.") from error


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    if not path.is_file():
        raise DamagedStoreError(f"'{path}' is missing; restore it from a copy.")
    mode = "rw" if write else "ro"
    connection = sqlite3.connect(
        f"file:{path.absolute().as_posix().replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_SECONDS,
    )
    # a commit is on the disk when it is said to be
    connection.execute("PRAGMA synchronous=FULL")
    # nothing in a damaged or foreign file may run as code
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def _write_state(connection: sqlite3.Connection, state: State) -> None:
    values = (state.commits, state.next_place, state.next_segment, state.documents, f"{state.root:064x}")
    connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?, ?, ?)", (*values, _seal(values)))


def _seal_of(row: Entry | Segment) -> int:
    return int(_seal(astuple(row)), 16)


def _seal(values: Iterable[object]) -> str:
    # bytes that a damaged row may hold have no JSON: they get their own writing, which no written row has
    return hashlib.sha256(json.dumps(list(values), default=repr).encode()).hexdigest()


@contextmanager
def _closing(connection: sqlite3.Connection) -> Generator[None]:
    try:
        yield
    finally:
        connection.close()


SEAL = "seal.json"


@dataclass(frozen=True)
class Seal:
    """The index after so many commits."""

    commits: int
    index_sha256: str | None
    """None where a reader kept the last commits from the main file."""


def write_seal(folder: Path, commits: int, *, settled: bool) -> None:
    """Of the index as it is now."""
    seal = Seal(commits, file_hash(folder / NAME) if settled else None)
    write_file_atomic(folder / SEAL, _seal_text(seal))


def read_seal(folder: Path) -> Seal:
    """Read and check it.

    Raises:
        DamagedStoreError: missing, or not what was written.
    """
    path = folder / SEAL
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text)
        seal = Seal(values["commits"], values["index_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedStoreError(f"'{path}' is damaged or missing ({' '.join(str(error).split())[:80]}).") from error
    if text != _seal_text(seal):
        raise DamagedStoreError(f"'{path}' is not what was written (its hash differs).")
    return seal


def _seal_text(seal: Seal) -> str:
    values = asdict(seal)
    own = hashlib.sha256(json.dumps(values).encode()).hexdigest()
    return json.dumps({**values, "sha256": own}) + "\n"
