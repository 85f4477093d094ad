"""The life of releases, written once over any store: begin, write, commit, activate, canary, roll back, prune.

A step is a pure function of `hotplate.stores.catalogue`, applied by compare-and-set until no rival comes first; whether
a swap whose reply was lost was made is settled here, for all stores.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import GRACE_S, LEASE_S, Catalogue, DraftRef, Release, ReleaseId, ReleaseRef, State
from hotplate.stores.compression import EncodedRows, encode_rows
from hotplate.stores.encoding import Checksum
from hotplate.stores.errors import (
    CanaryRunning,
    CatalogueUnreadable,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreMisused,
    StoreUnavailable,
)
from hotplate.stores.manifest import Manifest, Tally, compare, describe
from hotplate.stores.parts import Assignment, OtherWriters, put_part, sum_up
from hotplate.stores.servable import read_servable
from hotplate.stores.store import Plan, ProvisionedStore, Row, Store, WriterLocked
from hotplate.stores.throttle import Backoff
from hotplate.stores.verification import Progress, load_manifest, named, unreported, verify

log = logging.getLogger(__name__)

SWAP_ATTEMPTS = 50

# How many swaps may fail without a clear answer. The second shows whether the first is still on its way: then it loses.
UNCLEAR_SWAPS = 2

# How long the catalogue is tried to be read, to see whether a swap was made whose reply was lost.
SETTLE_S = 5.0

# How the tokens of writers that copy begin: their drafts hold the rows of another store, and no others.
COPIER = "copy-"

# How the tokens of scheduled runs begin: a store has one at a time, and each goes on with its own draft.
RUNNER = "run-"

# How often a draft that somebody else writes is looked at.
DRAFT_POLL_S = 1.0

# The first and the longest pause before a lost race for the catalogue is tried again, in seconds.
SWAP_PAUSES_S = (0.001, 0.1)

# Makes the manifest of a release from the sums over all of its rows.
Finish = Callable[[Tally], Awaitable[Manifest]]

# What a manifest says of its release's origin, or what returns it once all rows are written.
About = dict[str, Any] | Callable[[], Awaitable[dict[str, Any]]]

# Whether a release that was committed goes live, or what decides it then.
GoesLive = bool | Callable[[Manifest], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What one run of a writer wrote: *rows* by this run, *skipped* that an earlier run was acknowledged for.

    *seconds* are wall time by step, of those steps that were timed. *held_back* says why the release stays ready though
    it was to go live. *repaired* is true if it was there before, and rows of it were missing or damaged.
    """

    manifest: Manifest
    rows: int
    skipped: int
    seconds: dict[str, float] = field(default_factory=dict)
    held_back: CanaryRunning | None = None
    repaired: bool = False


