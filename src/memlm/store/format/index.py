"""The index of a store: documents and where they are stored, in SQLite (WAL), with a hash for every row.

SQLite makes a write atomic, also on a loss of power, but it does not detect a flipped bit. Therefore each row carries a
seal (a hash of its fields), and one row of state carries the sum of all seals: no row can change, vanish or come back
without being noticed. The file `seal.json` holds a hash of the index file at rest, which covers the bytes between rows;
while a writer has the store open, it holds the number of commits alone.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from memlm.checksums import file_hash
from memlm.data.corpus import has_surrogates
from memlm.errors import DamagedStoreError, StoreError
from memlm.files import sealed_text, write_file_atomic
from memlm.store.format.header import read_sealed
from memlm.store.format.segments import Entry, Segment

NAME, SEAL = "index.sqlite", "seal.json"
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


_ENCODER = json.JSONEncoder(default=repr)
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_master"


@cache
def _expected_schema() -> frozenset[tuple[str | None, ...]]:
    """Return the tables of an index; a view or a trigger of the same name could run without end."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(_TABLES)
        return frozenset(connection.execute(_SCHEMA))


@dataclass(frozen=True)
class State:
    """The index's row of state: changes so far, what comes next, documents, and the sum of the seals of all rows."""

    commits: int
    next_place: int
    next_segment: int
    documents: int
    root: int


class Index:
    """A connection to the index, for a reader or for the only writer."""

    def __init__(self, folder: Path, *, write: bool) -> None:
        self.path = folder / NAME
        with self._errors(self.path):
            self._connection = _connect(self.path, write=write)
            if frozenset(self._connection.execute(_SCHEMA)) != _expected_schema():
                raise self._damaged("the description of its tables")

    @staticmethod
    def create(folder: Path) -> None:
        """Create an index without documents."""
        with Index._errors(folder / NAME), closing(sqlite3.connect(folder / NAME, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.executescript(_TABLES)
            _write_state(connection, State(commits=0, next_place=0, next_segment=0, documents=0, root=0))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """Read a single state of the index inside the block, whatever is written meanwhile."""
        with self._errors(self.path):
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")

    def state(self) -> State:
        """Return the row of state.

        Raises:
            DamagedStoreError: the row is not what was written.
        """
        with self._errors(self.path):
            row = self._connection.execute(
                "SELECT commits, next_place, next_segment, documents, root, seal FROM state"
            ).fetchone()
        if row is None or not isinstance(row[4], str) or row[5] != _seal(row[:5]):
            raise self._damaged("its state")
        return State(*row[:4], root=int(row[4], 16))

    def find(self, name: str) -> Entry | None:
        """Return the row of a document, or None."""
        if has_surrogates(name):
            return None  # SQLite takes no half of a surrogate pair
        with self._errors(self.path):
            row = self._connection.execute("SELECT * FROM documents WHERE id = ?", (name,)).fetchone()
        return None if row is None else self._entry(row)

    def entries(self) -> Iterator[Entry]:
        """Iterate over all rows of documents in the order of writing."""
        with self._errors(self.path):
            for row in self._connection.execute("SELECT * FROM documents ORDER BY place"):
                yield self._entry(row)

    def count(self, *, without: str) -> int:
        """Return the number of documents whose ids do not hold a character; their rows are not checked."""
        query = "SELECT count(*) FROM documents WHERE instr(id, ?) = 0"
        with self._errors(self.path):
            return self._connection.execute(query, (without,)).fetchone()[0]

    def segments(self) -> list[Segment]:
        """Return all rows of segments by number."""
        with self._errors(self.path):
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
        """Change rows in one commit; rows are removed before others are added, so an id may be in both.

        Raises:
            StoreError: the disk is full or the folder cannot be written; the index is unchanged.
        """
        run = self._connection.execute
        with self._errors(self.path):
            run("BEGIN IMMEDIATE")
            try:
                state = self.state()
                count, root = state.documents, state.root
                order, segment = state.next_place, state.next_segment
                for name in remove:
                    root -= int(run("DELETE FROM documents WHERE id = ? RETURNING seal", (name,)).fetchone()[0], 16)
                    count -= 1
                for key in remove_segments:
                    root -= int(run("DELETE FROM segments WHERE number = ? RETURNING seal", (key,)).fetchone()[0], 16)
                for found in add_segments:
                    root += self._insert("segments", found)
                    segment = max(segment, found.number + 1)
                for entry in add:
                    root += self._insert("documents", entry)
                    count, order = count + 1, max(order, entry.order + 1)
                _write_state(self._connection, State(state.commits + 1, order, segment, count, root % _SUMS))
                run("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    run("ROLLBACK")
                raise

    def settle(self) -> bool:
        """Move commits into the main file; return False if a reader prevents it."""
        with self._errors(self.path):
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def problems(self) -> list[str]:
        """Return one line for each problem of the index."""
        try:
            with self.snapshot():
                wrong = [row[0] for row in self._connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
                if wrong:
                    return [f"{NAME}: {' '.join(str(wrong[0]).split())}"]
                state = self.state()
                entries = list(self.entries())
                seals = [int(_seal(row), 16) for row in (*entries, *self.segments())]
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
        return Entry._make(row[:-1])  # the seal says that the fields are what was written

    def _damaged(self, part: str) -> DamagedStoreError:
        return DamagedStoreError(f"'{self.path}' is damaged ({part} is not what was written); restore it from a copy.")

    @staticmethod
    @contextmanager
    def _errors(path: Path) -> Generator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            # a full disk or a lock; a damaged file can look the same
            raise StoreError(f"'{path}': {error}; nothing was changed.") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError) as error:
            raise DamagedStoreError(f"'{path}' is damaged ({error}); restore it from a copy.") from error


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
    # a commit is on the disk when it returns
    connection.execute("PRAGMA synchronous=FULL")
    # no code in a damaged or foreign file may run
    connection.execute("PRAGMA trusted_schema=OFF")
    return connection


def _write_state(connection: sqlite3.Connection, state: State) -> None:
    values = (state.commits, state.next_place, state.next_segment, state.documents, f"{state.root:064x}")
    connection.execute("INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?, ?, ?)", (*values, _seal(values)))


def _seal(values: Iterable[object]) -> str:
    # a damaged row may hold bytes, which JSON lacks; their repr differs from every written row
    return hashlib.sha256(_ENCODER.encode(list(values)).encode()).hexdigest()


def write_seal(folder: Path, commits: int, *, settled: bool) -> None:
    """Write the seal of the index as it is now."""
    digest = file_hash(folder / NAME) if settled else None
    write_file_atomic(folder / SEAL, sealed_text({"commits": commits, "index_sha256": digest}))


def read_seal(folder: Path) -> tuple[int, str | None]:
    """Read the number of commits and the hash of the index's file; None if a reader kept commits out of that file.

    Raises:
        DamagedStoreError: the file is missing, or is not what was written.
    """
    values = read_sealed(folder / SEAL)
    if list(values) != ["commits", "index_sha256"]:
        raise DamagedStoreError(f"'{folder / SEAL}' is not the seal of a store; restore it.")
    return values["commits"], values["index_sha256"]
