"""Follows the live release and the canary of a store.

A catalogue of a lower generation is a stale read, unless the store was certainly restored from an older copy.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from hotplate.base.timing import loop_time
from hotplate.serve.errors import FindingSource, ServiceFinding
from hotplate.serve.generation import Policy
from hotplate.serve.log_once import LOG_EVERY_S, LogOnce
from hotplate.serve.metrics import ReleaseRole
from hotplate.serve.releases.comparison import identity
from hotplate.serve.releases.erasures import KnownErasures
from hotplate.serve.releases.missing_rows import MissingRows
from hotplate.serve.releases.served import RowsOfRelease, ServedRelease, load
from hotplate.serve.tasks import repeat
from hotplate.stores.catalogue import Catalogue, Release, ReleaseId, ReleaseRef, UserShare, follows
from hotplate.stores.concurrency import SharedCall, end_tasks
from hotplate.stores.connect import never_published
from hotplate.stores.encoding import EVERYBODY, MANIFEST, RowKey
from hotplate.stores.errors import PartLost, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.store import Reader, read_one
from hotplate.stores.timing import Outage
from hotplate.stores.verification import counted

if TYPE_CHECKING:
    from hotplate.serve.lists.fold_in import FoldIn

log = logging.getLogger(__name__)

# First and longest pause before a failed store is read again.
RETRY_S = (0.1, 5.0)
# A store counts as restored after reads of the primary were older for this time.
RESTORED_S = 30.0
# Interval of reads while the store disagrees with the followed catalogue.
STALE_POLL_S = 2.0
# Interval for stopping a canary, or loading it again.
CANARY_S = 1.0
# Processes spread the loading of a remote release over this time.
SPREAD_S = 0.5
# Maximum for reading a release into memory.
WARM_S = 120.0

# Returns the reason to stop a canary, or None. Called with its `identity`, None without a canary: for each catalogue
# that is followed, and every second while there is a canary.
Verdict = Callable[[Release | None], str | None]


@dataclass(frozen=True, slots=True)
class FollowedCanary:
    """The canary that the followed catalogue names, if any; its users get the live release unless it is loaded."""

    entry: Release | None = None
    loaded: ServedRelease | None = None
    problem: str | None = None
    """A sentence on why it is not loaded."""

    is_stopped: bool = False
    """Whether it is worse than the live release; otherwise it is to be loaded again."""


class Follower:
    """Keeps `live` and `canary` of a tier current; both stay if the store cannot be read.

    Three tasks of `run` change them: one follows the store's changes, one reads the catalogue again while the store
    disagrees with the followed one (`_unsettled`), and one loads or stops the canary. `_switching` lets one of them at
    a time hide erased users, load and switch. Loading the release before the live one does not hold it.
    """

    live = Policy[ServedRelease | None]()
    followed_canary = Policy[FollowedCanary]()

    def __init__(
        self,
        reader: Reader,
        *,
        verdict: Verdict = lambda _: None,
        fold_in: "FoldIn | None" = None,
    ) -> None:
        """*verdict* stops a worse canary; by default, none is stopped. *fold_in* loads item factors."""
        self.live = None
        self.followed_canary = FollowedCanary()
        self.previous: ServedRelease | None = None
        """The release that was live before, for pages of its lists; without item factors."""
        self.erasures = KnownErasures()
        self.last_error: str | None = None
        """Why the store cannot be read or followed."""
        self.attempted = asyncio.Event()
        """Set after the first read of the store or its failure."""
        self._reader = reader
        self._verdict = verdict
        self._fold_in = fold_in
        self._followed: Catalogue | None = None
        self._confirmed_at = time.monotonic()
        """When a read of the store last agreed with the followed catalogue."""
        self._unsettled = asyncio.Event()
        """Set while the store must be read again to know which catalogue to follow."""
        self._older_since = inf
        """Since when the primary names an older catalogue, by the loop's clock, as the pauses between reads."""
        self._switching = asyncio.Lock()
        self._refreshing = SharedCall(self._refresh, lambda: StoreUnavailable("the catalogue is no longer read"))
        self._restored: str | None = None
        """Why, until a newer catalogue is followed, the store counts as restored from an older copy."""
        self._missing_rows = MissingRows(reader, self.erasures, self.refresh)
        self._failing = LogOnce(again_s=LOG_EVERY_S, clock=loop_time)

    @property
    def findings(self) -> list[ServiceFinding]:
        """Problems of the store and the served release, each with the part that it concerns and a sentence.

        They are: the store cannot be read, it was restored from an older copy, its canary (the release that a share of
        the users gets) is not served, it lost records of erased users, and rows of the release are damaged or missing.
        """
        damaged = () if self.live is None else self.live.damaged
        problems: dict[FindingSource, str | None] = {
            "store": self.last_error,
            "restored": self._restored,
            "release": self.followed_canary.problem,
            "erased users": self.erasures.problem,
            "rows": counted(damaged) if damaged else None,
            "missing": self._missing_rows.problem,
        }
        return [ServiceFinding(source, problem) for source, problem in problems.items() if problem is not None]

    @property
    def canary(self) -> ServedRelease | None:
        """The canary, while it is loaded."""
        return self.followed_canary.loaded

    @property
    def catalogue_age_s(self) -> float:
        """Seconds since the last read that agreed with the followed catalogue."""
        return time.monotonic() - self._confirmed_at

    async def run(self, *, warm: bool = False) -> None:
        """Follow until cancelled; *warm* reads local releases into memory first."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_changes(warm=warm))
            group.create_task(self._read_while_unsettled())
            group.create_task(repeat(self._look_at_canary, CANARY_S, "loading or stopping a canary"))
            group.create_task(self._missing_rows.run(lambda: self.live))

    @property
    def releases(self) -> list[ServedRelease]:
        """The live release and the canary."""
        return [release for release in (self.live, self.canary) if release is not None]

    @property
    def _known_releases(self) -> list[ServedRelease]:
        """The live release, the canary and the release before."""
        return self.releases if self.previous is None else [*self.releases, self.previous]

    def find(self, release_id: str) -> ServedRelease | None:
        """Return the live release, the canary or the release before, by its id."""
        return next((release for release in self._known_releases if release.id == release_id), None)

    def release_for(self, row: RowKey) -> ServedRelease | None:
        """Return the release for a row: the canary for its users, otherwise the live one."""
        canary = self.canary
        return canary if canary is not None and canary.includes(row) else self.live

    def grouped(self, rows: Sequence[RowKey]) -> list[RowsOfRelease]:
        """Divide the keys *rows* among the releases that they are to be read in.

        Rows of the canary's users, a share of all, are read in the canary, and all others in the live release. The
        result is empty while no release is served.
        """
        live = self.live
        if live is None or not rows:
            return []
        canary = self.canary
        if canary is None:
            return [RowsOfRelease(live, rows)]

        live_rows = [row for row in rows if not canary.includes(row)]
        canary_rows = [row for row in rows if canary.includes(row)]
        groups = (RowsOfRelease(live, live_rows), RowsOfRelease(canary, canary_rows))
        return [group for group in groups if group.rows]

    def compared_role(self, release: ServedRelease) -> ReleaseRole | None:
        """Return the role of a release during a canary, of which both releases are counted; None without a canary."""
        return None if self.canary is None else release.role

    async def refresh(self) -> None:
        """Read the catalogue after a release was not found; concurrent callers share a read."""
        await self._refreshing.result()

    async def close(self) -> None:
        """End `refresh`; its callers get StoreUnavailable. `run` is cancelled by its owner."""
        await self._refreshing.close()

    async def _follow_changes(self, *, warm: bool) -> None:
        """Handle each catalogue, the record of a store's releases, that the store reports, until cancelled.

        After an error, begin again with a pause. Once a catalogue is followed, a short outage is not reported. *warm*
        says to read releases of a local store into memory before they are served.
        """
        outage = Outage(*RETRY_S)
        while True:
            try:
                await self._poll(outage, warm=warm)
            except Exception as error:  # noqa: BLE001 -- must not end this task
                if self._followed is None or not outage.tolerates(error):
                    self._report(error)
                self.attempted.set()
            await asyncio.sleep(outage.next_pause_s())

    async def _poll(self, outage: Outage, *, warm: bool) -> None:
        """Handle the catalogue now and after changes of its version, until a poll or handling it raises an error.

        The users that a catalogue erases are hidden at once. It is handled once its new releases are prepared
        (`_prepare`). If the store reports another catalogue meanwhile, only that one is handled, as soon as its own new
        releases are prepared: a rollback does not wait for the release that it withdraws.
        """
        seen: Catalogue | None = None
        releases = list[ReleaseRef]()  # that are being prepared
        preparing: asyncio.Task[None] | None = None
        try:
            while True:
                catalogue = await self._reader.poll()
                if seen is None or catalogue.version != seen.version:
                    seen = catalogue
                    await self._hide_erased(catalogue)
                    new_releases = self._new_releases(catalogue)
                    if preparing is None or new_releases != releases:
                        if preparing is not None:
                            preparing.cancel()
                        releases = new_releases
                        preparing = asyncio.create_task(self._prepare(releases, warm=warm))
                elif not self._unsettled.is_set():
                    self._confirmed_at = time.monotonic()

                if preparing is None:
                    await asyncio.sleep(self._reader.poll_s)
                    continue
                await self._pause_until(preparing)
                if preparing.done():
                    preparing.result()  # raises a defect
                    preparing = None
                    async with self._switching:
                        await self._handle_catalogue(seen, is_requested=False)
                    self.attempted.set()
                    outage.end()
        finally:
            if preparing is not None:
                await end_tasks(preparing)

    async def _pause_until(self, preparing: "asyncio.Task[None]") -> None:
        """Pause for the time between two polls, or until releases are prepared."""
        pause = asyncio.create_task(asyncio.sleep(self._reader.poll_s))
        try:
            await asyncio.wait((preparing, pause), return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()

    async def _prepare(self, releases: Sequence[ReleaseRef], *, warm: bool) -> None:
        """Prepare to serve *releases*, none of which is served yet.

        If *warm*, those of a local store are read into memory. With a remote store, this waits for a random time, at
        most SPREAD_S, so that not all processes read a new release at once, unless it is the first that is served here.
        """
        if self._reader.is_local:
            for release in releases if warm else ():
                await self._warm(release)
        elif releases and self.live is not None:
            await asyncio.sleep(random.uniform(0, SPREAD_S))  # noqa: S311 -- not cryptographic

    async def _warm(self, release: ReleaseRef) -> None:
        """Read a release into memory, for WARM_S at most; it is served in any case."""
        started = loop_time()
        try:
            async with asyncio.timeout(WARM_S):
                await self._reader.warm(release)
        except TimeoutError:
            log.warning("release %s is served before all of it is in memory: %.0f s were too short", release.id, WARM_S)
        except StoreError:
            return  # loading it reports the error, without harm to the other release
        else:
            log.info("release %s was brought into memory in %.1f s", release.id, loop_time() - started)

    async def _hide_erased(self, catalogue: Catalogue) -> None:
        """Hide the users that a catalogue erases, if it is going to be followed."""
        async with self._switching:
            if follows(catalogue, self._followed) and not self._may_lag_behind_restore(catalogue):
                await self.erasures.update(self._reader, catalogue)

    async def _read_while_unsettled(self) -> None:
        while True:
            await self._unsettled.wait()
            await self._refresh()
            if self._unsettled.is_set():
                await asyncio.sleep(STALE_POLL_S)

    async def _look_at_canary(self) -> None:
        """Stop the canary that the followed catalogue names, or load it if it is not loaded."""
        if self.followed_canary.entry is None or self._followed is None:
            return
        async with self._switching:
            canary = await self._load_canary(self._followed)
            if canary != self.followed_canary:
                self.followed_canary = canary
                self._keep_open(self.releases)

    async def _load_canary(self, catalogue: Catalogue) -> FollowedCanary:
        """Return the canary that a catalogue names: the release that a share of the users gets.

        It is loaded unless the verdict is that it is worse, or it is loaded already. If it cannot be loaded, the result
        says why: the live release is not affected. A hash of id and salt selects its users: all processes agree, and
        the first 5 % stay when the share grows.
        """
        record = catalogue.canary
        entry = catalogue.canary_entry
        finding = self._verdict(identity(entry))
        if record is None or entry is None:
            return FollowedCanary()
        if finding is not None:
            return self._unused_canary(entry, f"is not used any more: {finding}", is_stopped=True)

        users = UserShare.of(record.percent, record.salt)
        release = self.canary
        if release is None or not release.is_of(entry):
            try:
                release = await load(self._reader, entry, self._fold_in)
            except Exception as error:  # noqa: BLE001 -- must not harm the live release
                defect = None if isinstance(error, StoreError) else error
                problem = f"cannot be loaded: {str(error) or type(error).__name__}"
                return self._unused_canary(entry, problem, defect=defect)

        if release.users != users:
            release = replace(release, users=users)
            log.info("release %s is the canary, of %g %% of the users", entry.id, record.percent)
        return FollowedCanary(entry, release)

    def _unused_canary(
        self, entry: Release, problem: str, *, is_stopped: bool = False, defect: Exception | None = None
    ) -> FollowedCanary:
        """Return a canary that is not loaded; log the problem, with the traceback of a defect, if it is a new one."""
        sentence = f"release {entry.id} is the canary, and {problem}"
        canary = FollowedCanary(entry, problem=sentence, is_stopped=is_stopped)
        if canary != self.followed_canary:
            log.warning("%s", sentence, extra={"release": entry.id}, exc_info=defect)
        return canary

    async def release_before(self, ref: ReleaseRef) -> ServedRelease | None:
        """Return the release *ref*, which was live before: `previous`, or loaded again after a restart of the worker.

        None if it cannot be read.
        """
        previous = self.previous
        if previous is not None and previous.ref == ref:
            return previous
        entry = None if self._followed is None else self._followed.entry(ref.incarnation)
        if entry is None:
            return None

        # Without `_switching`: a slow store must not delay a rollback.
        try:
            loaded = await load(self._reader, entry, None)
        except StoreError:
            return None
        if self.previous is previous:  # no other release went live meanwhile
            self.previous = loaded
        return loaded

    def drop(self, gone: ServedRelease) -> None:
        """Stop using a release whose rows are gone: users of the canary get the live one, pages of others end."""
        entry = self.followed_canary.entry
        if entry is not None and self.canary is gone:
            self.followed_canary = self._unused_canary(entry, "is not in this store any more")
        if self.previous is gone:
            self.previous = None

    async def _refresh(self) -> None:
        """Read the catalogue because of a problem, and handle it.

        Read again if another one was followed meanwhile, as the one that was read may be older.
        """
        try:
            while True:
                followed = self._followed
                catalogue = await self._reader.catalogue()
                async with self._switching:
                    if self._followed is followed:
                        await self._handle_catalogue(catalogue, is_requested=True)
                        return
        except Exception as error:  # noqa: BLE001 -- must not end this task, or a request
            self._report(error)
            if self._followed is not None:
                self._unsettled.set()

    def _new_releases(self, catalogue: Catalogue) -> list[ReleaseRef]:
        """Return the live release and the canary of a catalogue, unless they are known or it is not followed."""
        if not follows(catalogue, self._followed):
            return []
        entries = [catalogue.live_entry]
        canary = catalogue.canary_entry
        followed = self.followed_canary
        is_stopped = followed.is_stopped and followed.entry == canary
        if not is_stopped:
            entries.append(canary)

        known = self._known_releases
        return [
            entry.ref for entry in entries if entry is not None and not any(release.is_of(entry) for release in known)
        ]

    async def _handle_catalogue(self, catalogue: Catalogue, *, is_requested: bool) -> None:
        """Follow *catalogue*, as it was just read from the store, if it is newer, or if the store was restored.

        Otherwise only note whether this read agrees with the catalogue that is followed, whose releases are served.
        *is_requested* says that it was read because of a problem: then the live release is checked, too, and an older
        catalogue may be followed. Called while `self._switching` is held. Raises StoreError if the live release cannot
        be loaded: then the served release and the followed catalogue stay.
        """
        followed = self._followed
        if self._may_lag_behind_restore(catalogue):
            self._unsettled.set()
        elif follows(catalogue, followed):  # it is newer, or the first one that was read
            await self._follow(catalogue)
        elif followed is None:  # the store is empty
            self._settle(never_published())
        elif catalogue.version == followed.version:
            await self._confirm(catalogue, check=is_requested or self._unsettled.is_set())
        elif is_requested:
            await self._handle_older_catalogue(catalogue, followed)
        else:  # perhaps an outdated read, from a replica or a cache: `_read_while_unsettled` reads it again
            self._unsettled.set()

    def _settle(self, error: StoreError | None) -> None:
        """Note that the store agrees with the followed catalogue; *error* says if nothing is live in it."""
        self._confirmed_at = time.monotonic()
        self._older_since = inf
        self._unsettled.clear()
        self._set_error(error)

    def _may_lag_behind_restore(self, catalogue: Catalogue) -> bool:
        """Return whether a replica names a higher generation after a restore, which it may not have seen yet."""
        if self._restored is None or self._followed is None or catalogue.primary:
            return False
        return catalogue.generation > self._followed.generation

    async def _confirm(self, catalogue: Catalogue, *, check: bool) -> None:
        """Note that a read of the store returned the followed *catalogue*, and clear or set the error.

        With *check*, read whether the store has the live release, too: if it is gone, that is the error, and the store
        is read again later.
        """
        if check and self.live is not None and self.live.ref == catalogue.live_ref and await self._is_gone():
            self._unsettled.set()
            self._set_error(
                ReleaseNotFound(
                    f"release {self.live.id} is live, and is not in this store any more; restore it, or publish again"
                )
            )
            return

        self._settle(_error_of(catalogue))

    async def _follow(self, catalogue: Catalogue) -> None:
        """Load the live release and the canary of a catalogue, and switch to both.

        A canary is a release for a share of the users. The release that was live is kept as `self.previous`, without
        its item factors. Raises StoreError if the live release cannot be loaded, and switches to neither; newly erased
        users are hidden in any case.
        """
        # First of all: an erasure must take effect even if a release cannot be loaded.
        await self.erasures.update(self._reader, catalogue)

        before = self.live
        release = before
        live = catalogue.live_entry
        if live is not None and (before is None or not before.is_of(live)):
            release = await self._load_live(live)
        canary = await self._load_canary(catalogue)

        is_new = release is not before
        if is_new and before is not None:
            self.previous = replace(before, factors=None)
        # Without an await in between, so no user sees an older release.
        self.live = release
        self.followed_canary = canary
        self._keep_open(self.releases)

        if release is not None and is_new:
            log.info("release %s is live", release.id, extra={"release": release.id})
            if release.damaged:
                log.warning("release %s is %s", release.id, counted(release.damaged))

        self._followed = catalogue
        self._restored = None
        self._settle(_error_of(catalogue))

    async def _load_live(self, live: Release) -> ServedRelease:
        """Return a release that goes live; the canary is not loaded again."""
        canary = self.canary
        if canary is not None and canary.is_of(live):
            return replace(canary, users=None)
        return await load(self._reader, live, self._fold_in)

    async def _handle_older_catalogue(self, catalogue: Catalogue, followed: Catalogue) -> None:
        """Follow a catalogue of a lower generation than *followed* if the store was restored from an older copy.

        Otherwise report it as an error, and go on with *followed*. The store counts as restored if it lacks the
        release that is served, or if its primary has answered with older catalogues for RESTORED_S. An answer of a
        replica, which may lag behind, proves nothing. A catalogue's generation is the number of its changes.
        """
        self._unsettled.set()
        if not catalogue.primary:
            error = (
                f"only a replica answers, with another catalogue (generation {catalogue.generation}) "
                f"than the followed one (generation {followed.generation})"
            )
        elif catalogue.generation == 0:
            self._older_since = inf
            error = (
                "the catalogue is not in this store any more; if releases are left, `hotplate store rebuild` writes a "
                "new one, else publish again or restore a backup"
            )
        else:
            self._older_since = min(self._older_since, loop_time())
            if loop_time() - self._older_since >= RESTORED_S or await self._is_gone():
                await self._follow_restored(catalogue, followed)
                return
            error = (
                f"the catalogue has generation {catalogue.generation}, older than {followed.generation}, which is "
                f"followed; if that lasts for {RESTORED_S:.0f} s, the store counts as restored"
            )
        self._set_error(StoreError(error))

    async def _follow_restored(self, catalogue: Catalogue, followed: Catalogue) -> None:
        """Follow the older catalogue of a restored store, and report the restore until a newer one is followed."""
        await self._follow(catalogue)
        self._restored = (
            f"the store was restored from an older copy at generation {catalogue.generation}, after "
            f"{followed.generation}; release {catalogue.live or 'none'} is live in it"
        )
        log.warning("%s", self._restored)

    async def _is_gone(self) -> bool:
        """Return whether the store certainly lacks the live release."""
        live = self.live
        if live is None:
            return False

        self._keep_open(())  # an open file could be read although it was removed
        try:
            try:
                await read_one(self._reader, live.ref, MANIFEST)
            except PartLost:  # raised again if the parts with the rows of the sample are lost, too
                await self._reader.get_many(live.ref, [EVERYBODY.text, *live.manifest.sample])
        except ReleaseNotFound:
            return True
        except Exception:
            log.debug("whether release %s is there cannot be known", live.id, exc_info=True)
        finally:
            self._keep_open(self.releases)
        return False

    def _keep_open(self, releases: Sequence[ServedRelease]) -> None:
        self._reader.keep_open([release.ref for release in releases])

    def _report(self, error: Exception) -> None:
        """Note that the store could not be read; errors other than StoreError are defects."""
        if isinstance(error, StoreError):
            self._set_error(error)
        else:
            defect = StoreError(f"reading the store failed with {type(error).__name__}; the log says where")
            self._set_error(defect, cause=error)

    def _set_error(self, error: StoreError | None, cause: Exception | None = None) -> None:
        """Set or clear `last_error`, and log the change: errors of one type at most every LOG_EVERY_S seconds.

        *cause* is an exception with a traceback for the log.
        """
        text = None if error is None else str(error)
        if text == self.last_error:
            return

        self.last_error = text
        if error is None:
            self._failing.end()
            log.info("the store can be read again")
            return
        if self._failing.met(type(error)):
            log.warning("%s", text, exc_info=cause)


class PreviewFollower(Follower):
    """Follows nothing, and shows one release of a store, whatever its state."""

    def __init__(self, reader: Reader, erasures: KnownErasures) -> None:
        """*erasures* are those that the service knows, even if the store has lost them."""
        super().__init__(reader)
        self.erasures = copy(erasures)

    async def show(self, release: ReleaseId) -> StoreError | None:
        """Load a release; return why it cannot be shown, if so."""
        try:
            catalogue = await self._reader.catalogue()
            await self.erasures.update(self._reader, catalogue)
            entry = catalogue.find(release)
        except StoreError as error:
            return error
        try:
            self.live = await load(self._reader, entry, None)
        except StoreError as error:
            return ReleaseNotFound(f"release {release} cannot be read, maybe as its draft is not sealed: {error}")
        return None

    async def refresh(self) -> None:
        """Follow no other release, if this one is gone."""


def _error_of(catalogue: Catalogue) -> ReleaseNotFound | None:
    if catalogue.live is not None:
        return None
    return ReleaseNotFound("nothing is live in this store yet; run `hotplate publish`")
