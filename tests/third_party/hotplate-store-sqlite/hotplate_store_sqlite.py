"""A store for hotplate in one SQLite file, `sqlite:///PATH`: an example of a backend that lives outside of hotplate.

SQLite answers in microseconds, so that its calls are made where they are, without a thread.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from hotplate import (
    META,
    Catalogue,
    DraftRef,
    Inventoried,
    LocalReader,
    Plan,
    ReleaseConflict,
    ReleaseNotFound,
    ReleaseRef,
    Row,
    Slot,
    StoreMisused,
    StoreUnavailable,
    dump_catalogue,
    parse_catalogue,
)

POLL_S = 0.1

# How long another writer of the same file is waited for.
LOCK_TIMEOUT_S = 5.0

# `part` is the writer that a row came from; with its rows it also knows where to continue.
SCHEMA = """
CREATE TABLE IF NOT EXISTS catalogue (only INTEGER PRIMARY KEY CHECK (only = 0), record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS releases (
    incarnation TEXT PRIMARY KEY, writer TEXT NOT NULL, sealed INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rows (
    incarnation TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (incarnation, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS points (
    incarnation TEXT NOT NULL, part INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (incarnation, part)
) WITHOUT ROWID;
"""


class SqliteStore(LocalReader, Inventoried):
    """One file of releases; an instance lives as long as its process."""

    batch = 64

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: sqlite3.Connection | None = None

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        with self._connection() as connection:
            _state(connection, release)
            return _read(connection, release, key)

    async def warm(self, release: ReleaseRef) -> None:
        """SQLite's own cache warms as it is read."""

    async def get_many(self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None) -> list[Slot]:
        del timeout_s  # a local file is never late
        with self._connection() as connection:
            _state(connection, release)
            return [_read(connection, release, key) for key in keys]

    async def catalogue(self) -> Catalogue:
        with self._connection() as connection:
            found = connection.execute("SELECT record FROM catalogue").fetchone()
        if found is None:
            return Catalogue(now=time.time())
        return parse_catalogue(found[0], now=time.time(), where=str(self._path))

    async def changes(self) -> AsyncIterator[Catalogue]:
        seen: Catalogue | None = None
        while True:
            found = await self.catalogue()
            if found != seen:
                seen = found
                yield found
            await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        del plan  # the file grows as it must
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO releases (incarnation, writer) VALUES (?, ?)"
                " ON CONFLICT DO UPDATE SET writer = excluded.writer WHERE sealed = 0",
                (draft.incarnation, draft.writer),
            )
            _claimed(connection, draft)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        with self._transaction() as connection:
            _claimed(connection, draft)
            connection.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
                [(draft.incarnation, row.key.encode(), row.value) for row in rows],
            )
            if keys := [row.key for row in rows if not row.key.startswith(META)]:
                connection.execute(
                    "INSERT OR REPLACE INTO points VALUES (?, ?, ?)", (draft.incarnation, part, max(keys))
                )

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        with self._connection() as connection:
            _claimed(connection, draft)
            found = connection.execute(
                "SELECT key FROM points WHERE incarnation = ? AND part = ?", (draft.incarnation, part)
            ).fetchone()
        return None if found is None else found[0]

    async def seal(self, draft: DraftRef) -> None:
        with self._transaction() as connection:
            if not _state(connection, draft):
                _claimed(connection, draft)
            connection.execute("UPDATE releases SET sealed = 1 WHERE incarnation = ?", (draft.incarnation,))

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        with self._connection() as connection:
            _state(connection, release)
            select = "SELECT key, value FROM rows WHERE incarnation = ? ORDER BY key"
            for key, value in connection.execute(select, (release.incarnation,)):
                yield Row(key.decode(), value)

    async def prepare(self, release: ReleaseRef) -> None:
        with self._connection() as connection:
            _state(connection, release)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        with self._transaction() as connection:
            if (await self.catalogue()).version != old.version:
                raise ReleaseConflict("the catalogue was changed by somebody else first")
            connection.execute("INSERT OR REPLACE INTO catalogue VALUES (0, ?)", (dump_catalogue(new),))

    async def erase(self, release: ReleaseRef) -> None:
        with self._transaction() as connection:
            for table in ("releases", "rows", "points"):
                connection.execute(f"DELETE FROM {table} WHERE incarnation = ?", (release.incarnation,))

    async def incarnations(self) -> list[str]:
        with self._connection() as connection:
            return [incarnation for (incarnation,) in connection.execute("SELECT incarnation FROM releases")]

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, opened at the first call; the one place where SQLite's errors end."""
        try:
            if self._opened is None:
                self._opened = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
                self._opened.execute("PRAGMA journal_mode = WAL")
                self._opened.executescript(SCHEMA)
            yield self._opened
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._path} cannot be used: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection inside a transaction, which holds the file's one write lock."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def _state(connection: sqlite3.Connection, release: ReleaseRef | DraftRef) -> bool:
    """Return whether a release is sealed; ReleaseNotFound where it does not exist."""
    found = connection.execute("SELECT sealed FROM releases WHERE incarnation = ?", (release.incarnation,)).fetchone()
    if found is None:
        raise ReleaseNotFound(f"release {release.id} is not in this store")
    return bool(found[0])


def _claimed(connection: sqlite3.Connection, draft: DraftRef) -> None:
    """Raise ReleaseConflict where a release is sealed, or another writer's."""
    if _state(connection, draft):
        raise ReleaseConflict(f"release {draft.id} is sealed; publish a new one")
    found = connection.execute("SELECT writer FROM releases WHERE incarnation = ?", (draft.incarnation,)).fetchone()
    if found != (draft.writer,):
        raise ReleaseConflict(f"release {draft.id} is written by another process now, which took it over")


def _read(connection: sqlite3.Connection, release: ReleaseRef, key: str) -> bytes | None:
    select = "SELECT value FROM rows WHERE incarnation = ? AND key = ?"
    found = connection.execute(select, (release.incarnation, key.encode())).fetchone()
    return None if found is None else found[0]


def open_url(url: str) -> SqliteStore:
    """Open `sqlite:///PATH`; the file is made by the first call."""
    path = urlsplit(url).path
    if not path.startswith("/") or path == "/":
        raise StoreMisused(f"{url!r} names no file; write three slashes, as in sqlite:///var/lib/lists.db")
    return SqliteStore(Path(path))
