"""The life of written releases in any store: activate, canary, roll back, prune.

Each verb reads the catalogue, checks that the release may and can be served, and applies a pure function of
`hotplate.stores.transitions` by compare-and-set (`update_catalogue`).
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import NamedTuple, Self

from hotplate.base.timing import Backoff, loop_time
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import GRACE_S, Arm, Catalogue, Release, ReleaseId, ReleaseRef, State, unnamed_release
from hotplate.stores.change_warnings import failure_as_warning
from hotplate.stores.errors import (
    CatalogueUnreadable,
    NotSent,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    ReleaseWithdrawn,
    StoreError,
    StoreMisused,
    StoreThrottled,
    StoreUnavailable,
)
from hotplate.stores.release_log import changes_beside
from hotplate.stores.store import RecordChange, Store
from hotplate.stores.timing import Retrier
from hotplate.stores.verification import OnProgress, counted, read_servable, unreported

log = logging.getLogger(__name__)

SWAP_ATTEMPTS = 50

# Least number of swaps while they fail with StoreUnavailable. The store may have been lost after a swap was sent; a
# second one settles the first, as both replace the same generation.
FAILED_SWAPS = 2

# Time for further swaps after the first failure; less than LAST_RENEWAL_S of `hotplate.stores.publication`.
FAILING_S = 0.7

# Time limit of reads that settle a failed swap.
SETTLE_S = 5.0

# First and longest pause after a lost race or a failed swap.
PAUSES_S = (0.001, 0.2)

# Between reads of the catalogue while services judge a release.
PROBATION_POLL_S = 2.0


class Override(Enum):
    """What a caller accepts of a release that becomes live or the canary."""

    NOTHING = "it was not refused, and can be served"
    REFUSAL = "its gates or services may have refused it before the call"
    DAMAGE = "that, or it cannot be read as a whole"

    @classmethod
    def of(cls, *, force: bool) -> Self:
        """Return what the option `--force` accepts."""
        return cls.DAMAGE if force else cls.NOTHING


async def activate(
    store: Store,
    release: ReleaseId,
    *,
    arm: Arm = "A",
    end_canary: bool = False,
    override: Override = Override.NOTHING,
) -> bool:
    """Prepare a committed release and make it live; return False if it was live before.

    With the *arm* B, it becomes the canary of the running experiment, whose arm A is the live release. *end_canary*
    ends a canary that would keep the release from going live.

    A release that its gates refused raises RefusedByGates, and one that cannot be read as a whole ReleaseCorrupt,
    unless *override* accepts that; a refusal during the call always raises. Raises errors of `transitions.activate`,
    too.
    """
    seen = await store.catalogue()
    change = partial(changes.activate, release=release, arm=arm, end_canary=end_canary)
    return await _try_serving(store, seen, seen.find(release), change, override)


async def _try_serving(
    store: Store, seen: Catalogue, entry: Release, change: Callable[..., Catalogue], override: Override
) -> bool:
    """Apply *change*, by which the release of *entry* becomes live or the canary; return whether it changes *seen*.

    Its errors are raised before the release is prepared. It gets the reasons of a refusal that *override* accepts as
    `overridden`: those in *entry*, none that follow.
    """
    overridden = () if override is Override.NOTHING else entry.refused_by
    update = partial(change, overridden=overridden)
    is_changed = update(seen) != seen
    await _begin_serving(store, entry.ref, update, override)
    return is_changed


async def prepare_served(store: Store, catalogue: Catalogue) -> None:
    """Prepare the live release and the canary again, after a swap: a prune may have scaled one down before it.

    Only stores with provisioned throughput need that. A failure is a warning, because the releases are served already.
    """
    if not store.is_provisioned:
        return
    for release in catalogue.served:
        role = "live" if release == catalogue.live_ref else "the canary"
        with failure_as_warning(f"release {release.id} is {role}; its throughput is not confirmed"):
            await store.prepare(release)


async def _begin_serving(
    store: Store, release: ReleaseRef, update: Callable[[Catalogue], Catalogue], override: Override
) -> Catalogue:
    """Apply *update*, by which a release becomes live or the canary, and return the new catalogue.

    Raises ReleaseCorrupt if the release cannot be served, unless *override* accepts that. A StoreError after the change
    is a warning.
    """
    if override is not Override.DAMAGE:
        await _check_servable(store, release)
    await store.prepare(release)
    changed = await update_catalogue(store, update, repeatable=False)
    await prepare_served(store, changed)
    return changed


async def _check_servable(store: Store, release: ReleaseRef) -> None:
    """Raise ReleaseCorrupt for a release that cannot be served, ReleaseConflict for one that was pruned meanwhile."""
    try:
        damaged = (await read_servable(store, release)).damaged
    except (ReleaseCorrupt, ReleaseNotFound) as error:
        entry = (await store.catalogue()).entry(release.incarnation)
        if entry is None or entry.state is State.DROPPING:
            raise ReleaseConflict(f"release {release.id} was pruned meanwhile") from error

        raise ReleaseCorrupt(
            f"release {release.id} cannot be served, and nothing was changed: {error}. --force would serve it with "
            "what can still be read"
        ) from error
    if damaged:
        log.warning("release %s can be served, but is %s", release.id, counted(damaged))


async def rollback(
    store: Store,
    if_live: ReleaseId | ReleaseRef | None = None,
    *,
    override: Override = Override.NOTHING,
    reason: str = "",
) -> ReleaseId:
    """Make the release that was live before live again, and return it; a canary ends.

    An experiment goes on, unless that release is its arm B, which all users then see. With a *reason*, the withdrawn
    release is refused. Raises ReleaseConflict if *if_live* is given and is not live, or, given as a ReleaseRef, was
    repaired since; ReleaseNotFound if nothing is live, or there is no earlier release; ReleaseCorrupt if the release
    cannot be served, unless *override* accepts that.
    """
    seen = await store.catalogue()
    update = partial(changes.rollback, expected=if_live or _live_of(seen).id, reason=reason)
    former = _live_of(update(seen))  # the release to be prepared; the update is applied to the store below
    changed = await _begin_serving(store, former.ref, update, override)
    return _live_of(changed).id


def _live_of(catalogue: Catalogue) -> Release:
    """Return the live release's entry; ReleaseNotFound if nothing is live."""
    entry = catalogue.live_entry
    if entry is None:
        raise ReleaseNotFound("nothing is live in this store, so there is nothing to roll back")
    return entry


