"""A store for hotplate in one SQLite file, `sqlite:///PATH`: an example of a backend that lives outside of hotplate.

SQLite answers in microseconds, so that its calls are made where they are, without a thread. One table holds everything:
the rows of each incarnation, beside them what is known of it under keys that begin with @, and the catalogue.
"""

import shutil
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from hotplate import (
    META,
    Catalogue,
    CheckCatalogue,
    DraftRef,
    Plan,
    ReadResult,
    RecordChange,
    ReleaseConflict,
    ReleaseNotFound,
    ReleaseRef,
    Row,
    Store,
    StoreFull,
    StoreMisused,
    StoreUnavailable,
    dump_catalogue,
    parse_catalogue,
)

TABLE = "CREATE TABLE IF NOT EXISTS rows (owner TEXT, key BLOB, value BLOB, PRIMARY KEY (owner, key)) WITHOUT ROWID"
CATALOGUE = ("", "@catalogue")
LOCK_TIMEOUT_S = 5.0


class SqliteStore(Store):
    """One file of releases; one instance per process."""

    batch = coalesce = 64
    poll_s = 0.1

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: sqlite3.Connection | None = None

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        del timeout_s  # a local file is never late
        await self.prepare(release)
        return [self._get(release.incarnation, key) for key in keys]

    async def catalogue(self) -> Catalogue:
        record = self._get(*CATALOGUE)
        now = time.time()
        return Catalogue(now=now) if record is None else parse_catalogue(record, now=now, where=str(self._path))

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._get(CATALOGUE[0], name) for name in names]

    async def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        del plan  # the file grows as it must
        with self._transaction():
            if self._get(draft.incarnation, "@sealed") is not None:
                raise ReleaseConflict(f"release {draft.id} is sealed; publish a new one")
            self._set(draft.incarnation, Row("@writer", draft.writer.encode()))

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        with self._transaction():
            self._check_claim(draft)
            self._set(draft.incarnation, *rows)
            if keys := [row.key for row in rows if not row.key.startswith(META)]:
                self._set(draft.incarnation, Row(f"@point {part}", max(keys).encode()))

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        self._check_claim(draft)
        key = self._get(draft.incarnation, f"@point {part}")
        return None if key is None else key.decode()

    async def seal(self, draft: DraftRef) -> None:
        with self._transaction():
            if self._get(draft.incarnation, "@sealed") is None:
                self._check_claim(draft)
                self._set(draft.incarnation, Row("@sealed", b""))

    async def is_sealed(self, release: ReleaseRef) -> bool:
        return self._get(release.incarnation, "@sealed") is not None

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        await self.prepare(release)
        select = "SELECT key, value FROM rows WHERE owner = ? AND substr(key, 1, 1) != ? ORDER BY key"
        with self._connection() as connection:
            for key, value in connection.execute(select, (release.incarnation, b"@")):
                yield Row(key.decode(), value)

    async def prepare(self, release: ReleaseRef) -> None:
        if not await self.is_sealed(release):
            raise ReleaseNotFound(f"release {release.id} is not in this store")

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        with self._transaction():
            if isinstance(old, bytes):
                is_stored = self._get(*CATALOGUE) == old
            else:
                is_stored = (await self.catalogue()).version == old.version
            if not is_stored:
                raise ReleaseConflict("the catalogue was changed by somebody else first")
            self._write_control(new, records)

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        with self._transaction(), self._connection() as connection:
            check(await self.catalogue())
            connection.execute("DELETE FROM rows WHERE owner = ?", (release.incarnation,))

    async def incarnations(self) -> list[str]:
        with self._connection() as connection:
            owners = connection.execute("SELECT DISTINCT owner FROM rows WHERE owner != ''")
            return [owner for (owner,) in owners]

    async def check_room(self, draft: DraftRef, plan: Plan) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if plan.payload_bytes > free:
            raise StoreFull(f"release {draft.id} takes {plan.payload_bytes:,} bytes, and {free:,} are free")

    def _write_control(self, new: Catalogue, records: Sequence[RecordChange]) -> None:
        owner, key = CATALOGUE
        self._set(owner, Row(key, dump_catalogue(new)), *(Row(change.name, change.after) for change in records))

    def _check_claim(self, draft: DraftRef) -> None:
        """Raise ReleaseConflict if a release is sealed, or another writer's; ReleaseNotFound if it is gone."""
        writer = self._get(draft.incarnation, "@writer")
        if writer is None:
            raise ReleaseNotFound(f"release {draft.id} is not in this store")
        if writer != draft.writer.encode():
            raise ReleaseConflict(f"release {draft.id} is written by another process now, which took it over")
        if self._get(draft.incarnation, "@sealed") is not None:
            raise ReleaseConflict(f"release {draft.id} is sealed; publish a new one")

    def _get(self, owner: str, key: str) -> bytes | None:
        with self._connection() as connection:
            select = "SELECT value FROM rows WHERE owner = ? AND key = ?"
            row = connection.execute(select, (owner, key.encode("utf-8", "surrogatepass"))).fetchone()
        return None if row is None else row[0]

    def _set(self, owner: str, *rows: Row) -> None:
        with self._connection() as connection:
            insert = "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)"
            connection.executemany(insert, [(owner, row.key.encode(), row.value) for row in rows])

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, opened at the first call; the one place where SQLite's errors end."""
        try:
            if self._opened is None:
                self._opened = sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None)
                self._opened.execute("PRAGMA journal_mode = WAL")
                self._opened.execute(TABLE)
            yield self._opened
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self._path} cannot be used: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Hold the file's one write lock, and write all of the block or nothing."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")


def open_url(url: str) -> SqliteStore:
    """Open `sqlite:///PATH`; the file is made by the first call."""
    path = urlsplit(url).path
    if not path.startswith("/") or path == "/":
        raise StoreMisused(f"{url!r} names no file; write three slashes, as in sqlite:///var/lib/lists.db")
    return SqliteStore(Path(path))
