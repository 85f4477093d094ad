"""The doctor checks whether a store can be served from and published to."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle, islice
from statistics import median

from hotplate.base.timing import HOUR_S
from hotplate.stores.catalogue import DRAFT_GRACE_S, Catalogue, DraftRef, Release, ReleaseId, State
from hotplate.stores.erasure import ErasedUsers
from hotplate.stores.erasure_log import draft_sentence, erased_from, lost_sentence
from hotplate.stores.errors import HEAL, ReleaseCorrupt, ReleaseNotFound, StoreError
from hotplate.stores.lifecycle import check_nothing_to_rebuild
from hotplate.stores.manifest import Manifest
from hotplate.stores.options import BUDGET_S
from hotplate.stores.store import Finding, Level, Plan, Store, StoreUse, read_one
from hotplate.stores.verification import counted, read_servable

MAX_SKEW_S = 2.0
READS = 20
# Time limit of each.
READ_S = 5.0
NAMED = 5
# Longer ages are shown in days.
DAYS_FROM_HOURS = 48


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
