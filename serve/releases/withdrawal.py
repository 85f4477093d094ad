"""Judges the releases of a service for all its workers, in the admin process, and withdraws those that are worse.

A canary is compared with the live release, and no worker uses it any more once it is worse (`comparison`). A release
that went live is on probation: it is compared, from its activation on, with the last hour of the release before, and
withdrawn from the store if it is worse. Nothing is withdrawn while a circuit is open, as failures of the store are not
held against the release; the release before must be whole and, if reads are slow, faster.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from hotplate.base.timing import HOUR_S
from hotplate.serve.metrics import Metrics
from hotplate.serve.processes.states import SharedStates
from hotplate.serve.releases.comparison import LAST_STAGES, Probation, SharedComparisons, Stage, TierComparisons
from hotplate.serve.releases.counts import NO_READS, counts_by_role, live_counts
from hotplate.serve.releases.judgement import MORE_FALLBACKS, MORE_SLOW, find_regression, slow_s
from hotplate.serve.tasks import background, repeat
from hotplate.stores.catalogue import Catalogue, ReleaseRef, State
from hotplate.stores.connect import opened
from hotplate.stores.errors import ReleaseConflict, StoreError, StoreUnavailable
from hotplate.stores.lifecycle import rollback
from hotplate.stores.release_log import signed
from hotplate.stores.store import MAY_PUBLISH, Finding, Level, Reader, Store
from hotplate.stores.verification import read_servable

log = logging.getLogger(__name__)

# Interval of judging.
JUDGE_S = 1.0
# A probation lasts until there were this many lookups, but no longer than an hour.
LOOKUPS = 300
# Time limits of reading a catalogue and of a withdrawal, and the pause after one that failed.
CATALOGUE_S = 5.0
WITHDRAW_S = 60.0
RETRY_S = 10.0


class ReleaseJudge:
    """Judges the canaries of all tiers, and their live releases on probation."""

    def __init__(
        self,
        stores: Mapping[str, str | Store],
        shared: SharedComparisons,
        states: SharedStates,
        metrics: Metrics,
        *,
        probation_s: float = 0.0,
        admin_store: str | Store | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*stores* are URLs by tier, or stores; *admin_store* withdraws the releases of the tier whose store it is.

        *shared* may have the comparisons of an earlier process.
        """
        self._stores = stores
        self._shared = shared
        self._states = states
        self._metrics = metrics
        self._probation_s = probation_s
        self._admin_store = admin_store
        self._clock = clock
        self._tiers = list(map(shared.of, stores))

    async def run(self) -> None:
        """Judge until cancelled; with a probation, first log which stores this service may not write to."""
        async with AsyncExitStack() as stack:
            if self._probation_s:
                on_probation = repeat(self.judge_live_releases, JUDGE_S, "judging the releases on probation")
                for work in (on_probation, *map(self.check_rights, self._stores)):
                    await stack.enter_async_context(background(work))
            await repeat(self.judge_canaries, JUDGE_S, "judging the canaries")

    async def check_rights(self, tier: str) -> None:
        """Log if this service may not withdraw the releases of a tier, once its store can be read."""
        rights: list[Finding] | None = None
        while rights is None:
            with suppress(TimeoutError, StoreError):  # workers report that it cannot be read
                async with asyncio.timeout(CATALOGUE_S), self._writable(tier) as store:
                    rights = await _rights_in(store)
            if rights is None:
                await asyncio.sleep(RETRY_S)

        for finding in rights:
            if finding.level is not Level.OK:
                log.warning(
                    "%s: a release that is worse stays live despite --probation, as this service may not write to the "
                    "store: name a URL that may with --admin-store, or set --probation 0 (%s)",
                    tier,
                    finding.sentence,
                )

    async def judge_canaries(self) -> None:
        """Judge once the canary that workers follow in each tier: the last one while any of them does, then another."""
        for comparisons in self._tiers:
            # Workers without a live release have not followed a catalogue yet.
            reported = [own for own in self._states.of_tier(comparisons.tier) if own.release is not None]
            if not reported:
                continue
            followed = [own.followed_canary for own in reported if own.followed_canary is not None]
            canary = next(iter(followed), None)
            if comparisons.canary is not None and comparisons.canary.release in followed:
                canary = comparisons.canary.release
            counts = counts_by_role(comparisons.tier, self._metrics)
            comparisons.judge_canary(canary, counts, self._clock())
        self._shared.keep(self._tiers)

    async def judge_live_releases(self) -> None:
        """Judge once the live release of each tier."""
        try:
            for comparisons in self._tiers:
                await self._judge_live_release(comparisons)
        finally:
            self._shared.keep(self._tiers)

    async def _judge_live_release(self, comparisons: TierComparisons) -> None:
        """Judge the live release of a tier, if it is on probation, by the counts of all workers since its activation.

        A tier is a store that the service reads. The live release is the one that the catalogue names, once a worker
        reports it. Its probation ends after `self._probation_s` seconds, but not before there were LOOKUPS lookups, or
        an hour has passed. Nothing is judged while a circuit breaker is open: then the store fails, and the release may
        be good.
        """
        reported = self._states.of_tier(comparisons.tier)
        await self._begin_new_release(comparisons, {state.live for state in reported if state.live is not None})
        if comparisons.live is None:
            return

        counts = live_counts(comparisons.tier, self._metrics)
        now = self._clock()
        comparisons.add_counts(counts, now)
        is_store_failing = any(state.breaker_open for state in reported)
        probation = comparisons.running
        if probation is None or is_store_failing:
            return

        finding = probation.judge(counts)
        if finding is None:
            probation.stage = Stage.JUDGED
        elif now >= probation.retry_at:
            probation.stage = await self._withdraw(comparisons.tier, probation, finding)
            probation.retry_at = self._clock() + RETRY_S

        passed_s = now - probation.began_at
        has_most = probation.counts.lookups >= LOOKUPS
        if probation.stage is Stage.WITHDRAWN:
            comparisons.withdrawn += 1
        elif passed_s >= self._probation_s and (has_most or passed_s >= HOUR_S):
            probation.stage = LAST_STAGES[probation.stage]

    async def _begin_new_release(self, comparisons: TierComparisons, live: Collection[ReleaseRef]) -> None:
        """Judge another release from now on, if workers report one as *live* that the catalogue names."""
        if not {*live} - {comparisons.live}:
            return
        catalogue = await self._read_catalogue(comparisons.tier)
        release = None if catalogue is None else catalogue.live_entry
        if catalogue is None or release is None or release.ref not in live or release.ref == comparisons.live:
            return
        counts = live_counts(comparisons.tier, self._metrics)
        comparisons.begin_release(release.ref, catalogue, counts, self._clock())
        self._shared.keep(self._tiers)  # from now on, workers count for this release

    async def _withdraw(self, tier: str, probation: Probation, finding: str) -> Stage:
        """Roll back the store of a tier from the release on probation to the one before; return the next stage.

        The live release stays if the one before is damaged, and if the only difference is slow reads and the one before
        is as slow now. Why a rollback fails is logged once; the caller tries again later.
        """
        live = probation.release
        before = probation.before
        reason = f"probation: {finding}"
        try:
            async with asyncio.timeout(WITHDRAW_S), self._writable(tier) as store:
                await _check_whole(store, before)
                if await _is_store_slow(store, probation):
                    log.info("release %s stays, as release %s is as slow: %s", live.id, before.id, finding)
                    return Stage.JUDGED

                with signed(reason, "probation"):
                    await rollback(store, live, reason=reason)
        except ReleaseConflict as error:  # an operator or another service has changed the live release
            log.info("release %s is not withdrawn here: %s", live.id, error)
            return Stage.JUDGED
        except (TimeoutError, StoreError) as error:
            # The rollback may have taken place, and only its answer failed.
            if not await self._is_withdrawn(tier, live, reason):
                obstacle = str(error) or f"the store did not answer in {WITHDRAW_S:.0f} s"
                if probation.stage is not Stage.BLOCKED:
                    sentence = "release %s is worse than release %s, and this service cannot withdraw it: %s (%s)"
                    log.error(sentence, live.id, before.id, obstacle, finding)  # noqa: TRY400 -- expected
                return Stage.BLOCKED

        log.warning("release %s was withdrawn, and release %s is live again: %s", live.id, before.id, finding)
        return Stage.WITHDRAWN

    async def _read_catalogue(self, tier: str) -> Catalogue | None:
        """Return the catalogue of a tier's store; None if it cannot be read."""
        try:
            async with asyncio.timeout(CATALOGUE_S), opened(self._stores[tier]) as store:
                return await store.catalogue()
        except (TimeoutError, StoreError):
            return None

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