async def publish(
    store: Store,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: About,
    encoding: str = "json",
    live: GoesLive = True,
    end_canary: bool = False,
    resume: ReleaseId | DraftRef | None = None,
    others: OtherWriters | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> WriteResult:
    """Write a whole release, check that it adds up, commit it and, unless *live* is false, make it live.

    While another release is the canary it stays ready, and the result says so; with *end_canary*, that ends instead.
    *batches* are rows of bodies, as `hotplate.stores.encoding` makes them of lists, and `meta` rows of any bytes;
    *plan* counts keys and lists. They are stored in *encoding*. Readers see nothing before the last step. A failure or
    an interrupt gives the draft up at once; a killed process, or a store that is away, leaves a draft that *resume*
    continues, given the same rows again, until the next `prune` after its lease has lapsed: what was acknowledged is
    not put again. With a draft to *resume* the caller is its writer; a run's is left by an interrupt, too.
    *about* goes into the manifest; it is not asked for if a resumed draft has its manifest already. *others* write
    the rows that are not among *batches*, after those, and *plan* counts theirs, too. *on_progress* is called with
    (lists written, lists in all).

    Raises ReleaseConflict where *resume* is not a draft, has a writer, or was begun with other rows; StoreMisused for a
    value that is not a body.
    """

    async def finish(tally: Tally) -> Manifest:
        origin = about if isinstance(about, dict) else await about()
        created_at = (await store.catalogue()).now
        return describe(draft.id, tally, created_at=created_at, encoding=encoding, about=origin)

    async def encode() -> EncodedRows:
        sample = () if others is None else others.sample
        encoded = await encode_rows(batches, plan, encoding, Checksum(draft.id), sample)
        return replace(encoded, batches=_reported(encoded.batches, plan.rows, on_progress))

    match resume:
        case None:
            draft = await _begin_under_new_id(store)
        case DraftRef():
            draft = resume
        case _:
            draft = await take_over(store, resume)
    result = await write(store, draft, encode, finish=finish, others=others)
    if live if isinstance(live, bool) else await live(result.manifest):
        return await go_live(store, result, end_canary=end_canary)
    await scale_down(store, draft.release)
    return result


async def go_live(store: Store, result: WriteResult, *, end_canary: bool = False) -> WriteResult:
    """Make live what was written; if the canary holds it back, it stays ready, and the returned result says so."""
    release, started = result.manifest.release, time.perf_counter()
    try:
        await activate(store, release, end_canary=end_canary)
    except CanaryRunning as error:
        await scale_down(store, (await store.catalogue()).find(release).ref)
        return replace(result, held_back=error)
    return replace(result, seconds=result.seconds | {"activate": time.perf_counter() - started})


async def begin(store: Store, release: ReleaseId, *, repairs: str | None = None, copies: bool = False) -> DraftRef:
    """Begin a draft under an id that was given elsewhere; ReleaseConflict where the store has that id already."""
    writer = (COPIER if copies else "") + secrets.token_hex(8)

    def step(found: Catalogue) -> Catalogue:
        return changes.begin(found, DraftRef(release, secrets.token_hex(6), writer), repairs=repairs)

    entry = (await change(store, step)).find_draft(release)
    return DraftRef(entry.id, entry.incarnation, writer)


async def take_over(store: Store, release: ReleaseId) -> DraftRef:
    """Become a draft's writer once its lease has lapsed, which is waited for unless it is renewed.

    Raises ReleaseConflict if it is not a draft any more, or is being written; ReleaseNotFound if it was dropped.
    """
    writer, first_seen = secrets.token_hex(8), None
    while True:
        found = await store.catalogue()
        entry = found.find_draft(release)
        if entry.writer.startswith(COPIER):
            raise ReleaseConflict(f"release {release} is a copy that was cut off; give the same `releases copy` again")
        draft = DraftRef(entry.id, entry.incarnation, writer)
        left_s = (entry.lease_until or 0.0) - found.now
        if left_s <= 0 or (first_seen is not None and entry.lease_until != first_seen):
            await become_writer(store, draft)
            return draft
        if first_seen is None:
            first_seen = entry.lease_until
            log.warning("release %s has a writer; if that is gone, its lease lapses in %.0f s", release, left_s)
        await asyncio.sleep(min(left_s, DRAFT_POLL_S))


async def become_writer(store: Store, draft: DraftRef) -> None:
    """Make the writer of *draft* the one of the catalogue; ReleaseConflict if the writer before may live.

    A store that knows is asked before the swap, because a writer that loses its entry loses its draft, too. It is asked
    only once the lease has lapsed: the lock that it takes for that would refuse a writer that has just begun.
    """
    changes.take_over(await store.catalogue(), draft)
    async with store.taking_over(draft) if isinstance(store, WriterLocked) else nullcontext():
        await change(store, partial(changes.take_over, draft=draft))


async def write(
    store: Store,
    draft: DraftRef,
    encode: Callable[[], Awaitable[EncodedRows]],
    *,
    finish: Finish,
    prepare: bool = False,
    others: OtherWriters | None = None,
) -> WriteResult:
    """Write or continue a draft, under a lease, up to its commit; with *prepare*, fit to be live at once."""
    try:
        async with lease(store, draft) as check_lease:
            encoded = await encode()
            check_lease()
            manifest = await _claim(store, draft, encoded.plan)
            if manifest is None:
                result = await _put_all(store, draft, encoded, others, check_lease, finish=finish)
            else:
                result = await _compare_all(draft, manifest, encoded, others, check_lease)
            await store.seal(draft)
            await _verify(store, draft, result)
            if prepare:
                await store.prepare(draft.release)
            check_lease()
            await change(store, lambda found: changes.commit(found, draft))
    except StoreUnavailable as error:  # what was acknowledged stays
        await _end_lease(store, draft)
        again = draft.writer.startswith((COPIER, RUNNER))
        advice = "give the same command again" if again else f"continue with --resume {draft.id}"
        raise StoreUnavailable(f"{error}; once that is corrected, {advice}") from error
    except _Refused as error:  # what was written stays with its writer
        await _end_lease(store, draft)
        raise ReleaseConflict(str(error)) from error
    except BaseException as error:
        if not (isinstance(error, asyncio.CancelledError) and draft.writer.startswith(RUNNER)):
            await _abandon(store, draft)
        raise
    return result


async def activate(store: Store, release: ReleaseId, *, end_canary: bool = False, force: bool = False) -> None:
    """Make a committed release live, once the store has prepared it.

    Raises CanaryRunning while another release is the canary, unless *end_canary* is true; ReleaseCorrupt for a release
    that cannot be served, unless *force* is true.
    """
    ref = changes.activate(await store.catalogue(), release, end_canary=end_canary).find(release).ref
    await _prepare(store, ref, force=force)
    await change(store, lambda found: changes.activate(found, release, end_canary=end_canary), repeatable=False)
    await scale_up_again(store, ref)


async def _prepare(store: Store, release: ReleaseRef, *, force: bool = False) -> None:
    """Prepare a release to be served, once it was seen that it can be, or with *force*. A few bad rows are logged."""
    if not force:
        try:
            damaged = (await read_servable(store, release)).damaged
        except (ReleaseCorrupt, ReleaseNotFound) as error:
            raise ReleaseCorrupt(
                f"release {release.id} cannot be served, and nothing was changed: {error}; --force overrides this"
            ) from error
        if damaged:
            log.warning("release %s can be served, but is %s", release.id, named(damaged))
    await store.prepare(release)


async def rollback(store: Store, if_live: ReleaseId | None = None, *, force: bool = False) -> ReleaseId:
    """Make the release that was live before the live one live again, and return it. No data moves; a canary ends.

    Raises ReleaseConflict where *if_live* is given and is not live, as when the same was done before; ReleaseCorrupt
    for a release that cannot be served, unless *force* is true.
    """
    seen = await store.catalogue()
    if seen.live is None:
        raise ReleaseNotFound("nothing is live in this store, so there is nothing to roll back")
    expected = if_live or seen.live
    target = changes.rollback(seen, expected).live_ref
    if target is not None:
        await _prepare(store, target, force=force)
    changed = await change(store, lambda found: changes.rollback(found, expected), repeatable=False)
    restored = changed.releases[-1].ref
    await scale_up_again(store, restored)
    return restored.id


async def start_canary(store: Store, release: ReleaseId, percent: float, *, force: bool = False) -> None:
    """Show a committed release to *percent* of the users, once the store has prepared it; or change the share.

    Raises StoreMisused for what is not a share; ReleaseNotFound if this store lacks the release; ReleaseConflict if
    it is no more than a draft, or live, or where another one is the canary; ReleaseCorrupt for a release that cannot be
    served, unless *force* is true.
    """
    if not 0 < percent < 100:
        raise StoreMisused(f"a canary is shown to more than 0 % and less than 100 % of the users, not to {percent:g} %")
    entry = changes.start_canary(await store.catalogue(), release, percent).find(release)
    await _prepare(store, entry.ref, force=force)
    await change(store, lambda found: changes.start_canary(found, release, percent), repeatable=False)
    await scale_up_again(store, entry.ref)


async def promote(store: Store, if_canary: ReleaseId | None = None, *, force: bool = False) -> ReleaseId:
    """Make the canary live, and return it; ReleaseNotFound if there is none.

    Raises ReleaseConflict where *if_canary* is given and is not the canary any more; ReleaseCorrupt for a release that
    cannot be served, unless *force* is true.
    """
    found = await store.catalogue()
    canary = _canary_of(found).ref
    expected = if_canary or canary.id
    changes.promote(found, expected)
    await _prepare(store, canary, force=force)
    await change(store, lambda found: changes.promote(found, expected), repeatable=False)
    await scale_up_again(store, canary)
    return canary.id


async def abort(store: Store, if_canary: ReleaseId | None = None) -> ReleaseId:
    """End the canary, and return it; ReleaseNotFound if there is none.

    Raises ReleaseConflict where *if_canary* is given and is not the canary any more.
    """
    canary = _canary_of(await store.catalogue()).ref
    await change(store, lambda found: changes.abort(found, if_canary or canary.id), repeatable=False)
    await scale_down(store, canary)
    return canary.id


def _canary_of(found: Catalogue) -> Release:
    entry = found.canary_entry
    if entry is None:
        raise ReleaseNotFound("no release is the canary in this store; `hotplate releases canary` starts one")
    return entry


async def prune(
    store: Store,
    *,
    keep: int = 1,
    grace_s: float = GRACE_S,
    keep_ready_s: float | None = None,
    on_progress: Progress = unreported,
) -> list[ReleaseId]:
    """Erase what is no longer needed, including what an earlier prune left unfinished; return what was erased.

    Releases that were never activated stay, or, given *keep_ready_s*, those that were begun since. What is kept but
    no longer read, its grace having passed, is scaled down. *on_progress* is called with (erased, to erase).
    """
    present = await store.incarnations()
    marked = await change(store, lambda found: changes.prune(found, keep, grace_s, keep_ready_s, present))
    dropped = [entry.ref for entry in marked.releases if entry.state is State.DROPPING]
    for number, release in enumerate(dropped):
        on_progress(number, len(dropped))
        await _drop(store, release)
    for entry in marked.releases:
        if entry.state in (State.SUPERSEDED, State.WITHDRAWN) and (entry.superseded_at or 0.0) + grace_s <= marked.now:
            await scale_down(store, entry.ref)
    return [release.id for release in dropped]


async def scale_down(store: Store, release: ReleaseRef) -> None:
    """Let a release that is not read cost as little as it can, if the store can do so."""
    if not isinstance(store, ProvisionedStore):
        return
    if release not in (await store.catalogue()).served:
        with suppress(ReleaseNotFound):  # nothing costs less
            await store.scale_down(release)
    if release in (await store.catalogue()).served:  # it was activated in between
        await store.prepare(release)


async def change(store: Store, step: Callable[[Catalogue], Catalogue], *, repeatable: bool = True) -> Catalogue:
    """Apply a pure function to the catalogue by compare-and-set; a lost race is tried again on what won it.

    A swap that failed without a clear answer may have been made all the same, now or in a moment: then its token is
    what the next read finds, or what the next swap loses against. If others swapped in between, that cannot be seen,
    and *step* is applied again, as each leaves a catalogue as it is that it was applied to. One that is not
    *repeatable*, because it would undo what others did since, raises StoreUnavailable instead.
    CatalogueUnreadable if the catalogue is gone that named the releases of the store.
    """
    backoff = Backoff(*SWAP_PAUSES_S, min_jitter=0.0)
    made = dict[str, Catalogue]()
    unclear = list[StoreUnavailable]()
    unclear_from = ""
    for _ in range(SWAP_ATTEMPTS):
        old = await (_read_back(store, unclear[-1]) if unclear else store.catalogue())
        if old.token in made:
            return made[old.token]
        if len(unclear) == UNCLEAR_SWAPS:
            raise unclear[-1]
        new = step(old)
        if new == old:
            return old
        if not old.generation:
            await check_nothing_to_rebuild(store)
        if unclear and not repeatable and old.token != unclear_from:
            raise _unknown(unclear[-1])
        new = changes.succeed(old, new, token=secrets.token_hex(8), store_id=secrets.token_hex(8))
        made[new.token] = new
        try:
            await store.swap(old, new)
        except ReleaseConflict:
            await asyncio.sleep(backoff.next_s())
        except StoreUnavailable as error:
            unclear.append(error)
            unclear_from = old.token
        else:
            return new
    raise ReleaseConflict(f"the catalogue was changed by others {SWAP_ATTEMPTS} times; try again when it is quieter")


async def check_nothing_to_rebuild(store: Store) -> None:
    """Raise CatalogueUnreadable if a store without a catalogue holds sealed releases: a new one would not name them.

    Then `prune` would erase them.
    """
    for incarnation in await store.incarnations():
        found = await is_sealed(store, ReleaseRef(ReleaseId(f"unknown-{incarnation}"), incarnation))
        if found and not (await store.catalogue()).generation:  # otherwise somebody else published first
            raise CatalogueUnreadable(
                "the store holds releases, but its catalogue is gone; `hotplate store rebuild` writes a new one from "
                "them, and nothing was changed"
            )


async def is_sealed(store: Store, release: ReleaseRef) -> bool:
    """Return whether what the store holds of an incarnation was sealed, however damaged it may be by now."""
    try:
        async for _ in store.scan(release):
            break
    except ReleaseNotFound:
        return False
    except ReleaseCorrupt:
        return True
    return True


async def _read_back(store: Store, unclear: StoreUnavailable) -> Catalogue:
    """Read the catalogue after a swap whose outcome is unclear; raises *unclear* if that fails for SETTLE_S."""
    backoff, loop = Backoff(0.05, 1.0), asyncio.get_running_loop()
    give_up_at = loop.time() + SETTLE_S
    while True:
        try:
            return await store.catalogue()
        except StoreUnavailable as error:
            if loop.time() >= give_up_at:
                raise _unknown(unclear) from error
        await asyncio.sleep(backoff.next_s())


def _unknown(unclear: StoreUnavailable) -> StoreUnavailable:
    return StoreUnavailable(f"{unclear}; whether the catalogue was changed is not known: see `hotplate releases list`")


async def new_id(store: Store) -> ReleaseId:
    """Return an id for a release that is begun now, by the store's clock."""
    started = datetime.fromtimestamp((await store.catalogue()).now, UTC)
    return ReleaseId(f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")


async def _begin_under_new_id(store: Store) -> DraftRef:
    for _ in range(SWAP_ATTEMPTS):
        try:
            return await begin(store, await new_id(store))
        except ReleaseConflict:
            continue  # the same second and the same four digits: draw again
    raise ReleaseConflict("no free release id was found; does the store's clock stand still?")


async def scale_up_again(store: Store, release: ReleaseRef) -> None:
    """Prepare a release once more, now that it is live: a prune may have scaled it down just before the swap."""
    if isinstance(store, ProvisionedStore):
        await store.prepare(release)


class _Refused(ReleaseConflict):
    """A draft may not be written: it was begun with other rows, or its writer before lives. It stays as it is."""


async def _claim(store: Store, draft: DraftRef, plan: Plan) -> Manifest | None:
    """Claim a draft in the store; return its manifest if an earlier run came so far, because that is put last."""
    try:
        await store.create(draft, plan)
    except ReleaseConflict as conflict:
        try:
            return await load_manifest(store, draft.release)  # sealed
        except (ReleaseNotFound, ReleaseCorrupt):  # not sealed, and so without a manifest
            raise _Refused(str(conflict)) from conflict
    try:
        return await load_manifest(store, draft.release)
    except (ReleaseNotFound, ReleaseCorrupt):  # the ordinary case: it is not written yet
        return None


async def _verify(store: Store, draft: DraftRef, result: WriteResult) -> None:
    """Verify what was written; ReleaseConflict if it does not add up to what another run had written before."""
    try:
        await verify(store, draft.release)
    except ReleaseCorrupt as error:
        if not result.skipped or draft.writer.startswith(COPIER):
            raise
        raise ReleaseConflict(
            f"release {draft.id} was begun with other lists than these, or the store has lost rows of it; it is given "
            f"up: publish them as a new release"
        ) from error


async def _put_all(
    store: Store,
    draft: DraftRef,
    encoded: EncodedRows,
    others: OtherWriters | None,
    check_lease: Callable[[], None],
    *,
    finish: Finish,
) -> WriteResult:
    written = await put_part(store, draft, encoded.batches, check=check_lease)
    tally, rows = written.tally, written.rows
    if others is not None:
        by_them = await others.write(Assignment(draft, encoded.dictionary))
        tally.merge(by_them.tally)
        rows += by_them.rows
    manifest = await finish(tally)
    await store.put(draft, [manifest.key_row])
    return WriteResult(manifest, rows, tally.rows - rows)


async def _compare_all(
    draft: DraftRef,
    manifest: Manifest,
    encoded: EncodedRows,
    others: OtherWriters | None,
    check_lease: Callable[[], None],
) -> WriteResult:
    """Hold rows against the manifest of what was written before; nothing is put."""
    tally = (await sum_up(encoded.batches, check_lease)).tally
    if others is not None:
        tally.merge((await others.write(Assignment(draft, encoded.dictionary, puts=False))).tally)
    try:
        compare(manifest, tally)
    except ReleaseCorrupt as error:
        raise _Refused(
            f"these are other lists than release {draft.id} was begun with; publish them as a new release"
        ) from error
    return WriteResult(manifest, 0, manifest.rows)


async def _reported(
    batches: AsyncIterator[list[Row]], total: int, on_progress: Callable[[int, int], None]
) -> AsyncIterator[list[Row]]:
    """Yield *batches*, and report how many of *total* lists are done each time that the next is wanted."""
    done = 0
    async for rows in batches:
        yield rows
        done += len(rows)
        on_progress(min(done, total), total)  # a dictionary is a row, but not a list


@asynccontextmanager
async def lease(store: Store, draft: DraftRef) -> AsyncIterator[Callable[[], None]]:
    """Renew a draft's lease in the background; the yielded function raises once the draft is gone or taken over."""

    async def renew() -> None:
        lapses_in = LEASE_S
        while True:
            await asyncio.sleep(min(LEASE_S, lapses_in) / 3)
            try:
                await change(store, lambda found: changes.renew(found, draft))
                lapses_in = LEASE_S
            except StoreUnavailable:
                lapses_in *= 2 / 3
                if lapses_in < 1.0:
                    raise

    renewal = asyncio.create_task(renew())

    def check() -> None:
        if renewal.done():
            renewal.result()

    try:
        yield check
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)  # `check` raised what it raised


async def _end_lease(store: Store, draft: DraftRef) -> None:
    with suppress(StoreError):  # the store is away: the lease will lapse
        await change(store, lambda found: changes.end_lease(found, draft))


async def _abandon(store: Store, draft: DraftRef) -> None:
    """Give up a draft as well as can be; the cause of the failure is what the caller should see."""
    try:
        try:
            await change(store, lambda found: changes.abandon(found, draft))
        except ReleaseNotFound:
            await store.erase(draft.release)  # dropped by others: what was put since belongs to no writer
        else:
            await _drop(store, draft.release)
    except StoreError:
        return  # unreachable, committed, or another's by now: the lease decides


async def _drop(store: Store, release: ReleaseRef) -> None:
    """Erase a release that the catalogue calls `dropping`, and take it out of the record.

    One that it calls so no longer stays: others dropped it, or the store was put back to an older copy.
    """
    entry = (await store.catalogue()).entry(release.incarnation)
    if entry is None or entry.state is not State.DROPPING:
        return
    await store.erase(release)
    await change(store, lambda found: changes.forget(found, release))
