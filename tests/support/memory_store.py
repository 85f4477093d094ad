"""A store in a dict: the fake that tests run against, held to the same contract as every other."""

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace

from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseRef
from hotplate.stores.encoding import META
from hotplate.stores.store import (
    CheckCatalogue,
    LocalRows,
    Plan,
    ReadResult,
    RecordChange,
    Row,
    Store,
    catalogue_changed,
    not_found,
    sealed,
    taken_over,
)


@dataclass(slots=True)
class _StoredRelease:
    writer: str
    rows: dict[str, bytes] = field(default_factory=dict)
    sealed: bool = False
    points: dict[int, str] = field(default_factory=dict)
    """The last key of each part."""


@dataclass(frozen=True, slots=True)
class MemoryRows:
    read: Callable[[bytes], bytes | None]


# Of a store whose changes are noticed at once.
POLL_S = 0.01


class MemoryStore(Store):
    """Holds everything in this process and loses it with it; *clock* is the store's own time."""

    batch = coalesce = 64
    is_local = True
    erases_rows = True
    poll_s = POLL_S

    def __init__(self, clock: Callable[[], float] = time.time, catalogue: Catalogue | None = None) -> None:
        self.clock = clock
        self.current = catalogue or Catalogue()
        self.releases = dict[str, _StoredRelease]()
        self.beside = dict[str, bytes]()

    def get(self, release: ReleaseRef, key: str) -> bytes | None:
        return self.find(release).rows.get(key)

    def rows_of(self, release: ReleaseRef) -> LocalRows:
        return MemoryRows(lambda key: self.get(release, key.decode()))

    async def warm(self, release: ReleaseRef) -> None:
        """Nothing to bring: it is in memory."""

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        del timeout_s  # a dict is never late
        return [self.get(release, key) for key in keys]

    async def catalogue(self) -> Catalogue:
        return replace(self.current, now=self.clock())

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        return [self.beside.get(name) for name in names]

    async def close(self) -> None:
        """Do nothing: there are no resources to release."""

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        del plan  # a dict has room
        stored = self.releases.setdefault(draft.incarnation, _StoredRelease(draft.writer))
        if stored.sealed:
            raise sealed(draft)
        stored.writer = draft.writer

    async def put(self, draft: DraftRef, rows: Sequence[Row], part: int = 0) -> None:
        stored = self._claimed(draft)
        if stored.sealed:
            raise sealed(draft)
        stored.rows.update(rows)
        if keys := [key for key, _ in rows if not key.startswith(META)]:
            stored.points[part] = max(keys)

    async def resume_point(self, draft: DraftRef, part: int = 0) -> str | None:
        return self._claimed(draft).points.get(part)

    async def seal(self, draft: DraftRef) -> None:
        if not self.find(draft).sealed:
            self._claimed(draft).sealed = True

    async def is_sealed(self, release: ReleaseRef) -> bool:
        return release.incarnation in self.releases and self.find(release).sealed

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        stored = self.find(release)
        if not stored.sealed:
            raise not_found(release)
        for key, value in sorted(stored.rows.items(), key=lambda row: row[0].encode()):
            yield Row(key, value)

    async def prepare(self, release: ReleaseRef) -> None:
        self.find(release)

    async def swap(self, old: Catalogue | bytes, new: Catalogue, records: Sequence[RecordChange] = ()) -> None:
        if isinstance(old, bytes) or self.current.version != old.version:  # a catalogue in memory is readable
            raise catalogue_changed()
        self.current = new
        self.beside |= {change.name: change.after for change in records}

    async def erase(self, release: ReleaseRef, check: CheckCatalogue) -> None:
        check(await self.catalogue())
        self.releases.pop(release.incarnation, None)

    async def erase_rows(self, release: ReleaseRef, keys: Sequence[str], check: CheckCatalogue) -> int:
        check(await self.catalogue())
        rows = self.find(release).rows
        return sum(rows.pop(key, None) is not None for key in keys)

    async def incarnations(self) -> list[str]:
        return list(self.releases)

    def _claimed(self, draft: DraftRef) -> _StoredRelease:
        stored = self.find(draft)
        if stored.writer != draft.writer:
            raise taken_over(draft)
        return stored

    def find(self, release: ReleaseRef | DraftRef) -> _StoredRelease:
        try:
            return self.releases[release.incarnation]
        except KeyError as error:
            raise not_found(release) from error
