"""The memory store as if it were over a network, with faults on demand."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from hotplate.stores import publication
from hotplate.stores.catalogue import Catalogue, DraftRef, ReleaseId, ReleaseRef
from hotplate.stores.errors import StoreError, StoreUnavailable
from hotplate.stores.store import Plan, Reader, ReadResult, Row
from tests.support.memory_store import POLL_S, MemoryStore
from tests.support.stores import as_bodies


class RemoteStore(Reader):
    """The memory store as if it were over a network: no local `get`, and faults on demand."""

    batch = coalesce = 2
    poll_s = POLL_S

    def __init__(self, inner: MemoryStore) -> None:
        self.inner = inner
        self.delay_s = 0.0
        self.failure: Exception | None = None
        self.primary = True
        self.broken_keys = set[str]()
        self.broken_by: StoreError = StoreUnavailable("this one could not be read")
        self.advice: list[str] | None = []
        self.reads = list[list[str]]()
        """The keys of each read of users' lists."""

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        del timeout_s
        if keys[:1] and keys[0].startswith("user:"):
            self.reads.append(list(keys))
        await asyncio.sleep(self.delay_s)
        if self.failure:
            raise self.failure
        results = await self.inner.get_many(release, keys)
        return [
            self.broken_by if key in self.broken_keys else result for key, result in zip(keys, results, strict=True)
        ]

    async def catalogue(self) -> Catalogue:
        if self.failure:
            raise self.failure
        return replace(await self.inner.catalogue(), primary=self.primary)

    async def records(self, names: Sequence[str]) -> list[bytes | None]:
        if self.failure:
            raise self.failure
        return await self.inner.records(names)

    async def warnings(self) -> list[str]:
        if self.advice is None:
            raise StoreUnavailable("not now")
        return self.advice

    async def close(self) -> None:
        await self.inner.close()


async def publish(
    store: MemoryStore,
    name: str,
    *,
    live: bool = True,
    segments: int = 0,
    users: range = range(5),
    draft: DraftRef | None = None,
) -> ReleaseId:
    """Publish a list for each of *users*, and popular ones, all of which name the release *name*."""

    async def batches() -> AsyncIterator[Sequence[Row]]:
        popular = [Row("popular:", name.encode())] + [Row(f"popular:s{n}", b"%d" % n) for n in range(segments)]
        yield as_bodies(popular)
        yield as_bodies([Row(f"user:{n}", f"{name} for {n}".encode()) for n in users])

    activation = publication.LIVE if live else None
    written = await publication.publish_release(store, batches(), plan=Plan(6, 100), activation=activation, draft=draft)
    return written.manifest.release
