"""The doctor: checks whether a store can be served from and published to."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

from hotplate.stores.catalogue import Catalogue, DraftRef, Release, ReleaseId, State
from hotplate.stores.errors import ReleaseCorrupt, StoreError
from hotplate.stores.lifecycle import check_nothing_to_rebuild
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Diagnosed, Finding, Level, Plan, Store, read_one
from hotplate.stores.verification import named, read_servable

MAX_SKEW_S = 2.0
READS = 20
# The service's default time budget for reads.
BUDGET_S = 0.05
NAMED = 5


async def examine(store: Store, clock: Callable[[], float] = time.time) -> list[Finding]:
    """Examine a store without changes; never raises StoreError."""
    findings = [Finding(Level.OK, "version", f"hotplate {version('hotplate')}"), *await _own_findings(store)]
    before = clock()
    try:
        catalogue = await store.catalogue()
        if not catalogue.generation:
            await check_nothing_to_rebuild(store)
    except StoreError as error:
        if not any(str(error) in each.sentence for each in findings):
            findings.append(Finding(Level.ERROR, "catalogue", str(error)))
        return findings
    sentence = f"generation {catalogue.generation:,}, releases: {len(catalogue.releases):,}"
    findings += [_clock(catalogue, before, clock()), Finding(Level.OK, "catalogue", sentence)]
    return [*findings, *await _live(store, catalogue), *await _left_over(store, catalogue)]


async def _own_findings(store: Store) -> list[Finding]:
    try:
        return await store.examine() if isinstance(store, Diagnosed) else []
    except StoreError as error:
        return [Finding(Level.ERROR, "set-up", f"it cannot be examined: {error}")]


def _clock(catalogue: Catalogue, before: float, after: float) -> Finding:
    ahead_s = catalogue.now - (before + after) / 2
    if abs(ahead_s) <= MAX_SKEW_S + (after - before) / 2:
        return Finding(Level.OK, "clock", f"it differs from ours by {abs(ahead_s):.1f} s")
    side = "ahead of" if ahead_s > 0 else "behind"
    sentence = f"it is {abs(ahead_s):,.1f} s {side} ours, and leases and grace depend on it; set both by NTP"
    return Finding(Level.WARNING, "clock", sentence)


async def _live(store: Store, catalogue: Catalogue) -> list[Finding]:
    live, canary = catalogue.live_entry, catalogue.canary_entry
    if live is None:
        sentence = "nothing is live, so a service has no lists; publish, or activate a release"
        return [Finding(Level.WARNING, "live", sentence)]
    findings, manifest = await _served(store, live, "live")
    if canary is not None:
        findings += (await _served(store, canary, "canary"))[0]
    if manifest is None:
        return findings
    return [*findings, await _reads(store, live, manifest), *await _room(store, manifest)]


async def _served(store: Store, entry: Release, subject: str) -> tuple[list[Finding], Manifest | None]:
    try:
        found = await read_servable(store, entry.ref)
    except StoreError as error:
        sentence = f"{entry.id} is {subject} and cannot be read: {error}; `hotplate releases verify` says more"
        return [Finding(Level.ERROR, subject, sentence)], None
    since = entry.live_since and f", live since {datetime.fromtimestamp(entry.live_since, UTC):%Y-%m-%d %H:%M:%S}Z"
    size = f"{found.manifest.rows:,} rows, {found.manifest.bytes / 1e6:,.1f} MB"
    findings = [Finding(Level.OK, subject, f"{entry.id}{since or ''}: {size}")]
    if found.damaged:
        findings.append(Finding(Level.ERROR, "rows", f"of {entry.id}, rows are missing or {named(found.damaged)}"))
    return findings, found.manifest


async def _reads(store: Store, live: Release, manifest: Manifest) -> Finding:
    taken = list[float]()
    for number in range(READS if manifest.sample else 0):
        started = time.perf_counter()
        try:
            await read_one(store, live.ref, manifest.sample[number % len(manifest.sample)])
        except ReleaseCorrupt:
            continue  # reported as damaged rows
        except StoreError as error:
            return Finding(Level.ERROR, "reading", f"a row of {live.id} cannot be read: {error}")
        taken.append(time.perf_counter() - started)
    if not taken:
        return Finding(Level.OK, "reading", f"{live.id} has no sample to read")
    figures = f"{READS} point reads: median {median(taken) * 1e3:,.2f} ms, worst {max(taken) * 1e3:,.2f} ms"
    if max(taken) <= BUDGET_S:
        return Finding(Level.OK, "reading", figures)
    advice = f"a service spends {BUDGET_S * 1e3:.0f} ms on a request; serve from nearer, or with more --budget"
    return Finding(Level.WARNING, "reading", f"{figures}; {advice}")


async def _room(store: Store, manifest: Manifest) -> list[Finding]:
    if not isinstance(store, Diagnosed):
        return []
    draft = DraftRef(ReleaseId(manifest.release), "0" * 12, "")
    try:
        await store.check_room(draft, Plan(manifest.rows, manifest.bytes))
    except StoreError as error:
        return [Finding(Level.WARNING, "room", f"another release like the live one may not fit: {error}")]
    return [Finding(Level.OK, "room", "enough for another release like the live one")]


async def _left_over(store: Store, catalogue: Catalogue) -> list[Finding]:
    sentences, writing = list[str](), ""
    for entry in catalogue.releases:
        if entry.state is State.DROPPING:
            sentences.append(f"{entry.id} is being erased; `hotplate releases prune` finishes that")
        elif entry.state is State.DRAFT and entry.lease_left_s(catalogue.now) > 0:
            writing = f"; {entry.id} is being written"
        elif entry.state is State.DRAFT:
            advice = "continue it with --resume, or let `hotplate releases prune` erase it"
            sentences.append(f"the writer of the draft {entry.id} is gone; {advice}")
    try:
        strangers = [name for name in await store.incarnations() if name not in catalogue.incarnations]
    except StoreError as error:
        sentences.append(f"the data in the store cannot be listed: {error}")
        strangers = []
    if strangers:
        listed = ", ".join(strangers[:NAMED]) + (f" and {len(strangers) - NAMED} more" if strangers[NAMED:] else "")
        sentences.append(f"the catalogue does not name the data of {listed}; `hotplate releases prune` erases them")
    if not sentences:
        return [Finding(Level.OK, "left over", f"nothing{writing}")]
    return [Finding(Level.WARNING, "left over", sentence) for sentence in sentences]