async def _check_whole(store: Store, release: ReleaseRef) -> None:
    """Raise StoreError unless a release can be served; a fault of the store damages both releases."""
    servable = await read_servable(store, release)
    manifest = servable.manifest
    examined = len(manifest.sample) + len(manifest.popular_keys)
    if len(servable.damaged) > MORE_FALLBACKS * examined:
        raise StoreError(f"release {release.id}, which was live before, is damaged, too")


async def _is_store_slow(store: Reader, probation: Probation) -> bool:
    """Return whether slow reads alone make a release worse, and reads of the one before are as slow now.

    The rows that are read are the sample of keys in the manifest of the one before. As a few reads are slow by chance,
    the slow ones of the release must exceed twice those of the one before by a share MORE_SLOW of the rows.
    """
    live = probation.release
    before = probation.before
    is_worse_otherwise = find_regression(probation.expected, probation.counts._replace(reads=NO_READS)) is not None
    if is_worse_otherwise:
        return False

    slow_after_s = slow_s(probation.expected.reads)
    slow_reads = dict.fromkeys((live, before), 0)
    sample = (await read_servable(store, before)).manifest.sample
    for key in sample:
        for release in random.sample((before, live), 2):  # in turn, one might always meet the slower replica
            started = time.perf_counter()
            await store.get_many(release, [key])
            slow_reads[release] += time.perf_counter() - started > slow_after_s
    return slow_reads[live] <= 2 * slow_reads[before] + MORE_SLOW * len(sample)
