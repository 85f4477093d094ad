"""Probation: a release that went live is compared with the one before, and withdrawn if it is worse.

Workers count what each live release answers (`live_counts`). The admin process judges: it compares a release, from its
activation on, with the last hour of the release before, by the judgement of a canary. Nothing is judged while a circuit
is open, as failures of the store are not held against the release. Before a release is withdrawn, the one before must
be whole and, if reads are slow, faster.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

from hotplate.serve.log_once import LogOnce
from hotplate.serve.releases.canary import MORE_FALLBACKS, MORE_SLOW, NO_READS, ReleaseCounts, find_regression, slow_s
from hotplate.serve.releases.live_counts import CountedRelease, SharedCounts
from hotplate.serve.releases.probation_state import ProbationEvent, Sample, TierProbation
from hotplate.serve.states import SharedStates
from hotplate.serve.tasks import background, repeat
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import Catalogue, ReleaseRef, State
from hotplate.stores.connect import opened
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.lifecycle import rollback
from hotplate.stores.store import MAY_PUBLISH, Finding, Level, Reader, Store
from hotplate.stores.verification import read_servable

log = logging.getLogger(__name__)

# Interval of judging.
JUDGE_S = 1.0
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
        self._rights_unknown = {tier: LogOnce() for tier in stores}

    async def run(self) -> None:
        """Judge until cancelled; first log which stores this service may not write to."""
        async with background(self.check_rights()):
            await repeat(self.look, JUDGE_S, "judging the releases on probation")

    async def check_rights(self) -> None:
        """Log once for each tier whose releases this service may not withdraw, when its store can be read."""
        unknown = list(self._stores)
        while unknown:
            unknown = [tier for tier in unknown if not await self._check_rights_in(tier)]
            if unknown:
                await asyncio.sleep(RETRY_S)

    async def _check_rights_in(self, tier: str) -> bool:
        """Log if this service may not write to the store of a tier; return False, and log why, if that is not known."""
        try:
            async with asyncio.timeout(CATALOGUE_S), self._writable(tier) as store:
                rights = await _rights_in(store)
        except (TimeoutError, StoreError) as error:
            if self._rights_unknown[tier].met():
                obstacle = str(error) or f"the store did not answer in {CATALOGUE_S:.0f} s"
                log.warning("%s: whether this service may withdraw a release is not known yet: %s", tier, obstacle)
            return False

        for finding in rights:
            if finding.level is not Level.OK:
                log.warning(
                    "%s: a release that is worse stays live despite --probation, as this service may not write to the "
                    "store: name a URL that may with --admin-store, or set --probation 0 (%s)",
                    tier,
                    finding.sentence,
                )
        return True

    async def look(self) -> None:
        """Judge once."""
        try:
            for probation in self._probations:
                await self._examine_tier(probation)
        finally:
            self._shared.keep(self._probations)

    async def _examine_tier(self, probation: TierProbation) -> None:
        """Update *probation*, the state of the live release of a tier, from the counts of all workers, and judge it.

        A tier is a store that the service reads. A release is on probation after it went live: it is compared with the
        release before. Workers count what each release answers, so the newest release in the counts is the live one.
        The sum of its counts becomes a sample of its history.
        """
        counted = self._shared.counted(probation.tier)  # an entry per worker and release
        if not counted:
            return
        newest = max(counted, key=lambda entry: entry.since).release
        if newest != probation.live:
            has_begun = await self._begin_release(probation, newest, counted)
            if not has_begun:  # the catalogue does not name it as live: look again later
                return

        counts = _sum_of(counted, newest)
        self._add_sample(probation, counts)
        if probation.before is not None:
            await self._judge(probation, counts)

    def _add_sample(self, probation: TierProbation, counts: ReleaseCounts) -> None:
        """Add *counts* of the live release to its history, with a sample per SAMPLE_S seconds of the last hour.

        The history is never empty: its first sample has the counts at the start.
        """
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
        """Set *probation* to the state at the start of *live*, a release that workers serve already.

        It is on probation if a rollback would return to the release that was live before it here, whose counts of the
        last hour it is compared with. A release that was withdrawn earlier, and then activated again by an operator, is
        not. *counted* has the counts of all workers. Returns False, and changes nothing, while the store's catalogue
        cannot be read or does not name the release as live.
        """
        catalogue = await self._read_catalogue(probation.tier)
        if catalogue is None or catalogue.live_ref != live:
            return False

        _remember_withdrawn(probation, catalogue)
        previous = probation.live
        # An incarnation is the unique name of one write of a release; an id may be written again.
        was_withdrawn = live.incarnation in probation.withdrawn_incarnations
        if previous is not None and _rollback_target(catalogue) == previous and not was_withdrawn:
            counts_an_hour_ago = probation.history[0].counts  # the oldest sample
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
        """Withdraw the release on probation if its *counts* are worse than expected from the release before.

        *counts* are from its activation on. The probation ends after `self._probation_s` seconds, but not before there
        were LOOKUPS lookups, or an hour has passed. Nothing is judged while a circuit breaker is open: then the store
        fails, and the release may be good.
        """
        if any(reported.breaker_open for reported in self._states.of_tier(probation.tier)):
            return

        finding = find_regression(probation.expected, counts, baseline=BASELINE)  # a sentence, None if it is good
        passed_s = self._clock() - probation.began
        is_over = passed_s >= self._probation_s and (counts.lookups >= LOOKUPS or passed_s >= HOUR_S)

        if finding is None:
            probation.record(ProbationEvent.FINE)
        elif self._clock() >= self._retry_at[probation.tier]:
            await self._withdraw(probation, counts, finding)
            self._retry_at[probation.tier] = self._clock() + RETRY_S
        if is_over:
            probation.record(ProbationEvent.ENDED)

    async def _withdraw(self, probation: TierProbation, counts: ReleaseCounts, finding: str) -> None:
        """Roll back a store's live release to the one before, and end the probation.

        *finding* is the sentence on how it is worse by its *counts*. The live release stays if the one before is
        damaged, and if the only difference is slow reads and the one before is as slow now. Why a rollback fails is
        logged once, and kept as `probation.failure`; the caller tries again later.
        """
        live = probation.live
        before = probation.before
        if live is None or before is None:
            return

        reason = f"probation: {finding}"
        try:
            async with asyncio.timeout(WITHDRAW_S), self._writable(probation.tier) as store:
                await _check_whole(store, before)
                if await _is_store_slow(store, live, before, expected=probation.expected, counts=counts):
                    log.info("release %s stays, as release %s is as slow: %s", live.id, before.id, finding)
                    probation.record(ProbationEvent.FINE)
                    return

                await rollback(store, live.id, reason=reason)
        except ReleaseConflict as error:  # an operator or another service has changed the live release
            log.info("release %s is not withdrawn here: %s", live.id, error)
            return
        except (TimeoutError, StoreError) as error:
            # The rollback may have taken place, and only its answer failed.
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


async def _rights_in(store: Store) -> list[Finding]:
    """Return the findings on the right to write to a store; raises StoreError if its servers could not be examined."""
    findings = await store.examine()
    rights = [finding for finding in findings if finding.subject == MAY_PUBLISH]
    errors = [finding.sentence for finding in findings if finding.level is Level.ERROR]
    if errors and not rights:
        raise StoreUnavailable(errors[0])
    return rights


def _remember_withdrawn(probation: TierProbation, catalogue: Catalogue) -> None:
    """Add the withdrawn releases of a catalogue to those of *probation*, which keeps the newest REMEMBERED."""
    # An incarnation is the unique name of one write of a release: another one is drawn if it is published again.
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


async def _is_store_slow(
    store: Reader, live: ReleaseRef, before: ReleaseRef, *, expected: ReleaseCounts, counts: ReleaseCounts
) -> bool:
    """Return whether slow reads alone make *live* worse, by its *counts*, and reads of *before* are as slow now."""
    is_worse_otherwise = find_regression(expected, counts._replace(reads=NO_READS)) is not None
    return not is_worse_otherwise and not await _is_slower(store, live, before, slow_s(expected.reads))


async def _is_slower(reader: Reader, release: ReleaseRef, before: ReleaseRef, over_s: float) -> bool:
    """Return whether *release* has more slow reads, over *over_s* seconds, than *before*; reads both now, in turn.

    The rows are the sample of keys in the manifest of *before*. As a few reads are slow by chance, the slow ones of
    *release* must exceed twice those of *before* by a share MORE_SLOW of the rows.
    """
    slow_reads = dict.fromkeys((release, before), 0)
    sample = (await read_servable(reader, before)).manifest.sample
    for key in sample:
        for ref in random.sample((before, release), 2):  # in turn, one might always meet the slower replica
            started = time.perf_counter()
            await reader.get_many(ref, [key])
            slow_reads[ref] += time.perf_counter() - started > over_s

    return slow_reads[release] > 2 * slow_reads[before] + MORE_SLOW * len(sample)
