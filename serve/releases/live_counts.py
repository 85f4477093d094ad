"""Workers count the answers of live releases; the admin process judges new releases by these counts.

Failures of the store are not held against a release. Lookups that fail because a store is away do not count, and on
probation a list counts as missing only if the release before has it.
"""

import asyncio
from collections.abc import Sequence

from hotplate.serve.metrics import HIT, LOOKUP_OUTCOMES, MISS, PROBATION_LOOKUPS
from hotplate.serve.releases.comparison import SharedComparisons
from hotplate.serve.releases.counts import ReleaseCounts
from hotplate.serve.releases.served import ReleaseTally, ServedRelease
from hotplate.serve.tasks import repeat
from hotplate.serve.tiers.tier import Tier
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import is_empty
from hotplate.stores.errors import ReleaseCorrupt, StoreError
from hotplate.stores.store import Reader, ReadResult, batches_of

# Interval of counting.
COUNT_S = 1.0
# Time limits of looking up missed keys in the release before, and of each call of the store for that.
PRESENT_S = 1.0
PRESENT_STORE_S = 0.9


class ReleaseCounter:
    """Counts what the live releases of a worker answer, in its metrics."""

    def __init__(self, shared: SharedComparisons, tiers: Sequence[Tier]) -> None:
        self._shared = shared
        self._tiers = tiers

    async def run(self) -> None:
        """Count until cancelled."""
        await repeat(self.count, COUNT_S, "counting what the live releases answer")

    async def count(self) -> None:
        """Count what was answered since the last call."""
        for tier in self._tiers:
            release = tier.follower.live
            if release is not None:
                await self._count_release(tier, release)

    async def _count_release(self, tier: Tier, release: ServedRelease) -> None:
        """Count what *release*, the live one of a tier, has answered since the last call.

        A tier is a store that the service reads. A new live release is on probation: the admin process compares it with
        the release before. A miss, the lookup of an absent list, counts only on probation, and only if the release
        before has the list. Nothing counts of a release that other workers have left for the one that is compared.
        """
        tally = release.tally
        lookups = tally.lookups[""]
        totals = ReleaseCounts(lookups[HIT], lookups[MISS], tally.damaged)
        counted = tally.compared
        tally.compared = totals
        if counted is None:  # counts begin with the first call for a release
            tally.take_missed()  # discards the keys that it missed before
            return

        answered = totals.since(counted)
        tally.unexamined += answered.miss
        lost = 0.0
        probation = self._shared.of(tier.name).running
        if probation is not None and probation.release == release.ref:
            lost = await _count_lost_lists(tier, tally, probation.before)
        if self._shared.of(tier.name).live != release.ref:  # or it has changed meanwhile
            return
        for outcome, number in zip(LOOKUP_OUTCOMES, (answered.hit, lost, answered.error), strict=True):
            tier.metrics.count_in(PROBATION_LOOKUPS, tier.name, outcome, number=number)


async def _count_lost_lists(tier: Tier, tally: ReleaseTally, before: ReleaseRef) -> float:
    """Estimate how many of the unexamined misses of a release are of lists that *before*, the release before, has.

    Its tally has the keys of the last misses, a sample of all. The estimate is the number of misses times the share of
    these keys that the release before has. If it cannot be read, returns 0, and the misses stay unexamined.
    """
    misses = tally.unexamined
    if not misses:
        return 0.0
    previous = await tier.follower.release_before(before)
    if previous is None:
        return 0.0

    keys = tally.take_missed()
    share = await share_present(tier.reader, previous, keys)
    if share is None:
        tally.missed.extend(keys)  # examined later
        return 0.0
    tally.unexamined = 0.0
    return misses * share


async def share_present(reader: Reader, release: ServedRelease, keys: Sequence[str]) -> float | None:
    """Return the share of *keys* (0 to 1) that have a list in a release; None if it cannot be read in PRESENT_S.

    The lists are read from the store directly, in batches, so that this is neither counted as requests nor cached.
    """
    present = 0
    try:
        async with asyncio.timeout(PRESENT_S):
            for batch in batches_of(keys, reader.batch):
                results = await reader.get_many(release.ref, batch, timeout_s=PRESENT_STORE_S)
                present += sum(_has_list(release, key, result) for key, result in zip(batch, results, strict=True))
    except (TimeoutError, StoreError):
        return None
    return present / max(1, len(keys))


def _has_list(release: ServedRelease, key: str, result: ReadResult) -> bool:
    """Return whether a result has a list; raises StoreError if it could not be read."""
    if result is None or isinstance(result, ReleaseCorrupt):
        return False
    if isinstance(result, StoreError):
        raise result
    try:
        return not is_empty(release.decode(key, result))
    except ReleaseCorrupt:
        return False
