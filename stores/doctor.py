"""The doctor checks whether a store can be served from and published to; a rebuild makes a new catalogue.

A rebuild takes the sealed releases of a store whose catalogue is lost or cannot be read. Its new `store_id` makes
running services follow it, and keeps earlier writers from changing it.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from statistics import median

from hotplate.base.timing import HOUR_S
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import (
    DRAFT_GRACE_S,
    Catalogue,
    DraftRef,
    Release,
    ReleaseId,
    ReleaseRef,
    State,
    unnamed_release,
)
from hotplate.stores.change_warnings import failure_as_warning
from hotplate.stores.encoding import MANIFEST
from hotplate.stores.erasure import ErasedUsers
from hotplate.stores.erasure_log import (
    ErasureLog,
    draft_sentence,
    erased_from,
    lost_sentence,
    read_log,
)
from hotplate.stores.errors import (
    HEAL,
    CatalogueUnreadable,
    RefusedByGates,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreMisused,
    StoreUnavailable,
)
from hotplate.stores.lifecycle import check_nothing_to_rebuild
from hotplate.stores.manifest import Manifest, read_manifest, release_in
from hotplate.stores.options import BUDGET_S
from hotplate.stores.release_log import changes_beside, read_refusals
from hotplate.stores.store import Finding, Level, Plan, RecordChange, Store, StoreUse, read_one
from hotplate.stores.users import clear_erased
from hotplate.stores.verification import counted, read_servable, verify

MAX_SKEW_S = 2.0
READS = 20
# Time limit of each.
READ_S = 5.0
NAMED = 5
# Longer ages are shown in days.
DAYS_FROM_HOURS = 48
# Called with (release, its rows read, its rows in all).
OnRowsRead = Callable[[ReleaseId, int, int], None]


async def examine(store: Store, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Examine a store without changes; never raises StoreError.

    *clock* is this machine's, in epoch seconds. Returns at least the version; without a readable catalogue, only what
    the store says of its set-up, and the error.
    """
    findings = [Finding(Level.OK, "version", f"hotplate {version('hotplate')}"), *await _set_up_findings(store)]

    before = clock()
    try:
        catalogue = await store.catalogue()
        if not catalogue.generation:
            await check_nothing_to_rebuild(store)
    except StoreError as error:
        is_reported = any(str(error) in finding.sentence for finding in findings)
        if not is_reported:
            findings.append(Finding(Level.ERROR, "catalogue", str(error)))
        return [finding._replace(prevents=None) for finding in findings]  # errors prevent all without a catalogue

    findings.append(_clock_finding(catalogue, before, clock()))
    sentence = f"generation {catalogue.generation:,}, releases: {len(catalogue.releases):,}"
    findings.append(Finding(Level.OK, "catalogue", sentence))

    try:
        findings += _erasure_findings(store, catalogue, await erased_from(store))
    except StoreError as error:
        findings.append(Finding(Level.ERROR, "erased users", str(error), (StoreUse.PUBLISHING,)))

    return [*findings, *await _live_findings(store, catalogue), *await _leftover_findings(store, catalogue)]


async def _set_up_findings(store: Store) -> list[Finding]:
    try:
        return await store.examine()
    except StoreError as error:
        return [Finding(Level.ERROR, "set-up", f"it cannot be examined: {error}", (StoreUse.PUBLISHING,))]


def _erasure_findings(store: Store, catalogue: Catalogue, erased: ErasedUsers) -> list[Finding]:
    """Return how many users are erased, and what keeps rows of them; nothing for a store without erased users."""
    if erased.lost:
        return [Finding(Level.WARNING, "erased users", lost_sentence(erased.lost))]
    if not erased:
        return []
    sentences = [f"{erased.count:,}"]
    for entry in catalogue.releases:
        if entry.state is State.DRAFT:
            sentences.append(draft_sentence(entry.id))
        elif not store.erases_rows and erased.missing_from(entry.ref).max_rows:
            sentences.append(f"release {entry.id} keeps rows of them, hidden, until it is pruned")
    return [Finding(Level.OK, "erased users", "; ".join(sentences))]


