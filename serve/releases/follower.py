"""Follows the live release and the canary of a store.

A catalogue of a lower generation is a stale read, unless the store was certainly restored from an older copy.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from hotplate.serve.errors import FindingSource, ServiceFinding
from hotplate.serve.generation import Policy
from hotplate.serve.releases.canary import BothCounts, ServedCanary
from hotplate.serve.releases.served import ServedRelease, load
from hotplate.stores.catalogue import Catalogue, Release, ReleaseRef, follows
from hotplate.stores.connect import never_published
from hotplate.stores.encoding import MANIFEST, RowKey
from hotplate.stores.erasure import NOBODY, ErasedUsers
from hotplate.stores.erasure_log import lost_sentence, read_erased
from hotplate.stores.errors import ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.store import Diagnosed, LocalReader, Reader, read_one
from hotplate.stores.timing import Backoff, SharedCall
from hotplate.stores.verification import counted

if TYPE_CHECKING:
    from hotplate.serve.fold_in import FoldIn

log = logging.getLogger(__name__)

# Findings that only another catalogue clears.
FOLLOWED: tuple[FindingSource, ...] = ("restored", "canary", "erased users")

# Minimum between logs of repeated errors.
LOG_EVERY_S = 60.0
# First and longest pause before a failed store is read again.
RETRY_S = (0.1, 5.0)
# A store counts as restored after reads of the primary were older for this time.
RESTORED_S = 30.0
# Poll interval while the catalogue is older, or the served release is gone.
STALE_POLL_S = 2.0
# Processes spread the loading of a remote release over this time.
SPREAD_S = 0.5
# Interval for judging a canary, or loading it again.
CANARY_S = 1.0
# Maximum for reading a release into memory.
WARM_S = 120.0


class RowsOfRelease(msgspec.Struct, frozen=True):
    """Rows that are read from one release."""

    served: ServedRelease
    rows: Sequence[RowKey]


class Follower:
    """Keeps `served` and `canary` of a tier current; both stay if the store cannot be read."""

    served = Policy[ServedRelease | None]()
    canary = Policy[ServedCanary | None]()
    erased = Policy[ErasedUsers]()

    def __init__(
        self, reader: Reader, canary_counts: Callable[[], BothCounts] = BothCounts, *, fold_in: "FoldIn | None" = None
    ) -> None:
        """*canary_counts* returns the counts of all workers; *fold_in* loads item factors."""
        self.served = None
        self.canary = None
        self.previous: ServedRelease | None = None
        """The release that was live before, for pages of its lists; without item factors."""
        self.erased = NOBODY
        self._most_erased = 0
        """The most erased users that the store has counted."""
        self.canary_stopped: str | None = None
        self.last_error: str | None = None
        self.attempted = asyncio.Event()
        """Set after the first read of the store or its failure."""
        self.ready = asyncio.Event()
        self._reader = reader
        self._fold_in = fold_in
        self._canary_counts = canary_counts
        self._stopped: Release | None = None
        self._seen: Catalogue | None = None
        self._switching = asyncio.Lock()
        self._taken = 0
        """Number of catalogues taken; one that was requested before the last may be older."""
        self._stale = asyncio.Event()
        """Set while the store disagrees with the followed catalogue."""
        self._older_since: float | None = None
        self._current = False
        self._current_at = time.monotonic()
        self._found: dict[FindingSource, list[str]] = {}
        self._canary_named = asyncio.Event()
        self._refreshing = SharedCall(self._refresh, lambda: StoreUnavailable("the catalogue is no longer read"))
        self._logged: type[StoreError] | None = None
        self._logged_at = 0.0

    @property
    def findings(self) -> list[ServiceFinding]:
        """Problems of the store and the served release."""
        found = [ServiceFinding(source, sentence) for source in FOLLOWED for sentence in self._found.get(source, ())]
        if self.last_error is not None:
            found.insert(0, ServiceFinding("store", self.last_error))
        if self.canary_stopped is not None:
            found.append(ServiceFinding("canary", self.canary_stopped))
        if self.served is not None and self.served.damaged:
            found.append(ServiceFinding("rows", counted(self.served.damaged)))
        return found

    @property
    def catalogue_age_s(self) -> float:
        """Seconds since the last read that agreed with the followed catalogue."""
        now = time.monotonic()
        current_at = now if self._current else self._current_at
        polled_at = self._reader.polled_at if isinstance(self._reader, Diagnosed) else None
        return now - (current_at if polled_at is None else min(current_at, polled_at))

    async def run(self, *, warm: bool = False) -> None:
        """Follow until cancelled; *warm* reads local releases into memory first."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_changes(warm=warm))
            group.create_task(self._poll_while_stale())
            group.create_task(self._watch_canary())

    @property
    def all_served(self) -> list[ServedRelease]:
        """The live release and the canary."""
        canary = self.canary
        both = (self.served, None if canary is None else canary.served)
        return [served for served in both if served is not None]

    def find(self, release: str) -> ServedRelease | None:
        """Return the live release, the canary or the release before, by its id."""
        known = self.all_served if self.previous is None else [*self.all_served, self.previous]
        return next((served for served in known if served.id == release), None)

    def served_for(self, row: RowKey) -> ServedRelease | None:
        """Return the release for a row: the canary for its users, otherwise the live one."""
        canary = self.canary
        return canary.served if canary is not None and canary.includes(row) else self.served

    def grouped(self, rows: Sequence[RowKey]) -> list[RowsOfRelease]:
        """Return releases with their rows; none while no release is served."""
        if self.served is None or not rows:
            return []
        canary = self.canary
        if canary is None:
            return [RowsOfRelease(self.served, rows)]
        live = [row for row in rows if not canary.includes(row)]
        taken = [row for row in rows if canary.includes(row)]
        groups = (RowsOfRelease(self.served, live), RowsOfRelease(canary.served, taken))
        return [group for group in groups if group.rows]

    async def refresh(self) -> ServedRelease | None:
        """Read the catalogue after a release was not found; concurrent callers share a read."""
        await self._refreshing.result()
        return self.served

    async def _follow_changes(self, *, warm: bool) -> None:
        backoff = Backoff(*RETRY_S)
        while True:
            try:
                async for catalogue in self._reader.changes():
                    await self._prepare(catalogue, warm=warm)
                    await self._take(catalogue)
                    self.attempted.set()
                    backoff.reset()
            except Exception as error:  # noqa: BLE001 -- must not end this task
                self._report(error)
                self.attempted.set()
            await asyncio.sleep(backoff.next_s())

    async def _poll_while_stale(self) -> None:
        while True:
            await self._stale.wait()
            await self._refresh()
            if self._stale.is_set():
                await asyncio.sleep(STALE_POLL_S)

    async def _watch_canary(self) -> None:
        now = asyncio.get_running_loop().time
        while True:
            await self._canary_named.wait()
            await asyncio.sleep(CANARY_S)
            if self.canary is None:
                async with self._switching:
                    self.canary = None if self._seen is None else await self._load_canary(self._seen)
            elif self._seen is not None and not self._switching.locked():
                entry = self._seen.canary_entry
                finding = self.canary.judge(now(), self._canary_counts())
                if entry is not None and finding is not None:
                    self._stop_canary(entry, finding)

    def _stop_canary(self, entry: Release, finding: str) -> None:
        self.canary = None
        self._stopped = entry
        self.canary_stopped = f"release {entry.id} is the canary, and is not used any more: {finding}"
        log.warning("%s", self.canary_stopped, extra={"release": entry.id})

    @property
    def canary_counts(self) -> BothCounts | None:
        """Counts since the start of the canary."""
        return None if self.canary is None else self._canary_counts().since(self.canary.began_with)

    def leave_canary(self) -> None:
        """Serve the live release to all users until the canary is loaded again."""
        self.canary = None

    def drop_canary(self, gone: ServedRelease) -> None:
        """Serve the live release to all users while the canary is gone."""
        if self.canary is not None and self.canary.served is gone:
            self.canary = None
            self._set_canary_error(f"release {gone.id} is the canary, and is not in this store any more")

    async def release_before(self, ref: ReleaseRef) -> ServedRelease | None:
        """Return `previous`, which a worker that has restarted since loads again; None if it cannot be read."""
        if self.previous is not None and self.previous.ref == ref:
            return self.previous
        entry = None if self._seen is None else self._seen.entry(ref.incarnation)
        if entry is None:
            return None
        async with self._switching:
            with suppress(StoreError):
                self.previous = await load(self._reader, entry, None)
                return self.previous
        return None

    def drop_previous(self, gone: ServedRelease) -> None:
        """Forget the release before the live one, whose rows are gone."""
        if self.previous is gone:
            self.previous = None

    async def _refresh(self) -> None:
        try:
            while True:
                taken = self._taken
                found = await self._reader.catalogue()
                if await self._take(found, requested_after=taken):
                    return
        except Exception as error:  # noqa: BLE001 -- must not end this task, or a request
            self._report(error)

    async def _prepare(self, catalogue: Catalogue, *, warm: bool) -> None:
        """Read local releases into memory before a switch, or delay this process randomly."""
        live = catalogue.live_entry
        if live is None or not follows(catalogue, self._seen):
            return
        entries = [entry for entry in (live, catalogue.canary_entry) if entry is not None and entry != self._stopped]
        unread = [entry for entry in entries if self._is_new(entry) and not self._is_canary(entry)]
        if isinstance(self._reader, LocalReader):
            for one in unread if warm else ():
                await _warm(self._reader, one.ref)
        elif unread and self.served is not None:
            await asyncio.sleep(random.uniform(0, SPREAD_S))  # noqa: S311 -- not cryptographic

    async def _take(self, found: Catalogue, *, requested_after: int | None = None) -> bool:
        """Follow *found* if it is newer, or if the store was restored; an error changes nothing.

        *requested_after* is `_taken` when *found* was requested because of a problem: then this also checks the served
        release, but does nothing and returns False if others were taken since.
        """
        requested = requested_after is not None
        async with self._switching:
            if requested and requested_after != self._taken:
                return False
            self._taken += 1
            seen = self._seen
            restored = bool(self._found.get("restored"))
            if restored and seen is not None and not found.primary and found.generation > seen.generation:
                self._stale.set()  # may lag behind the restored primary
            elif follows(found, seen):
                await self._follow(found)
                self._set_error(_nothing_live() if found.live is None else None)
            elif seen is None:
                self._current = True
                self._set_error(never_published())
            elif found.version != seen.version:
                self._stale.set()
                if requested:  # others may be outdated reads
                    await self._take_older(found, seen)
            elif (requested or self._stale.is_set()) and (gone := await self._live_gone(found)):
                self._stale.set()
                self._note_outdated()
                self._set_error(gone)
            else:
                self._note_current()
                self._set_error(_nothing_live() if found.live is None else None)
        return True

    async def _follow(self, found: Catalogue) -> None:
        if found.erased != (None if self._seen is None else self._seen.erased):
            await self._follow_erased(found)
        live = found.live_entry
        served = self.served
        is_new = live is not None and self._is_new(live)
        if live is not None and is_new:
            if self.canary is not None and self._is_canary(live):
                served = replace(self.canary.served, is_canary=False)
            else:
                served = await load(self._reader, live, self._fold_in)
        canary = await self._load_canary(found)
        if is_new and self.served is not None:
            self.previous = replace(self.served, factors=None)
        self.served, self.canary = served, canary  # together, so no user sees an older release
        if served is not None and is_new:
            self.ready.set()
            log.info("release %s is live", served.id, extra={"release": served.id})
            if served.damaged:
                log.warning("release %s is %s", served.id, counted(served.damaged))
        self._seen = found
        self._found["restored"] = []
        self._note_current()

    async def _follow_erased(self, found: Catalogue) -> None:
        """Add the erased users of a store to those known, who stay hidden if the store was restored or lost some."""
        stored = await read_erased(self._reader, found)
        self.erased = self.erased.merged(stored)
        self._most_erased = max(self._most_erased, stored.count + stored.lost)
        lost = self._most_erased - stored.count
        sentences = [lost_sentence(lost)] if lost else []
        if sentences and sentences != self._found.get("erased users"):
            log.warning("%s", sentences[0])
        self._found["erased users"] = sentences

    async def _load_canary(self, found: Catalogue) -> ServedCanary | None:
        """None also if the canary cannot be loaded."""
        record = found.canary
        entry = found.canary_entry
        if record is None or entry is None:
            self._canary_named.clear()
            self.canary_stopped = None
            self._stopped = None
            self._found["canary"] = []
            return None
        self._canary_named.set()
        if self._stopped == entry:
            return None
        self.canary_stopped = self._stopped = None
        if self.canary is None or not self._is_canary(entry):
            served = await self._try_load(entry)
            began_with = None
        elif self.canary.record == record:
            return self.canary
        else:
            served = self.canary.served
            began_with = self.canary.began_with
        if served is None:
            return None
        log.info("release %s is the canary, of %g %% of the users", entry.id, record.percent)
        return ServedCanary(record, served, asyncio.get_running_loop().time(), self._canary_counts(), began_with)

    async def _try_load(self, canary: Release) -> ServedRelease | None:
        try:
            served = replace(await load(self._reader, canary, self._fold_in), is_canary=True)
        except Exception as error:  # noqa: BLE001 -- must not harm the live release
            sentence = f"release {canary.id} is the canary, and cannot be loaded: {error or type(error).__name__}"
            self._set_canary_error(sentence, None if isinstance(error, StoreError) else error)
            return None
        self._found["canary"] = []
        return served

    def _set_canary_error(self, sentence: str, cause: Exception | None = None) -> None:
        if [sentence] != self._found.get("canary"):
            log.warning("%s", sentence, exc_info=cause)
        self._found["canary"] = [sentence]

    async def _take_older(self, found: Catalogue, seen: Catalogue) -> None:
        """Follow an older catalogue only if the store was restored.

        Then the served release is gone, or the primary was older for RESTORED_S. A replica proves nothing.
        """
        self._note_outdated()
        now = asyncio.get_running_loop().time()
        if not found.primary:
            error = f"only a replica answers, with generation {found.generation} instead of {seen.generation}"
        elif found.generation == 0:
            self._older_since = None
            error = "the catalogue is not in this store any more; `hotplate store rebuild` writes a new one"
        else:
            self._older_since = self._older_since or now
            if now >= self._older_since + RESTORED_S or await self._is_gone():
                await self._follow_restored(found, seen)
                return
            error = (
                f"the catalogue has generation {found.generation}, older than {seen.generation}, which is followed; if "
                f"that lasts for {RESTORED_S:.0f} s, the store counts as restored"
            )
        self._set_error(StoreError(error))

    async def _follow_restored(self, found: Catalogue, seen: Catalogue) -> None:
        await self._follow(found)
        sentence = (
            f"the store was restored from an older copy at generation {found.generation}, after {seen.generation}; "
            f"release {found.live or 'none'} is live in it"
        )
        self._found["restored"] = [sentence]
        log.warning("%s", sentence)
        self.last_error = self._logged = None  # the warning covers it
        if found.live is None:
            self._set_error(_nothing_live())

    def _note_current(self) -> None:
        self._older_since = None
        self._current = True
        self._stale.clear()

    def _note_outdated(self) -> None:
        if self._current:
            self._current = False
            self._current_at = time.monotonic()

    def _is_new(self, live: Release) -> bool:
        return self.served is None or (self.served.ref, self.served.writer) != (live.ref, live.writer)

    def _is_canary(self, entry: Release) -> bool:
        served = None if self.canary is None else self.canary.served
        return served is not None and (served.ref, served.writer) == (entry.ref, entry.writer)

    async def _is_gone(self) -> bool:
        if self.served is not None:
            try:
                await read_one(self._reader, self.served.ref, MANIFEST)
            except ReleaseNotFound:
                return True
            except Exception:
                log.debug("whether release %s is there cannot be known", self.served.id, exc_info=True)
        return False

    async def _live_gone(self, found: Catalogue) -> ReleaseNotFound | None:
        if self.served is None or self.served.ref != found.live_ref or not await self._is_gone():
            return None
        return ReleaseNotFound(
            f"release {self.served.id} is live, and is not in this store any more; restore it, or publish again"
        )

    def _report(self, error: Exception) -> None:
        self._note_outdated()
        if isinstance(error, StoreError):
            self._set_error(error)
        else:
            defect = StoreError(f"reading the store failed with {type(error).__name__}; the log says where")
            self._set_error(defect, cause=error)

    def _set_error(self, error: StoreError | None, cause: Exception | None = None) -> None:
        text = None if error is None else str(error)
        if text == self.last_error:
            return
        self.last_error = text
        if error is None:
            self._logged = None
            log.info("the store can be read again")
            return
        now = asyncio.get_running_loop().time()
        if type(error) is not self._logged or now >= self._logged_at + LOG_EVERY_S:
            self._logged = type(error)
            self._logged_at = now
            log.warning("%s", text, exc_info=cause)


def _nothing_live() -> ReleaseNotFound:
    return ReleaseNotFound("nothing is live in this store yet; run `hotplate publish`")


async def _warm(reader: LocalReader, release: ReleaseRef) -> None:
    clock = asyncio.get_running_loop().time
    started = clock()
    try:
        async with asyncio.timeout(WARM_S):
            await reader.warm(release)
    except TimeoutError:
        log.warning("release %s is served before all of it is in memory: %.0f s were too short", release.id, WARM_S)
    except StoreError:
        return  # loading it reports the error, without harm to the other release
    else:
        log.info("release %s was brought into memory in %.1f s", release.id, clock() - started)