async def wait_for_probation(store: Store, release: ReleaseId, wait_s: float) -> ReleaseWithdrawn | None:
    """Wait up to *wait_s* seconds while a release is live; return the reason if services withdraw it meanwhile.

    Services with `--probation` withdraw a new release that is worse than the one before. None if it stays live, or if
    another release replaced it. Reads that fail with StoreUnavailable are repeated.
    """
    log.warning("waiting %g s for services to judge release %s", wait_s, release)
    ends_at = time.monotonic() + wait_s
    left_s = wait_s
    while left_s > 0:
        await asyncio.sleep(min(left_s, PROBATION_POLL_S))
        left_s = ends_at - time.monotonic()
        try:
            catalogue = await store.catalogue()
        except StoreUnavailable:
            continue
        if catalogue.live != release:
            return _withdrawal(catalogue, release)
    return None


def _withdrawal(catalogue: Catalogue, release: ReleaseId) -> ReleaseWithdrawn | None:
    """Return why services have withdrawn a release; None if it left service for another reason."""
    entry = catalogue.get(release)
    if entry is None or entry.state is not State.WITHDRAWN or not entry.refused_by:
        return None
    reasons = ", ".join(entry.refused_by)
    return ReleaseWithdrawn(f"release {release} was withdrawn, and {catalogue.live} is live again: {reasons}")