def _clock_finding(catalogue: Catalogue, before: float, after: float) -> Finding:
    """Compare the store's clock with ours, read *before* and *after* the catalogue."""
    ahead_s = catalogue.now - (before + after) / 2
    if abs(ahead_s) <= MAX_SKEW_S + (after - before) / 2:
        return Finding(Level.OK, "clock", f"it differs from ours by {abs(ahead_s):.1f} s")
    side = "ahead of" if ahead_s > 0 else "behind"
    sentence = f"it is {abs(ahead_s):,.1f} s {side} ours, and leases and grace depend on it; set both by NTP"
    return Finding(Level.WARNING, "clock", sentence)


async def _live_findings(store: Store, catalogue: Catalogue) -> list[Finding]:
    """Examine the live release and the canary, time reads of the live one, and check the room for another like it.

    The canary is a release that a share of the users see instead of the live one.
    """
    live = catalogue.live_entry
    canary = catalogue.canary_entry
    if live is None:
        sentence = "nothing is live, so a service has no lists; publish, or activate a release"
        return [Finding(Level.WARNING, "live", sentence)]

    findings, manifest = await _served_findings(store, catalogue, live, "live")
    if canary is not None:
        canary_findings, _ = await _served_findings(store, catalogue, canary, "canary")
        findings += canary_findings
    if manifest is None:
        return findings
    return [*findings, await _read_finding(store, live, manifest), *await _room_findings(store, manifest)]


async def _served_findings(
    store: Store, catalogue: Catalogue, entry: Release, subject: str
) -> tuple[list[Finding], Manifest | None]:
    """Examine the live release or the canary: its size, the age of its data, and damaged rows.

    *subject* is `live` or `canary`. Returns the findings, and the release's manifest, None if it cannot be read.
    """
    try:
        servable = await read_servable(store, entry.ref)
    except StoreError as error:
        sentence = f"{entry.id} is {subject} and cannot be read: {error}"
        if isinstance(error, ReleaseCorrupt | ReleaseNotFound):
            sentence = f"{sentence.removesuffix(f'; {HEAL}')}; {await _advice(store, catalogue)}"
        prevents = (StoreUse.SERVING,) if subject == "live" else ()
        return [Finding(Level.ERROR, subject, sentence, prevents)], None

    since = ""
    if entry.live_since:
        since = f", live since {datetime.fromtimestamp(entry.live_since, UTC):%Y-%m-%d %H:%M:%S}Z"
    manifest = servable.manifest
    size = f"{manifest.rows:,} rows, {manifest.bytes / 1e6:,.1f} MB"
    freshness = f"{manifest.release} is {_age(catalogue.now - manifest.created_at)} old"
    if manifest.learnt_until is not None:
        freshness += f", its newest event {_age(catalogue.now - manifest.learnt_until)}"
    findings = [
        Finding(Level.OK, subject, f"{entry.id}{since}: {size}"),
        Finding(Level.OK, "freshness", freshness),
    ]
    if servable.damaged:
        sentence = f"of {entry.id}, rows are missing or {counted(servable.damaged)}"
        findings.append(Finding(Level.ERROR, "rows", sentence, prevents=()))

    return findings, manifest


def _age(seconds: float) -> str:
    hours = max(0.0, seconds) / HOUR_S
    return f"{hours:,.1f} hours" if hours < DAYS_FROM_HOURS else f"{hours / 24:,.1f} days"


async def _advice(store: Store, catalogue: Catalogue) -> str:
    """Return advice for a served release that has lost its data: the newest other one that can be read, or HEAL."""
    for entry in reversed(catalogue.committed):
        if entry.ref in catalogue.served or entry.refused_by:
            continue
        try:
            await read_servable(store, entry.ref)
        except StoreError:
            continue
        return f"`hotplate releases activate {entry.id}` serves one that can be read, or publish again"
    return HEAL


