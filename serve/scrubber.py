"""Reads what is served in the background and checks each value, so damage is known before a user meets it."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import perf_counter

from hotplate.serve.metrics import SCRUBBED, Metrics
from hotplate.serve.releases.release import ServedRelease
from hotplate.serve.tiers import Tier
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import ReleaseCorrupt, StoreError
from hotplate.stores.store import Store
from hotplate.stores.verification import scrub

log = logging.getLogger(__name__)

# How long to wait before the next tier: also if nothing is served yet, or a release has only a few rows.
PAUSE_S = 1.0


class _NotServed(Exception):
    """The release is not served any more, so it need not be read on."""


class Scrubber:
    """Reads what each tier serves, the canary too, over and over, at a steady rate; in one worker of a service.

    It has stores of its own, so no lookup waits behind its reads.
    """

    def __init__(self, tiers: Sequence[Tier], stores: Mapping[str, Store], metrics: Metrics, rows_per_s: float) -> None:
        """Take the tiers whose releases are read, and a store for each by the tier's name."""
        self._tiers = tiers
        self._stores = stores
        self._metrics = metrics
        self._rows_per_s = rows_per_s
        self._damaged = {tier.name: dict[ReleaseRef, int]() for tier in tiers}
        """How many values were damaged in the last pass over each release."""

    async def run(self) -> None:
        """Scrub until cancelled, whatever the stores raise; then close them."""
        try:
            while True:
                for tier in self._tiers:
                    for served in tier.follower.all_served:
                        await self._scrub(tier, served)
                    await asyncio.sleep(PAUSE_S)
        finally:
            for store in self._stores.values():
                await store.close()

    async def _scrub(self, tier: Tier, served: ServedRelease) -> None:
        started, counted = perf_counter(), 0

        def count(done: int, _: int) -> None:
            nonlocal counted
            if not any(one is served for one in tier.follower.all_served):
                raise _NotServed
            self._metrics.count_in(SCRUBBED, tier.name, number=done - counted)
            counted = done

        try:
            result = await scrub(self._stores[tier.name], served.ref, rows_per_s=self._rows_per_s, on_progress=count)
        except _NotServed:
            return
        except ReleaseCorrupt as error:
            damage, damaged = error, 1
        except StoreError as error:
            log.info("%s: not scrubbed for now: %s", tier.name, error)
            return
        except Exception:
            log.exception("%s: scrubbing failed", tier.name)
            return
        else:
            damage, damaged = ReleaseCorrupt(result.finding), result.count + result.missing
        if damaged:
            tier.report_damage(served, damage)
        known = self._damaged[tier.name]
        known[served.ref] = damaged
        in_all = sum(known.get(one.ref, 0) for one in tier.follower.all_served)
        self._metrics.set_scrub(tier.name, in_all, perf_counter() - started)
