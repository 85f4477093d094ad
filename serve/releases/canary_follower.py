"""Loads and serves the canary that a followed catalogue names, until a verdict stops it."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from hotplate.serve.generation import Policy
from hotplate.serve.releases.canary import NO_CANARY, BothCounts, CanaryState, FollowedCanary, ServedCanary, identity
from hotplate.serve.releases.canary_judge import Verdict
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

    followed = Policy[FollowedCanary]()
    """What the followed catalogue names; users of the canary get the live release unless it is loaded."""

    def __init__(
        self, reader: Reader, counts: Callable[[], BothCounts], *, verdict: Verdict, fold_in: "FoldIn | None"
    ) -> None:
        """*counts* returns those of all workers; *verdict* stops a canary; *fold_in* loads item factors."""
        self.followed = NO_CANARY
        self._reader = reader
        self._counts = counts
        self._verdict = verdict
        self._fold_in = fold_in

    @property
    def identity(self) -> Release | None:
        """The `identity` of the canary that the followed catalogue names, in any state."""
        return identity(self.followed.entry)

    @property
    def stopped(self) -> ReleaseId | None:
        """The canary that this process uses no more, because it is worse than the live release."""
        return self.followed.release if self.followed.state is CanaryState.STOPPED else None

    @property
    def is_missing(self) -> bool:
        """Whether it is to be loaded again."""
        return self.followed.state in (CanaryState.UNLOADED, CanaryState.GONE)

    @property
    def counts(self) -> BothCounts | None:
        """Counts since its start; None while it is not served."""
        canary = self.followed.loaded
        return None if canary is None else self._counts().since(canary.began_with)

    async def load(self, catalogue: Catalogue) -> FollowedCanary:
        """Return the canary that a catalogue names: the release that a share of the users gets.

        It is loaded unless it was stopped, or is served already; its counts go on if only its share has changed. If it
        cannot be loaded, the result says why: the live release is not affected. The result takes effect once
        the caller assigns it to `followed`.
        """
        record = catalogue.canary
        entry = catalogue.canary_entry
        reason_to_stop = self._verdict(identity(entry))
        if record is None or entry is None:
            return NO_CANARY
        if reason_to_stop is not None:
            return self.followed if self.followed.is_stopped(entry) else _stopped(entry, reason_to_stop)

        before = self.followed.loaded
        began_with = self._counts()
        if before is None or not before.release.is_of(entry):
            try:
                release = replace(await load(self._reader, entry, self._fold_in), is_canary=True)
            except Exception as error:  # noqa: BLE001 -- must not harm the live release
                return self._report_unloadable(entry, error)
        elif before.record == record:
            return replace(self.followed, entry=entry)
        else:  # the same release with another share
            release = before.release
            began_with = before.began_with

        log.info("release %s is the canary, of %g %% of the users", entry.id, record.percent)
        return FollowedCanary(CanaryState.LOADED, entry, ServedCanary(record, release, began_with))

    def _report_unloadable(self, entry: Release, error: Exception) -> FollowedCanary:
        """Return a canary that cannot be loaded, and log the reason if it is another one than before."""
        canary = FollowedCanary(CanaryState.UNLOADED, entry, reason=str(error) or type(error).__name__)
        if canary != self.followed:
            is_defect = not isinstance(error, StoreError)
            log.warning("%s", canary.problem, exc_info=error if is_defect else None)
        return canary

    def apply_verdict(self) -> None:
        """Stop the canary if it is worse than the live release, or have the follower load it again if it is not."""
        entry = self.followed.entry
        if entry is None or self.is_missing:
            return

        reason = self._verdict(identity(entry))
        is_loaded = self.followed.loaded is not None
        if reason is not None and is_loaded:
            self.followed = _stopped(entry, reason)
        elif reason is None and not is_loaded:
            why_unloaded = "it was stopped, and is to be loaded again"
            self.followed = FollowedCanary(CanaryState.UNLOADED, entry, reason=why_unloaded)

    def drop(self, gone: ServedRelease) -> None:
        """Serve the live release to all users while the canary is gone."""
        canary = self.followed.loaded
        if canary is not None and canary.release is gone:
            self.followed = FollowedCanary(CanaryState.GONE, self.followed.entry)
            log.warning("%s", self.followed.problem, extra={"release": gone.id})


def _stopped(entry: Release, reason: str) -> FollowedCanary:
    """Return a canary that is worse than the live release, and log that."""
    canary = FollowedCanary(CanaryState.STOPPED, entry, reason=reason)
    log.warning("%s", canary.problem, extra={"release": entry.id})
    return canary
