"""The doctor: checks whether a store can be served from and published to."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median

from hotplate.stores.catalogue import LEASE_S, Catalogue, DraftRef, Release, ReleaseId, State
from hotplate.stores.errors import ReleaseCorrupt, StoreError, StoreFull
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
    except StoreError as error:
        if not any(str(error) in each.sentence for each in findings):
            findings.append(Finding(Level.ERROR, "catalogue", str(error)))
        return findings
    record = await _record(store, catalogue)
    findings += [_clock(catalogue, before, clock()), record]
    if record.level is Level.ERROR:
        return findings
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


async def _record(store: Store, catalogue: Catalogue) -> Finding:
    if catalogue.generation:
        sentence = f"generation {catalogue.generation:,}, {_count(len(catalogue.releases), 'release')}"
        return Finding(Level.OK, "catalogue", sentence)
    try:
        await check_nothing_to_rebuild(store)
    except StoreError as error:
        return Finding(Level.ERROR, "catalogue", str(error))
    return Finding(Level.OK, "catalogue", "the first publish makes it")


async def _live(store: Store, catalogue: Catalogue) -> list[Finding]:
    live, canary = catalogue.live_entry, catalogue.canary_entry
    if live is None:
        sentence = "nothing is live, so a service has no lists; publish, or activate a release"
        return [Finding(Level.WARNING, "live", sentence)]
    findings, manifest = await _served(store, live, "live", f", {_since(live)}")
    if canary is not None:
        findings += (await _served(store, canary, "canary", ""))[0]
    if manifest is None:
        return findings
    return [*findings, await _reads(store, live, manifest), *await _room(store, manifest)]


async def _served(store: Store, entry: Release, subject: str, since: str) -> tuple[list[Finding], Manifest | None]:
    try:
        found = await read_servable(store, entry.ref)
    except StoreError as error:
        sentence = f"{entry.id} is {subject} and cannot be read: {error}; `hotplate releases verify` says more"
        return [Finding(Level.ERROR, subject, sentence)], None
    size = f"{found.manifest.rows:,} rows, {found.manifest.bytes / 1e6:,.1f} MB"
    findings = [Finding(Level.OK, subject, f"{entry.id}{since}: {size}")]
    if found.damaged:
        findings.append(Finding(Level.ERROR, "rows", f"of {entry.id}, rows are missing or {named(found.damaged)}"))
    return findings, found.manifest


def _since(live: Release) -> str:
    return f"begun {_time(live.created_at)}" if live.live_since is None else f"live since {_time(live.live_since)}"


async def _reads(store: Store, live: Release, manifest: Manifest) -> Finding:
    keys = manifest.sample
    taken = list[float]()
    for number in range(READS if keys else 0):
        started = time.perf_counter()
        try:
            await read_one(store, live.ref, keys[number % len(keys)])
        except ReleaseCorrupt:
            continue  # reported as damaged rows
        except StoreError as error:
            return Finding(Level.ERROR, "reading", f"a row of {live.id} cannot be read: {error}")
        taken.append(time.perf_counter() - started)
    if not taken:
        return Finding(Level.OK, "reading", f"{live.id} names no sample to read")
    figures = f"{READS} point reads: median {median(taken) * 1e3:,.2f} ms, worst {max(taken) * 1e3:,.2f} ms"
    if max(taken) <= BUDGET_S:
        return Finding(Level.OK, "reading", figures)
    sentence = f"{figures}, and the service spends {BUDGET_S * 1e3:.0f} ms on a request; serve from nearer to the store"
    return Finding(Level.WARNING, "reading", f"{sentence}, or with more --budget")


async def _room(store: Store, manifest: Manifest) -> list[Finding]:
    if not isinstance(store, Diagnosed):
        return []
    draft = DraftRef(ReleaseId(manifest.release), "0" * 12, "")
    try:
        await store.check_room(draft, Plan(manifest.rows, manifest.bytes))
    except StoreFull as error:
        return [Finding(Level.WARNING, "room", f"none for another release like the live one: {error}")]
    except StoreError as error:
        return [Finding(Level.WARNING, "room", f"it is not known whether another release fits: {error}")]
    return [Finding(Level.OK, "room", "enough for another release like the live one")]


async def _left_over(store: Store, catalogue: Catalogue) -> list[Finding]:
    findings = list[Finding]()
    for entry in catalogue.releases:
        if entry.state is State.DROPPING:
            sentence = f"{entry.id} is being erased; `hotplate releases prune` finishes that"
            findings.append(Finding(Level.WARNING, "left over", sentence))
        elif entry.state is State.DRAFT:
            lapsed_s = catalogue.now - (entry.lease_until or 0.0)
            if entry.lease_left_s(catalogue.now) > 0:
                findings.append(Finding(Level.OK, "left over", f"nothing; {entry.id} is being written"))
                continue
            heard = f"was last heard of {lapsed_s + LEASE_S:,.0f} s ago"
            if lapsed_s < 0:
                heard = f"left a lease that ends {-lapsed_s:,.0f} s from now, so the store's clock was set back"
            sentence = f"the writer of the draft {entry.id} {heard}; "
            advice = "continue it with --resume, or let `hotplate releases prune` erase it"
            findings.append(Finding(Level.WARNING, "left over", sentence + advice))
    try:
        found = await store.incarnations()
    except StoreError as error:
        return [*findings, Finding(Level.WARNING, "left over", f"the data in the store cannot be listed: {error}")]
    if strangers := [name for name in found if name not in catalogue.incarnations]:
        named = ", ".join(strangers[:NAMED]) + (f" and {len(strangers) - NAMED} more" if strangers[NAMED:] else "")
        sentence = f"the data of {named}, which the catalogue does not name; `hotplate releases prune` erases them"
        findings.append(Finding(Level.WARNING, "left over", sentence))
    return findings or [Finding(Level.OK, "left over", "nothing")]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}Z"
