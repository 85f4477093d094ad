"""What a publish will take, before anything is written: it runs into a stand-in that keeps rows in a temporary file."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.manifest import Manifest
from hotplate.stores.memory import MemoryStore
from hotplate.stores.store import BATCH_ROWS, Diagnosed, Estimate, Plan, ProvisionedStore, PublishCounts, Row, Store


async def estimate(store: Store, publish: Callable[[Store], Awaitable[Manifest]], *, live: bool) -> Estimate:
    """Run *publish* into a stand-in for *store*, and return what it would take there; nothing is written.

    The stand-in begins with the store's own catalogue, and refuses with StoreFull what cannot fit.
    """
    if isinstance(store, ProvisionedStore):
        found, error = await store.try_catalogue()
    else:
        found, error = await store.catalogue(), ""
    stand_in = _StandIn(store, found)
    manifest = await publish(stand_in)
    key, value = manifest.key_row
    plan = Plan(manifest.rows + 1, manifest.bytes + len(key) + len(value))
    if not isinstance(store, ProvisionedStore):
        return Estimate(plan.rows, plan.payload_bytes, fits=True if isinstance(store, Diagnosed) else None)
    stand_in.counts.checked = len(manifest.sample) + len(manifest.segments)
    made = store.estimate(plan, stand_in.counts, first=not found.generation, live=live)
    if not error:
        return made
    note = f"assumed: nothing was published there before; it could not be read: {error}"
    return replace(made, notes=(note, *made.notes))


class _StandIn(MemoryStore):
    """A memory store with the catalogue and the room of another, whose rows are in a temporary file, and counted."""

    def __init__(self, store: Store, catalogue: Catalogue) -> None:
        """Take the store that it stands in for, and the catalogue to begin with."""
        clock = asyncio.get_running_loop().time
        began = clock()
        super().__init__(lambda: catalogue.now + clock() - began, catalogue)
        self.batch = store.batch
        self.counts = PublishCounts(erased=0)
        self._store = store
        self._rows = _Spool()

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        self._find(release)
        return self._rows.get(release.incarnation, key)

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        if isinstance(self._store, Diagnosed):
            await self._store.check_room(draft, plan)
        await super().create(draft, plan)

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        await super().put(draft, (), part)  # checks that it may be written
        self._rows.put(draft.incarnation, rows)
        if isinstance(self._store, ProvisionedStore):
            self.counts.sizes.update(map(self._store.row_bytes, rows))
            self.counts.batches += -(-len(rows) // BATCH_ROWS)

    async def erase(self, release: ReleaseRef) -> None:
        self.counts.erased += 1
        await super().erase(release)

    async def scan(self, release: ReleaseRef) -> AsyncIterator[Row]:
        self._find(release)
        for key, value in self._rows.scan(release.incarnation):
            yield Row(key, value)


class _Spool:
    """Rows in a private temporary file, because a release may not fit into memory; by release and key."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE rows (space, key, value, PRIMARY KEY (space, key)) WITHOUT ROWID")
        self._database.execute("BEGIN")  # never committed: nothing of it is to be kept

    def get(self, space: str, key: str) -> bytes | None:
        """Return a value; None if there is none."""
        found = self._database.execute("SELECT value FROM rows WHERE (space, key) = (?, ?)", (space, key.encode()))
        row = found.fetchone()
        return None if row is None else row[0]

    def put(self, space: str, rows: Sequence[tuple[str, bytes]]) -> None:
        """Write rows, in the place of those of the same key."""
        self._database.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", ((space, key.encode(), value) for key, value in rows)
        )

    def scan(self, space: str) -> Iterator[tuple[str, bytes]]:
        """Yield the rows of a space in ascending order of key bytes."""
        found = self._database.execute("SELECT key, value FROM rows WHERE space = ? ORDER BY key", (space,))
        return ((key.decode(), value) for key, value in found)
