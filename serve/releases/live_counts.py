"""Workers count the answers of live releases; the admin process judges new releases by these counts.

Failures of the store are not held against a release. Lookups that fail because a store is away do not count, and on
probation a list counts as missing only if the release before has it.
"""

import asyncio
import time
from collections.abc import Sequence

import msgspec

from hotplate.serve.metrics import CANARY, HISTOGRAM_CELLS, HIT, MISS, OPERATIONS, Metrics
from hotplate.serve.releases.canary import ReleaseCounts
from hotplate.serve.releases.probation_state import TierProbation
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.shared_table import Records
from hotplate.serve.tasks import repeat
from hotplate.serve.tiers import Tier, batches_of
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.encoding import is_empty
from hotplate.stores.errors import ReleaseCorrupt, StoreError
from hotplate.stores.store import Reader, ReadResult

# Interval of counting.
COUNT_S = 1.0
# Time limits of looking up missed keys in the release before, and of each call of the store for that.
PRESENT_S = 1.0
PRESENT_STORE_S = 0.9

# Per tier: a record of two counted releases.
COUNTS_BYTES = 2048


class CountedRelease(msgspec.Struct):
    """What a worker has counted of a release that is or was live in a tier."""

    tier: str
    release: ReleaseRef
    since: float
    """When it became live here, by the monotonic clock."""

    counts: ReleaseCounts = ReleaseCounts()
    """Misses are lists that the release before has, errors damaged values, both only counted on probation."""


class SharedCounts:
    """The counts of all workers, and the probations of all tiers, in shared memory."""

    def __init__(self, counts: Records, probations: Records) -> None:
        """*counts* has a row per worker, *probations* one."""
        self._counts = counts
        self._probations = probations

    def read(self, worker: int) -> list[CountedRelease]:
        """Return what a worker, or an earlier one of its number, has counted."""
        payload = self._counts.read(worker)
        return [] if payload is None else msgspec.msgpack.decode(payload, type=list[CountedRelease])

    def write(self, worker: int, counted: Sequence[CountedRelease]) -> None:
        """Write the counts of a worker."""
        self._counts.write(worker, msgspec.msgpack.encode(counted))

    def counted(self, tier: str) -> list[CountedRelease]:
        """Return the counts of all workers in a tier."""
        rows = [self.read(worker) for worker in range(self._counts.rows)]
        return [counted for row in rows for counted in row if counted.tier == tier]

    def probations(self) -> list[TierProbation]:
        """Return the probations of all tiers; none before the first was written."""
        payload = self._probations.read(0)
        return [] if payload is None else msgspec.msgpack.decode(payload, type=list[TierProbation])

    def keep(self, probations: Sequence[TierProbation]) -> None:
        """Write the probations of all tiers."""
        self._probations.write(0, msgspec.msgpack.encode(probations))


class _Seen(msgspec.Struct, frozen=True):
    release: ServedRelease
    counts: ReleaseCounts


class ReleaseCounter:
    """Counts what the live releases of a worker answer; its successor continues."""

    def __init__(self, shared: SharedCounts, worker: int, tiers: Sequence[Tier], metrics: Metrics) -> None:
        """*metrics* are of this worker."""
        self._shared = shared
        self._worker = worker
        self._tiers = tiers
        self._metrics = metrics
        self._counted = shared.read(worker)
        self._seen = dict[str, _Seen]()
        self._unexamined = dict[str, float]()
        """Misses by tier; the release before may have the lists or not."""

    async def run(self) -> None:
        """Count until cancelled."""
        await repeat(self.count, COUNT_S, "counting what the live releases answer")

    async def count(self) -> None:
        """Count what was answered since the last call."""
        probations = {probation.tier: probation for probation in self._shared.probations()}
        for tier in self._tiers:
            await self._count_tier(tier, probations.get(tier.name))
        self._shared.write(self._worker, self._counted)

    async def _count_tier(self, tier: Tier, probation: TierProbation | None) -> None:
        """Add what the live release of a tier has answered since the last call to its counts, which processes share.

        A tier is a store that the service reads. A new live release is on probation: the admin process compares it with
        the release before. A miss, the lookup of an absent list, counts only on probation, and only if the release
        before has the list. `self._unexamined` has the number of misses that were not looked up there yet.
        """
        release = tier.follower.live
        if release is None:
            return

        totals = self._read_totals(tier, release)
        last = self._seen.get(tier.name)  # the release and the totals of the last call
        self._seen[tier.name] = _Seen(release, totals)
        entry = self._live_entry(tier.name, release.ref)
        if last is None or last.release is not release:  # counts begin with the first call for a release
            self._unexamined[tier.name] = 0.0
            release.tally.take_missed()  # discards the keys that it missed as a canary
            return

        answered = totals.since(last.counts)
        self._unexamined[tier.name] += answered.miss

        before = None if probation is None else probation.before_of(release.ref)
        lost = 0.0
        if before is not None:
            lost = await self._count_lost_lists(tier, release, before)
        entry.counts = entry.counts.plus(answered._replace(miss=lost))

    def _live_entry(self, tier: str, release: ReleaseRef) -> CountedRelease:
        """Return the counts of *release*, the live one of a tier. For a new one, begin them with 0.

        `self._counted` has at most two entries per tier, in this order: of the release before, and of the live one.
        """
        other_tiers = [counted for counted in self._counted if counted.tier != tier]
        own = [counted for counted in self._counted if counted.tier == tier]
        if not own or own[-1].release != release:
            own = [*own[-1:], CountedRelease(tier, release, time.monotonic())]  # the entry before the last is dropped
            self._counted = [*other_tiers, *own]
        return own[-1]

    def _read_totals(self, tier: Tier, release: ServedRelease) -> ReleaseCounts:
        """Return the totals of a release: the lookups that it answered, and the successful reads of its store.

        Reads are counted by buckets of their time, since this worker started, without those of a canary (a release
        that a share of the users gets).
        """
        # Metrics are cells of an array. A histogram has a cell for each bucket from its first cell on, then one for the
        # sum of the values.
        cells = self._metrics.own_cells
        first_cells = [self._metrics.store[tier.name, operation, "ok"] for operation in OPERATIONS]
        first_canary_cell = self._metrics.canary_reads[tier.name, CANARY]

        reads = list[float]()
        for bucket in range(HISTOGRAM_CELLS - 1):
            all_reads = sum(cells[first_cell + bucket] for first_cell in first_cells)
            canary_reads = cells[first_canary_cell + bucket]
            reads.append(max(0.0, all_reads - canary_reads))

        lookups = release.tally.lookups
        return ReleaseCounts(lookups[HIT], lookups[MISS], release.tally.damaged, tuple(reads))

    async def _count_lost_lists(self, tier: Tier, release: ServedRelease, before: ReleaseRef) -> float:
        """Estimate how many of the unexamined misses are of lists that *before*, the release before, has.

        `release.tally.missed` has the keys of the last misses, a sample of all. The estimate is the number of misses
        times the share of these keys that the release before has. If it cannot be read, returns 0, and the misses stay
        unexamined.
        """
        misses = self._unexamined[tier.name]
        if not misses:
            return 0.0
        previous = await tier.follower.release_before(before)
        if previous is None:
            return 0.0

        keys = release.tally.take_missed()
        share = await share_present(tier.reader, previous, keys)
        if share is None:
            release.tally.missed.extend(keys)  # examined later
            return 0.0

        self._unexamined[tier.name] = 0.0
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