async def _read_finding(store: Store, live: Release, manifest: Manifest) -> Finding:
    """Time READS point reads of sampled rows, one after the other, and return the finding.

    The worst should fit into the time that a service spends on a request, BUDGET_S.
    """
    latencies_s = list[float]()
    for key in islice(cycle(manifest.sample), READS):
        started = time.perf_counter()
        try:
            await read_one(store, live.ref, key, timeout_s=READ_S)  # like a lookup, which is not paced
        except ReleaseCorrupt:
            continue  # reported as damaged rows
        except StoreError as error:
            sentence = f"a row of {live.id} cannot be read: {error}"
            return Finding(Level.ERROR, "reading", sentence, (StoreUse.SERVING,))
        latencies_s.append(time.perf_counter() - started)
    if not latencies_s:
        return Finding(Level.OK, "reading", f"{live.id} has no sample to read")

    worst_s = max(latencies_s)
    figures = f"{READS} point reads: median {median(latencies_s) * 1e3:,.2f} ms, worst {worst_s * 1e3:,.2f} ms"
    if worst_s <= BUDGET_S:
        return Finding(Level.OK, "reading", figures)
    advice = f"a service spends {BUDGET_S * 1e3:.0f} ms on a request; serve from nearer, or with more --budget"
    return Finding(Level.WARNING, "reading", f"{figures}; {advice}")


async def _room_findings(store: Store, manifest: Manifest) -> list[Finding]:
    draft = DraftRef(ReleaseId(manifest.release), "0" * 12, "")
    try:
        await store.check_room(draft, Plan(manifest.rows, manifest.bytes))
    except StoreError as error:
        return [Finding(Level.WARNING, "room", f"another release like the live one may not fit: {error}")]
    return [Finding(Level.OK, "room", "enough for another release like the live one")]


async def _leftover_findings(store: Store, catalogue: Catalogue) -> list[Finding]:
    """Return findings about what killed processes have left in a store, each with the command that mends it.

    These are drafts whose writer is gone, releases that are being erased, and data that the catalogue does not name.
    """
    sentences = list[str]()
    being_written = ""
    for entry in catalogue.releases:
        if entry.state is State.DROPPING:
            sentences.append(f"{entry.id} is being erased; `hotplate releases prune` finishes that")
        elif entry.state is State.DRAFT and entry.lease_left_s(catalogue.now) > 0:
            being_written = f"; {entry.id} is being written"
        elif entry.state is State.DRAFT:
            grace = f"{DRAFT_GRACE_S / HOUR_S:g} hours after its lease has lapsed"
            advice = f"continue it with --resume; `hotplate releases prune` erases it {grace}"
            sentences.append(f"the writer of the draft {entry.id} is gone; {advice}")

    try:
        unknown = [name for name in await store.incarnations() if name not in catalogue.incarnations]
    except StoreError as error:
        sentences.append(f"the data in the store cannot be listed: {error}")
        unknown = []
    if unknown:
        names = ", ".join(unknown[:NAMED])
        if len(unknown) > NAMED:
            names += f" and {len(unknown) - NAMED} more"
        sentences.append(f"the catalogue does not name the data of {names}; `hotplate releases prune` erases them")

    if not sentences:
        return [Finding(Level.OK, "left over", f"nothing{being_written}")]
    return [Finding(Level.WARNING, "left over", sentence) for sentence in sentences]


@dataclass(frozen=True, slots=True)
class FoundRelease:
    """A sealed release, why it was refused, and the error of `verify` or `read_servable` as *damage*."""

    ref: ReleaseRef
    manifest: Manifest
    refused_by: tuple[str, ...] = ()
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """The contents of a store without a readable catalogue.

    *releases* are in the order of writing; of two with one id, the later one is used. *others* has the reasons why
    incarnations are not used. *record* is the unreadable catalogue, if any. *now* is the store's clock.
    """

    releases: tuple[FoundRelease, ...]
    others: dict[str, str]
    erasures: ErasureLog
    record: bytes | None
    now: float

    @property
    def candidates(self) -> dict[ReleaseId, FoundRelease]:
        """Releases that may become live, by id."""
        return {release.ref.id: release for release in self.releases}

    def only(self) -> ReleaseId:
        """Return the only release; StoreMisused if there are several."""
        if len(self.candidates) == 1:
            return self.releases[0].ref.id
        raise StoreMisused(
            f"the store holds {len(self.candidates)} releases; say with --live ID which one is to be live"
        )

    def find(self, release: ReleaseId) -> FoundRelease:
        """Return a candidate; ReleaseNotFound, with all ids, if it is unknown."""
        if (candidate := self.candidates.get(release)) is None:
            raise ReleaseNotFound(f"release {release} is not in this store; it holds {', '.join(self.candidates)}")
        return candidate


