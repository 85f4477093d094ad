"""Lookups: one list for one id from the first tier that has it, and popular where there is none; never empty."""

from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from serve.following import View
from serve.metrics import Metrics
from serve.problems import not_ready
from serve.tiers import Tier
from stores.catalogue import ReleaseId
from stores.errors import StoreError
from stores.keys import ITEM, OVERALL, USER
from stores.store import Slot

BUDGET_S_PER_USER = 0.0005
"""What each user of a batch adds to its budget: whoever asks for thousands would rather wait than get popular lists."""


class Found(NamedTuple):
    """A list and where it came from: the tier, the release in it, and `personal`, `similar` or `popular`."""

    tier: str
    view: View
    source: str
    value: bytes


class Lookup:
    """Answers from tiers, in their order, inside a budget of time; lives as long as its worker.

    The first tier to return a list in its share of the budget wins. A tier that fails is passed over; one that has no
    such list is followed by a tier with another release only.
    """

    def __init__(self, tiers: Sequence[Tier], metrics: Metrics, budget_s: float) -> None:
        self._tiers = tiers
        self._metrics = metrics
        self._budget_s = budget_s

    def release(self) -> ReleaseId:
        """Return the release of the first tier that serves; a 503 where none does yet."""
        return self._first().view.release

    async def personal(self, user: str, segment: str) -> Found:
        """Look up one user's list."""
        return await self._one(USER + user, "personal", segment)

    async def similar(self, item: str) -> Found:
        """Look up the items that are like *item*."""
        return await self._one(ITEM + item, "similar", OVERALL)

    def popular(self, segment: str) -> Found:
        """Return the popular list of a segment, or the one for everybody where the segment has none."""
        self._metrics.count_lookup("popular", "hit")
        return self._first(segment)

    async def personal_many(self, users: Sequence[str]) -> list[Found]:
        """Look up many users in one release, in order: the first tier that can be read answers for all."""
        keys = [USER + user for user in users]
        deadline = monotonic() + self._budget_s + BUDGET_S_PER_USER * len(users)
        for place, tier in enumerate(self._tiers):
            view = tier.follower.view
            if view is None:
                continue
            try:
                read_in, slots = await tier.read(view, keys, self._share_s(place, deadline))
            except StoreError:
                continue
            return [
                self._found(tier, read_in, slot, "personal") or self._popular(tier, read_in, slot) for slot in slots
            ]
        first = self._first()
        for _ in users:
            self._metrics.count_lookup("popular", "error")
        return [first] * len(users)

    async def _one(self, key: str, source: str, segment: str) -> Found:
        deadline = monotonic() + self._budget_s
        missed: tuple[Tier, View] | None = None
        tried: tuple[ReleaseId, ...] = ()
        for place, tier in enumerate(self._tiers):
            view = tier.follower.view
            if view is None or view.release in tried:
                continue
            slot = tier.get(view, key)
            if isinstance(slot, StoreError):
                try:
                    view, (slot,) = await tier.read(view, [key], self._share_s(place, deadline))
                except StoreError:
                    continue
            if found := self._found(tier, view, slot, source):
                return found
            if not isinstance(slot, StoreError):
                tried = (*tried, view.release)
                missed = missed or (tier, view)
        if missed is not None:
            return self._popular(*missed, None, segment)
        first = self._first(segment)
        self._metrics.count_lookup("popular", "error")
        return first

    def _share_s(self, place: int, deadline: float) -> float:
        """Return what the tier at *place* may take, in seconds: what is left, shared with the tiers after it."""
        return max(0.0, deadline - monotonic()) / (len(self._tiers) - place)

    def _found(self, tier: Tier, view: View, slot: Slot, source: str) -> Found | None:
        if isinstance(slot, bytes) and slot:
            self._metrics.count_lookup(source, "hit")
            return Found(tier.name, view, source, slot)
        return None

    def _popular(self, tier: Tier, view: View, slot: Slot, segment: str = OVERALL) -> Found:
        self._metrics.count_lookup("popular", "error" if isinstance(slot, StoreError) else "miss")
        return _popular(tier, view, segment)

    def _first(self, segment: str = OVERALL) -> Found:
        """Return the popular list of the first tier that serves, out of memory; a 503 where none does yet."""
        for tier in self._tiers:
            if tier.follower.view is not None:
                return _popular(tier, tier.follower.view, segment)
        troubles = "; ".join(tier.trouble for tier in self._tiers if tier.trouble)
        raise not_ready(troubles or "the live release is being loaded; try again in a second")


def _popular(tier: Tier, view: View, segment: str) -> Found:
    return Found(tier.name, view, "popular", view.popular.get(segment) or view.popular[OVERALL])