async def start_canary(
    store: Store,
    release: ReleaseId,
    percent: float,
    days: float | None = None,
    *,
    override: Override = Override.NOTHING,
) -> None:
    """Prepare a committed release and show it to *percent* of the users, or change the canary's share.

    With *days*, start an experiment. Raises StoreMisused for an invalid share; ReleaseNotFound and ReleaseConflict as
    `transitions.start_canary`; RefusedByGates and ReleaseCorrupt as `activate`.
    """
    if not 0 < percent < 100:
        raise StoreMisused(f"a canary is shown to more than 0 % and less than 100 % of the users, not to {percent:g} %")
    seen = await store.catalogue()

    def start_or_change(catalogue: Catalogue, overridden: tuple[str, ...]) -> Catalogue:
        if seen.canary is not None and catalogue.canary is None:  # aborted or promoted since
            raise ReleaseConflict(f"release {release} is not the canary any more; see why before you start it again")
        return changes.start_canary(catalogue, release, percent, days, overridden=overridden)

    await _try_serving(store, seen, seen.find(release), start_or_change, override)


async def promote(
    store: Store, if_canary: ReleaseId | None = None, *, override: Override = Override.NOTHING
) -> ReleaseId:
    """Make the canary live, and return it; raises errors as `activate` and `abort`."""
    seen = await store.catalogue()
    canary = _canary_of(seen)
    change = partial(changes.promote, expected=if_canary or canary.id)
    await _try_serving(store, seen, canary, change, override)
    return canary.id


async def abort(store: Store, if_canary: ReleaseId | None = None) -> ReleaseId:
    """End the canary, and return it; ReleaseNotFound without one, ReleaseConflict if it is not *if_canary*."""
    canary = _canary_of(await store.catalogue()).ref
    await update_catalogue(store, lambda catalogue: changes.abort(catalogue, if_canary or canary.id), repeatable=False)
    await scale_down(store, canary)
    return canary.id


def _canary_of(catalogue: Catalogue) -> Release:
    """Return the canary's entry; ReleaseNotFound without a canary."""
    entry = catalogue.canary_entry
    if entry is None:
        raise ReleaseNotFound("no release is the canary in this store; `hotplate releases canary` starts one")
    return entry


async def prune(
    store: Store,
    *,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    on_progress: OnProgress = unreported,
) -> list[ReleaseId]:
    """Mark old releases as dropping, erase them, and return their ids; see `transitions.prune` for the options.

    Releases that are kept are scaled down once they have been out of service for *grace_s* seconds. *on_progress* gets
    releases erased and in all. The error of one release is raised after the others were erased, unless it is
    StoreUnavailable.
    """
    present = await store.incarnations()
    update = partial(changes.prune, keep=keep, grace_s=grace_s, keep_ready_s=keep_ready_s, present=present)
    catalogue = await update_catalogue(store, update)

    dropping = [entry.ref for entry in catalogue.releases if entry.state is State.DROPPING]
    failures = list[StoreError]()
    for number, release in enumerate(dropping):
        on_progress(number, len(dropping))
        try:
            await drop(store, release)
        except StoreUnavailable:
            raise
        except StoreError as error:
            failures.append(error)

    for entry in catalogue.releases:
        is_past_grace = (entry.superseded_at or 0.0) + grace_s <= catalogue.now
        if is_past_grace and entry.state in (State.SUPERSEDED, State.WITHDRAWN):
            await scale_down(store, entry.ref)

    if failures:
        raise failures[0]
    return list(dict.fromkeys(release.id for release in dropping))


async def scale_down(store: Store, release: ReleaseRef) -> None:
    """Reduce the cost of a release unless it is served; a failure is a warning, because the caller's change is made."""
    if not store.is_provisioned:
        return
    wanted = f"release {release.id} was to be scaled down unless it is served"
    with failure_as_warning(f"{wanted}; its throughput is not confirmed"):
        if release not in (await store.catalogue()).served:
            with suppress(ReleaseNotFound):
                await store.scale_down(release)
        if release in (await store.catalogue()).served:  # it became live in between
            await store.prepare(release)