async def survey(
    store: Store, wanted: ReleaseId | None = None, on_progress: OnRowsRead = lambda _release, _done, _total: None
) -> Survey:
    """Find the sealed releases and the erased users in a store whose catalogue is lost or damaged.

    All rows of the releases are read. *on_progress* gets a release, and its rows read and in all. Raises
    ReleaseConflict if the catalogue can be read; ReleaseNotFound without any sealed release, or without the *wanted*
    one.
    """
    record, now = await _unreadable_record(store)
    result = await find_releases(store, record, now)
    if wanted is not None:
        result.find(wanted)  # before the rows are read, which takes long

    erased = result.erasures.users
    examined = list[FoundRelease]()
    for release in result.releases:
        examined.append(await _examine_rows(store, release, erased, on_progress=on_progress))
    # By age; of two incarnations of one release, the intact one is last, as the last becomes the candidate.
    examined.sort(key=lambda release: (release.manifest.created_at, release.damage is None))
    return replace(result, releases=tuple(examined))


async def find_releases(store: Store, record: bytes | None, now: float) -> Survey:
    """Return the survey of a store, before the rows of its releases are read; *record* and *now* become its fields.

    An incarnation is the unique name of one write of a release, by which its data are stored. Raises ReleaseNotFound
    without any sealed release.
    """
    releases = list[FoundRelease]()
    others = dict[str, str]()
    refusals = await read_refusals(store)
    log = await read_log(store)

    for incarnation in await store.incarnations():
        try:
            manifest = await _load_manifest(store, incarnation)
        except (ReleaseNotFound, ReleaseCorrupt) as error:
            others[incarnation] = str(error)
        else:
            refused_by = refusals.get(incarnation, manifest.refused_by)
            releases.append(FoundRelease(ReleaseRef(manifest.release, incarnation), manifest, refused_by))

    if not releases:
        drafts = f"; {len(others)} drafts or damaged releases cannot be used" if others else ""
        raise ReleaseNotFound(f"the store holds no sealed release to rebuild a catalogue from{drafts}; publish into it")

    releases.sort(key=lambda release: release.manifest.created_at)
    return Survey(releases=tuple(releases), others=others, erasures=log, record=record, now=now)


async def rebuild(store: Store, survey: Survey, live: ReleaseId, *, force: bool = False) -> Catalogue:
    """Write and return a new catalogue, in which *live* is live and the other releases of *survey* are ready.

    It replaces the lost or damaged catalogue of a store, and records the erased users that *survey* has found.
    Unless *force* is true, raises ReleaseCorrupt if *live* or the record of erased users is damaged, and RefusedByGates
    if its gates or services refused it. Raises ReleaseConflict if another process has written a catalogue since.
    """
    chosen = survey.find(live)
    if not force:
        _check_rebuildable(survey, chosen)
    await store.prepare(chosen.ref)

    rebuilt = Catalogue(releases=tuple(_entries(survey, chosen)), now=survey.now)
    records = list[RecordChange]()
    if survey.erasures.users:
        erased, records = survey.erasures.changes_for(survey.erasures.users)
        rebuilt = replace(rebuilt, erased=erased)

    empty = Catalogue(now=survey.now)
    records += await changes_beside(store, empty, rebuilt)
    new = changes.succeed(empty, rebuilt, token=secrets.token_hex(8), store_id=secrets.token_hex(8))

    replaced: Catalogue | bytes = Catalogue()
    if survey.record is not None:
        replaced = survey.record
    try:
        await store.swap(replaced, new, records)
    except (ReleaseConflict, StoreUnavailable):
        if await _read_token(store) != new.token:  # otherwise only the reply was lost
            raise

    for release in new.served:
        changed = f"release {release.id} is live in the new catalogue; that it can be served is not sure"
        with failure_as_warning(changed):
            await store.prepare(release)  # a node of a cluster may have lost it meanwhile
    if new.erased is not None:
        for entry in new.releases:  # some may have been drafts, which `erase_users` does not search
            with failure_as_warning(f"release {entry.id} was to be searched for rows of erased users"):
                await clear_erased(store, entry.ref)
    return new


