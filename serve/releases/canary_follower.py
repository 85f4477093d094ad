"""Loads, serves and judges the canary that a followed catalogue names."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hotplate.serve.generation import Policy
from hotplate.serve.releases.canary import NO_CANARY, BothCounts, CanaryState, FollowedCanary, ServedCanary
from hotplate.serve.releases.served import ServedRelease, load
from hotplate.stores.catalogue import Catalogue, Release, ReleaseId
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Reader

if TYPE_CHECKING:
    from hotplate.serve.fold_in import FoldIn

log = logging.getLogger(__name__)


class CanaryFollower:
    """The canary of one tier in one process.

    Its users get the live release while it is not served: it cannot be loaded, is gone, or was stopped (`CanaryState`).
    """

    canary = Policy[ServedCanary | None]()
    """The loaded canary; None while its users get the live release."""

    def __init__(self, reader: Reader, counts: Callable[[], BothCounts], fold_in: "FoldIn | None") -> None:
        """*counts* returns those of all workers; *fold_in* loads item factors."""
        self.canary = None
        self._followed = NO_CANARY
        self._reader = reader
        self._counts = counts
        self._fold_in = fold_in

    @property
    def release(self) -> ReleaseId | None:
        """The canary that the followed catalogue names, in any state."""
        return self._followed.release

    @property
    def stopped(self) -> ReleaseId | None:
        """The canary that this process uses no more, because it is worse than the live release."""
        return self._followed.release if self._followed.state is CanaryState.STOPPED else None

    @property
    def problem(self) -> str | None:
        """A sentence on why its users get the live release; None if it is served, or if there is no canary."""
        return self._followed.problem

    @property
    def is_missing(self) -> bool:
        """Whether it is to be loaded again."""
        return self._followed.state in (CanaryState.UNLOADED, CanaryState.GONE)

    @property
    def counts(self) -> BothCounts | None:
        """Counts since its start; None while it is not served."""
        return None if self.canary is None else self._counts().since(self.canary.began_with)

    def is_stopped(self, entry: Release) -> bool:
        """Return whether this process has stopped the release of a catalogue's entry."""
        return self._followed.is_stopped(entry)

    async def load(self, catalogue: Catalogue) -> FollowedCanary:
        """Return the canary that a catalogue names: the release that a share of the users gets.

        It is loaded unless this process has stopped it or serves it already. If only its share has changed, it is
        judged again, and its counts since the start go on. If it cannot be loaded, the result says why: the live
        release is not affected. The result does not take effect before `use`.
        """
        record = catalogue.canary
        entry = catalogue.canary_entry
        if record is None or entry is None:
            return NO_CANARY
        if self._followed.is_stopped(entry):
            return self._followed

        before = self.canary
        began_with = None  # the counts at its start; None for the present ones
        if before is None or not before.release.is_of(entry):
            try:
                release = replace(await load(self._reader, entry, self._fold_in), is_canary=True)
            except Exception as error:  # noqa: BLE001 -- must not harm the live release
                return self._report_unloadable(entry, error)
        elif before.record == record:
            return replace(self._followed, entry=entry)
        else:  # the same release with another share
            release = before.release
            began_with = before.began_with

        log.info("release %s is the canary, of %g %% of the users", entry.id, record.percent)
        now = asyncio.get_running_loop().time()
        loaded = ServedCanary(record, release, now, self._counts(), began_with)
        return FollowedCanary(CanaryState.LOADED, entry, loaded)

    def _report_unloadable(self, entry: Release, error: Exception) -> FollowedCanary:
        """Return a canary that cannot be loaded, and log the reason if it is another one than before."""
        canary = FollowedCanary(CanaryState.UNLOADED, entry, reason=str(error) or type(error).__name__)
        if canary != self._followed:
            is_defect = not isinstance(error, StoreError)
            log.warning("%s", canary.problem, exc_info=error if is_defect else None)
        return canary

    def use(self, followed: FollowedCanary) -> None:
        """Serve the canary to its users, or the live release if it is not loaded."""
        self._followed = followed
        self.canary = followed.loaded

    def judge(self) -> None:
        """Stop the canary if it is worse than the live release."""
        if self.canary is None:
            return
        finding = self.canary.judge(asyncio.get_running_loop().time(), self._counts())
        if finding is not None:
            self.stop(finding)
            log.warning("%s", self.problem, extra={"release": self.release})

    def stop(self, reason: str) -> None:
        """Serve the live release to all users until the catalogue names another canary, or `reload`."""
        if self.canary is not None:
            self.use(self._followed.stopped(reason))

    def reload(self) -> None:
        """Have the follower load a stopped canary again, at its next check."""
        if self._followed.state is CanaryState.STOPPED:
            reason = "it was stopped, and is to be loaded again"
            self.use(FollowedCanary(CanaryState.UNLOADED, self._followed.entry, reason=reason))

    def drop(self, gone: ServedRelease) -> None:
        """Serve the live release to all users while the canary is gone."""
        if self.canary is not None and self.canary.release is gone:
            self.use(self._followed.gone())
            log.warning("%s", self.problem, extra={"release": gone.id})