async def update_catalogue(
    store: Store, update: Callable[[Catalogue], Catalogue], *, repeatable: bool = True
) -> Catalogue:
    """Apply *update*, a pure function, as `revise_catalogue` does."""

    async def revise(catalogue: Catalogue) -> Revision:
        return Revision(update(catalogue))

    return await revise_catalogue(store, revise, repeatable=repeatable)


class Revision(NamedTuple):
    """A changed catalogue, and the changes of records beside it that are written with it."""

    catalogue: Catalogue
    records: Sequence[RecordChange] = ()


@dataclass(slots=True)
class _Swaps:
    """The failed swaps of one change of the catalogue; those that were sent, and have no reply, are unclear."""

    failures: list[StoreUnavailable] = field(default_factory=list)
    unclear: StoreUnavailable | None = None
    """The last failure that is unclear."""

    token_before_unclear: str = ""
    """Of the catalogue that the first unclear swap was to replace."""

    give_up_at: float = 0.0
    """By the loop's clock: FAILING_S after the first failure."""

    def add_failure(self, error: StoreUnavailable, replaced: Catalogue) -> None:
        """Note that a swap which was to replace a catalogue has failed; raises a permanent *error*."""
        if error.permanent and self.unclear is None:
            raise error
        if not self.failures:
            self.give_up_at = loop_time() + FAILING_S
        self.failures.append(error)
        if error.permanent or isinstance(error, NotSent | StoreThrottled):
            return
        if self.unclear is None:
            self.token_before_unclear = replaced.token
        self.unclear = error

    @property
    def is_exhausted(self) -> bool:
        """Whether no further swap is to be sent."""
        if len(self.failures) < FAILED_SWAPS:
            return False
        return self.failures[-1].permanent or loop_time() >= self.give_up_at

    def is_outcome_unknown(self, catalogue: Catalogue) -> bool:
        """Return whether others have changed the catalogue since the first unclear swap, which may have been made.

        *catalogue* was read after the swaps, and none of them wrote it.
        """
        return self.unclear is not None and catalogue.token != self.token_before_unclear

    def not_made(self) -> StoreUnavailable:
        """Return the error if the catalogue is unchanged after the last swap."""
        if self.unclear is None:
            return self.failures[-1]
        return StoreUnavailable(
            f"{self.failures[-1]}; the catalogue has not changed so far: see `hotplate releases list`"
        )

    def unknown(self) -> StoreUnavailable:
        """Return the error if the catalogue does not show the outcome, or cannot be read."""
        if self.unclear is None:
            return self.failures[-1]
        return StoreUnavailable(
            f"{self.unclear}; whether the catalogue was changed is not known: see `hotplate releases list`"
        )


async def revise_catalogue(
    store: Store, revise: Callable[[Catalogue], Awaitable[Revision]], *, repeatable: bool = True
) -> Catalogue:
    """Replace the catalogue by that of *revise* with its records, by compare-and-set, and return the new catalogue.

    *revise* is called again after a lost race, up to SWAP_ATTEMPTS times with pauses; then ReleaseConflict is raised.
    Nothing is written if it changes nothing. The record of refusals is written with each change of them, and the log of
    releases with each change of what is served.

    A swap that fails with StoreUnavailable is unclear, unless it is NotSent, StoreThrottled or permanent: it may have
    taken place, or still take place. If the catalogue then has its token, it has; if the catalogue is unchanged,
    another swap can be sent, as only one of them can succeed. If others have changed it, the result is unknown: a
    *repeatable* change, which may be applied twice, is applied again. For any other change, and after FAILED_SWAPS in
    at least FAILING_S, StoreUnavailable is raised, unless *revise* would change nothing any more. If no swap was
    unclear, the last NotSent or StoreThrottled is raised.

    Raises CatalogueUnreadable if the store holds releases and its catalogue is gone.
    """
    pauses = Backoff(*PAUSES_S, min_jitter=0.0)
    swaps = _Swaps()
    tokens = set[str]()
    for _ in range(SWAP_ATTEMPTS):
        old = await _read_after(store, swaps)
        if old.token in tokens:  # a failed swap was made after all
            return old

        if swaps.is_outcome_unknown(old) and (swaps.is_exhausted or not repeatable):
            await _check_nothing_to_change(revise, old, swaps)
            return old
        if swaps.is_exhausted:
            raise swaps.not_made()

        revised, records = await revise(old)
        if revised == old:
            return old
        if not old.generation:
            await check_nothing_to_rebuild(store)
        # No change of the catalogue is to fail because of the log, as where slots of a cluster are being moved.
        records = [*records, *await changes_beside(store, old, revised, is_logged=not swaps.failures)]
        new = changes.succeed(old, revised, token=secrets.token_hex(8), store_id=secrets.token_hex(8))
        tokens.add(new.token)

        try:
            await store.swap(old, new, records)
        except ReleaseConflict:
            pass
        except StoreUnavailable as error:
            swaps.add_failure(error, old)
        else:
            return new
        await asyncio.sleep(pauses.next_s())
    raise ReleaseConflict(f"the catalogue was changed by others {SWAP_ATTEMPTS} times; try again when it is quieter")