def _check_rebuildable(survey: Survey, live: FoundRelease) -> None:
    """Raise ReleaseCorrupt or RefusedByGates if *live* should not be live, or erased users would be shown again."""
    advice = "name another release with --live; only if there is none, --force makes it live as it is"
    if live.damage is not None:
        raise ReleaseCorrupt(f"{live.damage}; {advice}")
    if live.refused_by:
        raise RefusedByGates(f"release {live.ref.id} was refused by {', '.join(live.refused_by)}; {advice}")
    if survey.erasures.damage is not None:
        raise ReleaseCorrupt(
            f"{survey.erasures.damage}, so erased users would be shown again; --force rebuilds with those that are "
            f"left: erase the others again"
        )


async def _unreadable_record(store: Store) -> tuple[bytes | None, float]:
    """Return the bytes of an unreadable catalogue, None if there is none, and the time by the store's clock.

    Raises ReleaseConflict if the catalogue can be read, CatalogueUnreadable for one of a newer format.
    """
    try:
        catalogue = await store.catalogue()
    except CatalogueUnreadable as error:
        if error.record is None:
            raise
        return error.record, error.now
    if catalogue.generation:
        raise ReleaseConflict(
            "the catalogue can be read, so there is nothing to rebuild; see `hotplate releases activate`"
        )
    return None, catalogue.now


async def _load_manifest(store: Store, incarnation: str) -> Manifest:
    """Read the manifest of an unnamed incarnation; ReleaseNotFound for a draft, ReleaseCorrupt without a manifest."""
    unnamed = unnamed_release(incarnation)
    if not await store.is_sealed(unnamed):
        raise ReleaseNotFound("a draft that was not finished")
    value = await read_one(store, unnamed, MANIFEST)
    if value is None:
        raise ReleaseCorrupt("a release that has lost its manifest")
    return read_manifest(release_in(value), value)


async def _examine_rows(
    store: Store, release: FoundRelease, erased: ErasedUsers, *, on_progress: OnRowsRead
) -> FoundRelease:
    """Read all rows of a release, and return it with their damage, if any."""
    try:
        await verify(store, release.ref, erased=erased, on_progress=partial(on_progress, release.ref.id))
        await read_servable(store, release.ref, erased=erased)
    except (ReleaseCorrupt, ReleaseNotFound) as error:
        return replace(release, damage=str(error))
    return release


def _entries(survey: Survey, live: FoundRelease) -> list[Release]:
    """Return the entries of the surveyed releases for a new catalogue, *live* last, the others ready.

    Of two releases with one id, the earlier one is withdrawn.
    """
    entries = list[Release]()
    for release in sorted(survey.releases, key=lambda release: release is live):
        entry = Release(
            id=release.ref.id,
            incarnation=release.ref.incarnation,
            state=State.READY,
            created_at=release.manifest.created_at,
            refused_by=release.refused_by,
        )
        if release is live:
            entry = replace(entry, state=State.LIVE, refused_by=())
        elif survey.candidates[release.ref.id] is not release:
            entry = replace(entry, state=State.WITHDRAWN, superseded_at=survey.now, refused_by=())
        entries.append(entry)
    return entries


async def _read_token(store: Store) -> str:
    """Return the catalogue's token; empty if it cannot be read."""
    try:
        return (await store.catalogue()).token
    except StoreError:
        return ""
