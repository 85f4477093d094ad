"""A store in a dict: the fake that tests run against, held to the same contract as every other."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace

from stores.catalogue import Catalogue, ReleaseId
from stores.errors import ReleaseConflict, ReleaseNotFound
from stores.keys import META
from stores.store import Plan, Row, Slot


@dataclass(slots=True)
class _Shelf:
    rows: dict[str, bytes] = field(default_factory=dict)
    sealed: bool = False


class MemoryStore:
    """Holds everything in this process and loses it with it; *clock* stands in for the store's own time."""

    batch = 64

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._catalogue = Catalogue()
        self._shelves = dict[ReleaseId, _Shelf]()
        self._watchers = set[asyncio.Event]()

    def get(self, release: ReleaseId, key: str) -> bytes | None:
        return self._shelf(release).rows.get(key)

    async def get_many(self, release: ReleaseId, keys: Sequence[str]) -> list[Slot]:
        rows = self._shelf(release).rows
        return [rows.get(key) for key in keys]

    async def catalogue(self) -> Catalogue:
        return replace(self._catalogue, now=self._clock())

    async def changes(self) -> AsyncIterator[Catalogue]:
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield await self.catalogue()
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def close(self) -> None:
        """Nothing to give back."""

    async def create(self, release: ReleaseId, plan: Plan) -> None:  # noqa: ARG002 -- a dict has room
        self._shelves.setdefault(release, _Shelf())

    async def put(self, release: ReleaseId, rows: Sequence[Row]) -> None:
        shelf = self._shelf(release)
        if shelf.sealed:
            raise ReleaseConflict(f"release {release} is sealed; publish a new one")
        shelf.rows.update(rows)

    async def resume_point(self, release: ReleaseId) -> str | None:
        keys = (key for key in self._shelf(release).rows if not key.startswith(META))
        return max(keys, key=str.encode, default=None)

    async def seal(self, release: ReleaseId) -> None:
        self._shelf(release).sealed = True

    async def scan(self, release: ReleaseId) -> AsyncIterator[Row]:
        rows = self._shelf(release).rows
        for key in sorted(rows, key=str.encode):
            yield Row(key, rows[key])

    async def prepare(self, release: ReleaseId) -> None:
        self._shelf(release)

    async def swap(self, old: Catalogue, new: Catalogue) -> None:
        if self._catalogue.version != old.version:
            raise ReleaseConflict("the catalogue was changed by somebody else first")
        self._catalogue = new
        for watcher in self._watchers:
            watcher.set()

    async def erase(self, release: ReleaseId) -> None:
        self._shelves.pop(release, None)

    def _shelf(self, release: ReleaseId) -> _Shelf:
        try:
            return self._shelves[release]
        except KeyError as error:
            raise ReleaseNotFound(f"release {release} is not in this store") from error
