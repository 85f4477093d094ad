"""Reads what is served in the background and checks each value, so that damage is known before a user meets it."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import perf_counter

from serve.metrics import Metrics
from serve.releases.release import ServedRelease
from serve.tiers import Tier
from stores.errors import ReleaseCorrupt, StoreError
from stores.store import Store
from stores.verification import named, scrub

log = logging.getLogger(__name__)

# How long to wait before the next tier: also where nothing is served yet, or a release has but a few rows.
PAUSE_S = 1.0


class _NotServed(Exception):
    """The release is not served any more; there is no use in reading on."""


class Scrubber:
    """Reads the release of each tier in turn, over and over, at a steady rate; in one worker of a service, as it lives.

    It has stores of its own, so that no lookup waits behind its reads.
    """

    def __init__(self, tiers: Sequence[Tier], stores: Mapping[str, Store], metrics: Metrics, rows_per_s: float) -> None:
        """Take the tiers whose releases are read, and a store for each by the tier's name."""
        self._tiers = tiers
        self._stores = stores
        self._metrics = metrics
        self._rows_per_s = rows_per_s

    async def run(self) -> None:
        """Scrub until cancelled, whatever the stores raise; then close them."""
        try:
            while True:
                for tier in self._tiers:
                    served = tier.follower.served
                    if served is not None:
                        await self._scrub(tier, served)
                    await asyncio.sleep(PAUSE_S)
        finally:
            for store in self._stores.values():
                await store.close()

    async def _scrub(self, tier: Tier, served: ServedRelease) -> None:
        """Read one release from its first row to its last."""
        started, counted = perf_counter(), 0

        def count(done: int, _: int) -> None:
            nonlocal counted
            if tier.follower.served is not served:
                raise _NotServed
            self._metrics.count_scrubbed(tier.name, done - counted)
            counted = done

        try:
            result = await scrub(self._stores[tier.name], served.ref, rows_per_s=self._rows_per_s, on_progress=count)
        except _NotServed:
            return
        except ReleaseCorrupt as error:
            self._report(tier, served, error, damaged=1, seconds=perf_counter() - started)
        except StoreError as error:
            log.info("%s: not scrubbed for now: %s", tier.name, error)
        except Exception:
            log.exception("%s: scrubbing failed", tier.name)
        else:
            damage = ReleaseCorrupt(named(result.damaged, result.count)) if result.count else None
            self._report(tier, served, damage, damaged=result.count, seconds=perf_counter() - started)

    def _report(
        self, tier: Tier, served: ServedRelease, damage: ReleaseCorrupt | None, *, damaged: int, seconds: float
    ) -> None:
        self._metrics.set_scrub(tier.name, damaged, seconds)
        if damage is not None:
            tier.report_damage(served, damage)
