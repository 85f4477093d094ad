"""Activating, rolling back, pruning, copying and verifying releases from Python programs.

A store is a URL or an unused Store, which each function opens and closes, also in a notebook with a running event loop.
Every failure is a StoreError.

A release is all lists of one publish: a draft while it is written, then ready, live, and superseded by the next one. A
canary is a ready release that a share of the users gets. Gates are bounds on its lists that keep it from going live.
"""

from functools import partial
from math import inf

from hotplate.stores import lifecycle, transfer, verification
from hotplate.stores.catalogue import GRACE_S, Arm, ReleaseId, ReleaseRef
from hotplate.stores.connect import run_between, run_on
from hotplate.stores.errors import ReleaseNotFound, StoreMisused
from hotplate.stores.manifest import Manifest
from hotplate.stores.publication import WrittenRelease
from hotplate.stores.release_log import ReleaseChange, log_of, signed
from hotplate.stores.store import Observer, Store
from hotplate.stores.verification import OnProgress, unreported


def activate(
    store: str | Store,
    release: str,
    *,
    arm: Arm = "A",
    end_canary: bool = False,
    force: bool = False,
    reason: str = "",
) -> bool:
    """Make *release* live once its manifest, popular lists and sample were read; return False if it was live before.

    Raises ReleaseNotFound; ReleaseConflict for a draft; CanaryRunning while another release is the canary, unless
    *end_canary*; and, unless *force*, RefusedByGates, and ReleaseCorrupt if it cannot be read. With the *arm* B of an
    experiment, it becomes that arm's release. `release_log` has the *reason*.
    """
    make_live = partial(
        lifecycle.activate,
        release=ReleaseId(release),
        arm=arm,
        end_canary=end_canary,
        override=lifecycle.Override.of(force=force),
    )
    with signed(reason):
        return run_on(store, make_live, must_exist=True)


def rollback(store: str | Store, *, force: bool = False, reason: str = "") -> ReleaseId:
    """Make the previously live release live again, and return its id. No data moves, and a canary ends.

    Raises ReleaseNotFound if there is none, and, unless *force*, ReleaseCorrupt if it cannot be read. `release_log` has
    the *reason*.
    """
    roll_back = partial(lifecycle.rollback, override=lifecycle.Override.of(force=force))
    with signed(reason):
        return run_on(store, roll_back, must_exist=True)


def release_log(store: str | Store) -> list[ReleaseChange]:
    """Return the last 100 changes of the live release and the canary, the oldest first: when, by whom and why."""
    return run_on(store, log_of, must_exist=True)


def prune(
    store: str | Store,
    *,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    on_progress: OnProgress = unreported,
) -> list[ReleaseId]:
    """Erase the releases that are no longer needed, and return their ids.

    Kept are the live release, the canary, arm B's previous release, the *keep* releases that were live before, releases
    that left service less than *grace_s* ago, and ready ones, with *keep_ready_s* only those begun within that time.
    Drafts are erased once they had no writer for six hours, or at once if *grace_s* is 0. *on_progress* is called with
    (erased, to erase). Raises StoreMisused for a number below 0.
    """
    for name, value in (("keep", keep), ("grace_s", grace_s), ("keep_ready_s", keep_ready_s)):
        if value is not None and not value >= 0:  # also for nan
            raise StoreMisused(f"{name} must be at least 0, not {value}")
    erase_unneeded = partial(
        lifecycle.prune, keep=keep, grace_s=grace_s, keep_ready_s=keep_ready_s, on_progress=on_progress
    )
    return run_on(store, erase_unneeded, must_exist=True)


def copy(
    source: str | Store,
    target: str | Store,
    release: str | None = None,
    *,
    live: bool = True,
    reason: str = "",
    on_progress: OnProgress = unreported,
    observer: Observer | None = None,
) -> WrittenRelease:
    """Copy a *release*, by default the live one, to another store under the same id, verify it and make it *live*.

    A release that the target has is verified, and repaired if necessary. Another call continues an interrupted copy.
    The result counts *rows* written and *skipped*; *held_back* tells why a canary or gates kept it from going live.
    *reason* is for the `release_log` of the target. *on_progress* is called with (rows, rows in all), and *observer*
    gets the charges of Cosmos DB. Raises ReleaseConflict if the target has other rows under that id, ReleaseCorrupt if
    the source is damaged, StoreMisused if both stores are the same.
    """

    async def find_and_copy(opened_source: Store, opened_target: Store) -> WrittenRelease:
        chosen = await find_release(opened_source, release)
        return await transfer.copy(opened_source, opened_target, chosen.id, live=live, on_progress=on_progress)

    with signed(reason):
        return run_between(source, target, find_and_copy, observer)


def verify(
    store: str | Store,
    release: str | None = None,
    *,
    rows_per_s: float = inf,
    on_progress: OnProgress = unreported,
) -> Manifest:
    """Read every row of a *release*, by default the live one, at most *rows_per_s*, and return its manifest.

    *on_progress* is called with (rows read, rows in all). Raises ReleaseNotFound, ReleaseCorrupt with damaged keys, and
    StoreMisused for a rate that is not above 0.
    """
    if not rows_per_s > 0:
        raise StoreMisused(f"rows_per_s must be above 0, not {rows_per_s}")

    async def find_and_verify(opened: Store) -> Manifest:
        chosen = await find_release(opened, release)
        return await verification.verify(opened, chosen, rows_per_s=rows_per_s, on_progress=on_progress)

    return run_on(store, find_and_verify, must_exist=True)


async def find_release(store: Store, release: str | None) -> ReleaseRef:
    """Return the release with the id *release*, by default the live one; raises ReleaseNotFound."""
    catalogue = await store.catalogue()
    release_id = ReleaseId(release) if release is not None else catalogue.live
    if release_id is None:
        raise ReleaseNotFound("nothing is live in this store; name a release, or publish one")
    return catalogue.find(release_id).ref


async def find_manifest(store: Store, release: str | None) -> Manifest:
    """Return the manifest of the release of this id, or of the live one; raises ReleaseNotFound."""
    return await verification.load_manifest(store, await find_release(store, release))
