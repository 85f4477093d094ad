"""Lookups: one list for one id out of the release that is followed, and popular where there is none; never empty."""

import asyncio
from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

from serve.following import Follower, View
from serve.metrics import Metrics
from serve.problems import not_ready
from stores.errors import ReleaseCorrupt, ReleaseNotFound, StoreError
from stores.keys import ITEM, OVERALL, USER
from stores.store import LocalReader, Reader, Slot


class Found(NamedTuple):
    """A list and where it came from: the release it was read in, and `personal`, `similar` or `popular`."""

    view: View
    source: str
    value: bytes


class Lookup:
    """Answers from one reader, inside a deadline; lives as long as the service."""

    def __init__(self, reader: Reader, follower: Follower, metrics: Metrics, deadline_s: float) -> None:
        self._reader = reader
        self._local = reader if isinstance(reader, LocalReader) else None
        self._follower = follower
        self._metrics = metrics
        self._deadline_s = deadline_s

    def view(self) -> View:
        """Return the release that is served now; a 503 where there has been none yet."""
        view = self._follower.view
        if view is None:
            raise not_ready(self._follower.trouble or "the live release is being loaded; try again in a second")
        return view

    async def personal(self, user: str, segment: str) -> Found:
        """Look up one user's list."""
        return await self._one(USER + user, "personal", segment)

    async def similar(self, item: str) -> Found:
        """Look up the items that are like *item*."""
        return await self._one(ITEM + item, "similar", OVERALL)

    def popular(self, segment: str) -> Found:
        """Return the popular list of a segment, or the one for everybody where the segment has none."""
        found = _popular(self.view(), segment)
        self._metrics.count_lookup("popular", "hit")
        return found

    async def personal_many(self, users: Sequence[str]) -> list[Found]:
        """Look up many users in one release, in order."""
        view, slots = await self._read(self.view(), [USER + user for user in users])
        return [self._found(view, slot, "personal", OVERALL) for slot in slots]

    async def _one(self, key: str, source: str, segment: str) -> Found:
        view = self.view()
        slot: Slot
        if self._local is not None:
            started = perf_counter()
            try:
                slot = self._local.get(view.release, key)
            except StoreError:
                view, (slot,) = await self._read(view, [key])
            else:
                self._metrics.observe_store("get", "ok", perf_counter() - started)
        else:
            view, (slot,) = await self._read(view, [key])
        return self._found(view, slot, source, segment)

    async def _read(self, view: View, keys: Sequence[str]) -> tuple[View, list[Slot]]:
        """Read keys of one release inside the deadline; a release that is gone is looked for anew, once."""
        try:
            async with asyncio.timeout(self._deadline_s):
                try:
                    return view, await self._read_batches(view, keys)
                except ReleaseNotFound:
                    view = await self._follower.refresh() or view
                    return view, await self._read_batches(view, keys)
        except (StoreError, TimeoutError) as error:
            failure = error if isinstance(error, StoreError) else StoreError("the store did not answer in time")
            return view, [failure] * len(keys)

    async def _read_batches(self, view: View, keys: Sequence[str]) -> list[Slot]:
        slots = list[Slot]()
        for start in range(0, len(keys), self._reader.batch):
            started, outcome = perf_counter(), "error"
            try:
                slots += await self._reader.get_many(view.release, keys[start : start + self._reader.batch])
                outcome = "ok"
            except ReleaseNotFound:
                outcome = "gone"
                raise
            finally:
                self._metrics.observe_store("get_many", outcome, perf_counter() - started)
        return slots

    def _found(self, view: View, slot: Slot, source: str, segment: str) -> Found:
        outcome = "error" if isinstance(slot, StoreError) else "miss"
        if isinstance(slot, bytes):
            try:
                value = view.decode(slot)
            except ReleaseCorrupt:
                outcome = "error"
            else:
                if value:
                    self._metrics.count_lookup(source, "hit")
                    return Found(view, source, value)
        self._metrics.count_lookup("popular", outcome)
        return _popular(view, segment)


def _popular(view: View, segment: str) -> Found:
    return Found(view, "popular", view.popular.get(segment) or view.popular[OVERALL])
