"""Probation: a release that went live is compared with the one before, and withdrawn if it is worse.

Workers count what each live release answers (`ReleaseCounter`). The admin process judges (`Probation`): it compares a
release, from its activation on, with the last hour of the release before, by the judgement of a canary.

Failures of the store are not held against the release. Lookups that fail because a store is away do not count, nothing
is judged while a circuit is open, and a list counts as missing only if the release before has it. Before a release is
withdrawn, the one before must be whole and, if reads are slow, faster.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from enum import Enum

import msgspec

from hotplate.serve.metrics import CANARY, HISTOGRAM_CELLS, HIT, MISS, OPERATIONS, Metrics
from hotplate.serve.releases.canary import MORE_FALLBACKS, MORE_SLOW, NO_READS, ReleaseCounts, find_regression, slow_s
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.shared_table import Records
from hotplate.serve.states import SharedStates
from hotplate.serve.tasks import repeat
from hotplate.serve.tiers import Tier, batches_of
from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import Catalogue, ReleaseRef, State
from hotplate.stores.connect import opened
from hotplate.stores.encoding import is_empty
from hotplate.stores.errors import ReleaseConflict, ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.lifecycle import rollback
from hotplate.stores.store import Reader, ReadResult, Store
from hotplate.stores.verification import read_servable

log = logging.getLogger(__name__)

# Interval of counting and of judging.
COUNT_S = 1.0
# The release before is judged by its last hour, sampled each minute.
HOUR_S = 3600.0
SAMPLE_S = 60.0
# A probation lasts until there were this many lookups, but no longer than an hour.
LOOKUPS = 300
# Whose share a release on probation is compared with, as the end of a sentence.
BASELINE = "expected from the release before"
# The share of the lists that a good release may lose: those of users whose last event has become too old.
NATURAL_LOSS = 0.0005
# Time limits of reading a catalogue and of a withdrawal, and the pause after one that failed.
CATALOGUE_S = 5.0
WITHDRAW_S = 60.0
RETRY_S = 10.0
# Withdrawn releases that are remembered: activated again by an operator, they are not on probation.
REMEMBERED = 8
# Time limits of looking up missed keys in the release before, and of each call of the store for that.
PRESENT_S = 1.0
PRESENT_STORE_S = 0.9

# Per tier: a record of two counted releases, and one of a probation with its history.
COUNTS_BYTES = 2048
PROBATION_BYTES = 32_768


class CountedRelease(msgspec.Struct):
    """What a worker has counted of a release that is or was live in a tier."""

    tier: str
    release: ReleaseRef
    since: float
    """When it became live here, by the monotonic clock."""

    counts: ReleaseCounts = ReleaseCounts()
    """Misses are lists that the release before has, errors damaged values, both only counted on probation."""


class Sample(msgspec.Struct, frozen=True):
    """Counts of a release over all workers at a time of the monotonic clock."""

    at: float
    counts: ReleaseCounts


class ProbationState(Enum):
    """State of the live release of a tier."""

    UNKNOWN = "no live release was seen yet"
    ON_PROBATION = "it is compared with the release before, and withdrawn if it is worse"
    BLOCKED = "it is worse, and could not be withdrawn; that is tried again"
    KEPT = "it was worse at the end of its probation, and could not be withdrawn"
    SETTLED = "it is not on probation, or no longer"


class ProbationEvent(Enum):
    """What changes the state."""

    BEGAN = "another release went live, and is compared with the one before"
    EXEMPTED = "another release went live that is not to be compared"
    FINE = "the release is not worse now"
    FAILED = "the release is worse, and its withdrawal failed"
    WITHDRAWN = "the release is worse, and was withdrawn"
    ENDED = "the time of the probation is over"


# The next state, by what happened and the state before.
TRANSITIONS = {
    ProbationEvent.BEGAN: dict.fromkeys(ProbationState, ProbationState.ON_PROBATION),
    ProbationEvent.EXEMPTED: dict.fromkeys(ProbationState, ProbationState.SETTLED),
    ProbationEvent.FINE: {
        ProbationState.ON_PROBATION: ProbationState.ON_PROBATION,
        ProbationState.BLOCKED: ProbationState.ON_PROBATION,
    },
    ProbationEvent.FAILED: {
        ProbationState.ON_PROBATION: ProbationState.BLOCKED,
        ProbationState.BLOCKED: ProbationState.BLOCKED,
    },
    ProbationEvent.WITHDRAWN: {
        ProbationState.ON_PROBATION: ProbationState.SETTLED,
        ProbationState.BLOCKED: ProbationState.SETTLED,
    },
    ProbationEvent.ENDED: {
        ProbationState.ON_PROBATION: ProbationState.SETTLED,
        ProbationState.BLOCKED: ProbationState.KEPT,
        ProbationState.SETTLED: ProbationState.SETTLED,
    },
}
# In these states the live release is compared with the one before.
JUDGED = {ProbationState.ON_PROBATION, ProbationState.BLOCKED}
# In these it is worse, and was not withdrawn.
WORSE = {ProbationState.BLOCKED, ProbationState.KEPT}


class TierProbation(msgspec.Struct):
    """The live release of a tier, on probation or not."""

    tier: str
    state: ProbationState = ProbationState.UNKNOWN
    live: ReleaseRef | None = None
    compared_with: ReleaseRef | None = None
    """The release that was live before *live*, if that is or was on probation."""

    began: float = 0.0
    expected: ReleaseCounts = ReleaseCounts()
    """Counts of the release before, in its last hour."""

    history: list[Sample] = msgspec.field(default_factory=list[Sample])
    """Of the live release, in the last hour, the oldest first; not empty once a release is live."""

    withdrawn_incarnations: list[str] = msgspec.field(default_factory=list[str])
    """Of releases that were withdrawn or rolled back, also before this service started; the newest last."""

    withdrawn: int = 0
    """Releases that this service has withdrawn."""

    failure: str = ""
    """Why the last withdrawal of the live release failed."""

    def record(self, event: ProbationEvent) -> None:
        """Change the state by what happened."""
        self.state = TRANSITIONS[event][self.state]

    @property
    def before(self) -> ReleaseRef | None:
        """The release to return to; None if the live one is not on probation."""
        return self.compared_with if self.state in JUDGED else None

    @property
    def blocked(self) -> str:
        """Why the live release, which is worse, is not withdrawn; empty otherwise."""
        return self.failure if self.state in WORSE else ""

    def before_of(self, release: ReleaseRef) -> ReleaseRef | None:
        """Return the release to compare *release* with; None if that is not on probation."""
        return self.before if self.live == release else None


class SharedCounts:
    """The counts of all workers, and the probations of all tiers, in shared memory."""

    def __init__(self, counts: Records, probations: Records) -> None:
        """*counts* has a row per worker, *probations* one."""
        self.workers = counts.rows
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
        rows = [self.read(worker) for worker in range(self.workers)]
        return [counted for row in rows for counted in row if counted.tier == tier]

    def probations(self) -> list[TierProbation]:
        """Return the probations of all tiers; none before the first was written."""
        payload = self._probations.read(0)
        return [] if payload is None else msgspec.msgpack.decode(payload, type=list[TierProbation])

    def keep(self, probations: Sequence[TierProbation]) -> None:
        """Write the probations of all tiers."""
        self._probations.write(0, msgspec.msgpack.encode(probations))


class _Seen(msgspec.Struct, frozen=True):
    served: ServedRelease
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
        """Add what a tier's live release has answered since the last call to its shared counts.

        A miss, the lookup of an absent list, counts only on probation, and only if the release before has the list.
        `self._unexamined` has the number of misses that were not looked up there yet.
        """
        served = tier.follower.served
        if served is None:
            return

        totals = self._read_totals(tier, served)
        last = self._seen.get(tier.name)
        self._seen[tier.name] = _Seen(served, totals)
        entry = self._live_entry(tier.name, served.ref)
        if last is None or last.served is not served:  # counts begin with the first call for a release
            self._unexamined[tier.name] = 0.0
            return

        answered = totals.since(last.counts)
        self._unexamined[tier.name] += answered.miss
        before = None if probation is None else probation.before_of(served.ref)
        lost = 0.0
        if before is not None:
            lost = await self._count_lost_lists(tier, served, before)
        entry.counts = entry.counts.plus(answered._replace(miss=lost))

    def _live_entry(self, tier: str, release: ReleaseRef) -> CountedRelease:
        """Return the counts of a tier's live release, which begin with 0 for a new one.

        `self._counted` has two entries per tier, in this order: for the release before the live one, and for this.
        """
        others = [counted for counted in self._counted if counted.tier != tier]
        own = [counted for counted in self._counted if counted.tier == tier]
        if not own or own[-1].release != release:
            own = [*own[-1:], CountedRelease(tier, release, time.monotonic())]
            self._counted = [*others, *own]
        return own[-1]

    def _read_totals(self, tier: Tier, served: ServedRelease) -> ReleaseCounts:
        """Return the lookups of a release, and the successful reads of its store, since this worker started.

        Reads are counted by buckets of their time, without those of a canary.
        """
        # A histogram has a cell for each bucket from its first cell on, then one for the sum.
        cells = self._metrics.own_cells
        first_cells = [self._metrics.store[tier.name, operation, "ok"] for operation in OPERATIONS]
        first_canary_cell = self._metrics.canary_reads[tier.name, CANARY]
        reads = list[float]()
        for bucket in range(HISTOGRAM_CELLS - 1):
            all_reads = sum(cells[first_cell + bucket] for first_cell in first_cells)
            canary_reads = cells[first_canary_cell + bucket]
            reads.append(max(0.0, all_reads - canary_reads))

        lookups = served.tally.lookups
        return ReleaseCounts(lookups[HIT], lookups[MISS], served.tally.damaged, tuple(reads))

    async def _count_lost_lists(self, tier: Tier, served: ServedRelease, before: ReleaseRef) -> float:
        """Return how many of the unexamined misses are of lists that the release before has: an estimate.

        It is their number times the share in a sample of the missed keys, `served.tally.missed`. If the release before
        cannot be read, returns 0, and the misses stay unexamined.
        """
        misses = self._unexamined[tier.name]
        if not misses:
            return 0.0
        previous = await tier.follower.release_before(before)
        if previous is None:
            return 0.0
        keys = list(served.tally.missed)
        served.tally.missed.clear()
        share = await share_present(tier.reader, previous, keys)
        if share is None:
            served.tally.missed.extend(keys)  # examined later
            return 0.0
        self._unexamined[tier.name] = 0.0
        return misses * share


async def share_present(reader: Reader, served: ServedRelease, keys: Sequence[str]) -> float | None:
    """Return the share of *keys* (0 to 1) with a list in a release; None if it cannot be read.

    This read is not a request's: it is neither counted nor cached.
    """
    present = 0
    try:
        async with asyncio.timeout(PRESENT_S):
            for batch in batches_of(keys, reader.batch):
                results = await reader.get_many(served.ref, batch, timeout_s=PRESENT_STORE_S)
                present += sum(_has_list(served, key, result) for key, result in zip(batch, results, strict=True))
    except (TimeoutError, StoreError):
        return None
    return present / max(1, len(keys))


def _has_list(served: ServedRelease, key: str, result: ReadResult) -> bool:
    """Return whether a result has a list; raises StoreError if it could not be read."""
    if result is None or isinstance(result, ReleaseCorrupt):
        return False
    if isinstance(result, StoreError):
        raise result
    try:
        return not is_empty(served.decode(key, result))
    except ReleaseCorrupt:
        return False


class Probation:
    """Judges the releases of all tiers, for all workers of a service."""

    def __init__(
        self,
        stores: Mapping[str, str | Store],
        shared: SharedCounts,
        states: SharedStates,
        *,
        probation_s: float,
        admin_store: str | Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*stores* are URLs by tier, or stores; *admin_store* withdraws the releases of the tier whose store it is."""
        self._stores = stores
        self._shared = shared
        self._states = states
        self._probation_s = probation_s
        self._admin_store = admin_store
        self._clock = clock
        known = {probation.tier: probation for probation in shared.probations()}
        self._probations = [known.get(tier, TierProbation(tier)) for tier in stores]
        self._retry_at = dict.fromkeys(stores, 0.0)

    async def run(self) -> None:
        """Judge until cancelled."""
        await repeat(self.look, COUNT_S, "judging the releases on probation")

    async def look(self) -> None:
        """Judge once."""
        try:
            for probation in self._probations:
                await self._examine_tier(probation)
        finally:
            self._shared.keep(self._probations)

    async def _examine_tier(self, probation: TierProbation) -> None:
        """Update the state of a tier's live release, *probation*, from the counts of all workers, and judge it.

        The newest release in the counts is live; another one than before begins a new state. The sum of its counts is
        added to the history, with a sample per SAMPLE_S seconds of the last hour.
        """
        counted = self._shared.counted(probation.tier)
        if not counted:
            return
        newest = max(counted, key=lambda entry: entry.since).release
        if newest != probation.live:
            has_begun = await self._begin_release(probation, newest, counted)
            if not has_begun:
                return

        counts = _sum_of(counted, newest)
        self._add_sample(probation, counts)
        if probation.before is not None:
            await self._judge(probation, counts)

    def _add_sample(self, probation: TierProbation, counts: ReleaseCounts) -> None:
        """Add *counts* to the history of the live release, if the last sample is old enough."""
        now = self._clock()
        if counts.lookups < probation.history[-1].counts.lookups:
            # Counts began again: since the last call, the release was replaced and activated again.
            probation.history = [Sample(now, ReleaseCounts())]
        if now >= probation.history[-1].at + SAMPLE_S:
            recent = [sample for sample in probation.history if sample.at >= now - HOUR_S]
            probation.history = [*recent, Sample(now, counts)]

    async def _begin_release(
        self, probation: TierProbation, live: ReleaseRef, counted: Sequence[CountedRelease]
    ) -> bool:
        """Set *probation* to the state at the activation of *live*, a release that workers serve already.

        It is on probation if a rollback leads to the release that was live before it. A release that was withdrawn
        earlier is not. *counted* has the counts of all workers. Returns False,
        and changes nothing, while the tier's catalogue cannot be read or does not name the release as live.
        """
        catalogue = await self._read_catalogue(probation.tier)
        if catalogue is None or catalogue.live_ref != live:
            return False

        _remember_withdrawn(probation, catalogue)
        previous = probation.live
        was_withdrawn = live.incarnation in probation.withdrawn_incarnations  # and was activated again by an operator
        if previous is not None and _rollback_target(catalogue) == previous and not was_withdrawn:
            counts_an_hour_ago = probation.history[0].counts
            last_hour = _sum_of(counted, previous).since(counts_an_hour_ago)
            probation.compared_with = previous
            probation.expected = expected_of(last_hour)
            probation.record(ProbationEvent.BEGAN)
        else:
            probation.record(ProbationEvent.EXEMPTED)

        probation.live = live
        probation.began = self._clock()
        probation.history = [Sample(probation.began, ReleaseCounts())]
        self._retry_at[probation.tier] = 0.0
        return True

    async def _read_catalogue(self, tier: str) -> Catalogue | None:
        """Return the catalogue of a tier's store; None if it cannot be read."""
        try:
            async with asyncio.timeout(CATALOGUE_S), opened(self._stores[tier]) as store:
                return await store.catalogue()
        except (TimeoutError, StoreError):
            return None

    async def _judge(self, probation: TierProbation, counts: ReleaseCounts) -> None:
        """Withdraw a release on probation if its *counts* are worse than expected from the release before.

        *counts* are from its activation on. The probation lasts for `self._probation_s` seconds at least, and longer,
        for an hour at most, until there were LOOKUPS lookups. Nothing is judged while a circuit breaker is open: then
        the store fails.
        """
        if self._is_circuit_open(probation.tier):
            return
        finding = find_regression(probation.expected, counts, baseline=BASELINE)
        passed_s = self._clock() - probation.began
        is_over = passed_s >= self._probation_s and (counts.lookups >= LOOKUPS or passed_s >= HOUR_S)

        if finding is None:
            probation.record(ProbationEvent.FINE)
        elif self._clock() >= self._retry_at[probation.tier]:
            await self._withdraw(probation, counts, finding)
            self._retry_at[probation.tier] = self._clock() + RETRY_S
        if is_over:
            probation.record(ProbationEvent.ENDED)

    def _is_circuit_open(self, tier: str) -> bool:
        workers = [state for state in self._states.all() if state is not None]
        return any(own.breaker_open for state in workers for own in state.tiers if own.tier == tier)

    async def _withdraw(self, probation: TierProbation, counts: ReleaseCounts, finding: str) -> None:
        """Roll back a tier's live release to the one before, and end the probation.

        *finding* is the sentence on how it is worse by its *counts*. The live release stays if the one before is
        damaged, and if the only difference is slow reads and the one before is as slow now. Why a rollback fails is
        logged once, and kept in `probation.blocked`; the caller tries again later.
        """
        live = probation.live
        before = probation.before
        if live is None or before is None:
            return
        reason = f"probation: {finding}"
        try:
            async with asyncio.timeout(WITHDRAW_S), self._writable(probation.tier) as store:
                await _check_whole(store, before)
                without_reads = counts._replace(reads=NO_READS)
                is_only_slow = find_regression(probation.expected, without_reads) is None
                if is_only_slow and not await _is_slower(store, live, before, slow_s(probation.expected.reads)):
                    log.info("release %s stays, as release %s is as slow: %s", live.id, before.id, finding)
                    probation.record(ProbationEvent.FINE)
                    return
                await rollback(store, live.id, reason=reason)
        except ReleaseConflict as error:  # an operator or another service has changed the live release
            log.info("release %s is not withdrawn here: %s", live.id, error)
            return
        except (TimeoutError, StoreError) as error:
            if not await self._is_withdrawn(probation.tier, live, reason):
                obstacle = str(error) or f"the store did not answer in {WITHDRAW_S:.0f} s"
                if not probation.blocked:
                    sentence = "release %s is worse than release %s, and this service cannot withdraw it: %s (%s)"
                    log.error(sentence, live.id, before.id, obstacle, finding)  # noqa: TRY400 -- expected
                probation.failure = obstacle
                probation.record(ProbationEvent.FAILED)
                return
        log.warning("release %s was withdrawn, and release %s is live again: %s", live.id, before.id, finding)
        probation.withdrawn += 1
        probation.record(ProbationEvent.WITHDRAWN)

    async def _is_withdrawn(self, tier: str, release: ReleaseRef, reason: str) -> bool:
        """Return whether a release was withdrawn for *reason*, by a rollback that seemed to fail after its swap."""
        catalogue = await self._read_catalogue(tier)
        entry = None if catalogue is None else catalogue.entry(release.incarnation)
        return entry is not None and entry.state is State.WITHDRAWN and entry.refused_by == (reason,)

    @asynccontextmanager
    async def _writable(self, tier: str) -> AsyncIterator[Store]:
        """Open the admin store if it is that of a tier, otherwise the tier's store."""
        async with opened(self._stores[tier]) as store:
            if self._admin_store is None:
                yield store
                return
            async with opened(self._admin_store) as admin:
                is_same = (await admin.catalogue()).store_id == (await store.catalogue()).store_id
                yield admin if is_same else store


