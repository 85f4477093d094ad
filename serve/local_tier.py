"""Tiers whose store is in this process."""

import asyncio
from collections.abc import Awaitable, Sequence
from time import perf_counter

from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.tiers import Tier, batches_of, loop_time, unless_all_failed
from hotplate.stores.errors import StoreError
from hotplate.stores.store import LocalRows, ReadResult

# Keys of a local store read before other requests run: half a millisecond.
KEYS_AT_ONCE = 256

_UNREADABLE = StoreError("the value cannot be read")


class LocalTier(Tier):
    """A store in this process, such as files: one key is read at once, and without a time limit."""

    damage_raises_anything = True

    def local_rows(self, release: ServedRelease) -> LocalRows | None:
        """Return the rows of a release for the fast lane; None if they are to be read by `get`."""
        try:
            return self.reader.rows_of(release.ref)
        except StoreError:
            return None

    def get(self, release: ServedRelease, key: str) -> ReadResult:
        """Read, time and decode one key; damage is a StoreError."""
        started = perf_counter()
        try:
            value = self.reader.get(release.ref, key)
            took_s = perf_counter() - started
            self._observe_read(self.read_cell, took_s, release)
            return None if value is None else release.decode(key, value)
        except StoreError as error:
            return error
        except Exception:  # noqa: BLE001 -- an unreadable page must not become a 500
            return _UNREADABLE

    async def read(self, release: ServedRelease, keys: Sequence[str], timeout_s: float) -> list[ReadResult]:
        """Read *keys* in *release*: one decoded result per key. The time limit is only for reading the catalogue.

        Raises ReleaseMoved, and StoreError if nothing could be read.
        """
        return await self._read_or_follow(release, keys, loop_time() + timeout_s)

    async def _read_all(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> list[ReadResult]:
        """Read batches in turn; other requests run between them."""
        results = list[ReadResult]()
        for batch in batches_of(keys, KEYS_AT_ONCE):
            if results:
                await asyncio.sleep(0)
            results += await self._read_part(release, batch, deadline)
        return unless_all_failed(results)

    def _call(self, release: ServedRelease, keys: Sequence[str], deadline: float) -> Awaitable[list[ReadResult]]:
        del deadline  # these calls do not wait
        return self.reader.get_many(release.ref, keys)