async def _check_nothing_to_change(
    revise: Callable[[Catalogue], Awaitable[Revision]], catalogue: Catalogue, swaps: _Swaps
) -> None:
    """Raise StoreUnavailable, saying that the result of an unclear swap is unknown, if *revise* has anything to do.

    *catalogue* was read after the *swaps* and those of others. If *revise* changes nothing in it, the swap was made, or
    is not needed any more.
    """
    try:
        revised, _ = await revise(catalogue)
    except (ReleaseConflict, ReleaseNotFound) as error:  # as for a second rollback
        raise swaps.unknown() from error
    if revised != catalogue:
        raise swaps.unknown()


async def check_nothing_to_rebuild(store: Store) -> None:
    """Raise CatalogueUnreadable if a store without a catalogue holds sealed releases, which `prune` would erase."""
    for incarnation in await store.incarnations():
        has_release = await store.is_sealed(unnamed_release(incarnation))
        if has_release and not (await store.catalogue()).generation:  # else another writer published first
            raise CatalogueUnreadable(
                "the store holds releases, but its catalogue is gone; `hotplate store rebuild` writes a new one from "
                "them, and nothing was changed"
            )


async def _read_after(store: Store, swaps: _Swaps) -> Catalogue:
    """Read the catalogue; after swaps that failed, again for up to SETTLE_S while the store is unavailable.

    If the store stays unavailable, raises StoreUnavailable, which says that the result of an unclear swap is unknown.
    """
    if not swaps.failures:
        return await store.catalogue()
    try:
        return await Retrier(loop_time, for_s=SETTLE_S).call(store.catalogue)
    except StoreUnavailable as error:
        raise swaps.unknown() from error


async def drop(store: Store, release: ReleaseRef) -> None:
    """Erase a release and remove it from the catalogue, if it is still `dropping`, the state before an erasure.

    Raises ReleaseConflict if the store returned to older data, in which the release is not `dropping`.
    """
    entry = (await store.catalogue()).entry(release.incarnation)
    if entry is None or entry.state is not State.DROPPING:
        return

    try:
        await store.erase(release, partial(_check_dropping, release))
    except ReleaseConflict:
        if (await store.catalogue()).entry(release.incarnation) is None:
            return  # another process has erased it
        raise

    await update_catalogue(store, lambda catalogue: changes.forget(catalogue, release))


def _check_dropping(release: ReleaseRef, catalogue: Catalogue) -> None:
    """Raise ReleaseConflict unless a release is `dropping`; called by `Store.erase` with a catalogue read then."""
    entry = catalogue.entry(release.incarnation)
    if entry is None or entry.state is not State.DROPPING:
        state = "not in the catalogue" if entry is None else entry.state
        raise ReleaseConflict(
            f"release {release.id} is {state} again, so it was not erased: the store has returned to older data. See "
            f"`hotplate releases list`, and prune again"
        )