def _remember_withdrawn(probation: TierProbation, catalogue: Catalogue) -> None:
    """Add the withdrawn releases of a catalogue to those of *probation*, which keeps the newest REMEMBERED."""
    # An incarnation names the data of a release: another one is drawn if it is published again.
    withdrawn = [entry.incarnation for entry in catalogue.releases if entry.state is State.WITHDRAWN]
    others = [incarnation for incarnation in probation.withdrawn_incarnations if incarnation not in withdrawn]
    probation.withdrawn_incarnations = [*others, *withdrawn][-REMEMBERED:]


def _rollback_target(catalogue: Catalogue) -> ReleaseRef | None:
    """Return the release that a rollback leads to."""
    if catalogue.live is None:
        return None
    with suppress(ReleaseNotFound):
        return changes.rollback(catalogue, catalogue.live).live_ref
    return None


def _sum_of(counted: Sequence[CountedRelease], release: ReleaseRef | None) -> ReleaseCounts:
    total = ReleaseCounts()
    for entry in counted:
        if entry.release == release:
            total = total.plus(entry.counts)
    return total


def expected_of(before: ReleaseCounts) -> ReleaseCounts:
    """Return what is expected of a release by the counts of the one before: that loses no list but naturally."""
    lost = before.hit * NATURAL_LOSS
    return ReleaseCounts(before.hit - lost, lost, before.error, before.reads)


async def _check_whole(store: Store, release: ReleaseRef) -> None:
    """Raise StoreError unless a release can be served; a fault of the store damages both releases."""
    servable = await read_servable(store, release)
    manifest = servable.manifest
    examined = len(manifest.sample) + len(manifest.popular_keys)
    if len(servable.damaged) > MORE_FALLBACKS * examined:
        raise StoreError(f"release {release.id}, which was live before, is damaged, too")


async def _is_slower(reader: Reader, release: ReleaseRef, before: ReleaseRef, over_s: float) -> bool:
    """Read the same rows in both releases, in turn; return whether *release* has more reads that take over *over_s*.

    That is if they exceed twice those of *before* by a share MORE_SLOW of the rows, because a few are slow by chance.
    """
    slow = dict.fromkeys((release, before), 0)
    sample = (await read_servable(reader, before)).manifest.sample
    for key in sample:
        for read in (before, release):
            started = time.perf_counter()
            await reader.get_many(read, [key])
            slow[read] += time.perf_counter() - started > over_s
    return slow[release] > 2 * slow[before] + MORE_SLOW * len(sample)
