"""Writing releases, over any store: begin or take over a draft, put its rows under a lease, verify, commit, go live."""

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
from hotplate.stores.catalogue import LEASE_S, Catalogue, DraftRef, ReleaseId
from hotplate.stores.compression import EncodedRows, encode_rows
from hotplate.stores.encoding import Checksum
from hotplate.stores.errors import (
    HeldBack,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.lifecycle import SWAP_ATTEMPTS, activate, change, drop, scale_down
from hotplate.stores.manifest import Manifest, Tally, compare, describe
from hotplate.stores.parts import ParallelWriters, PartContext, WrittenPart, put_part
from hotplate.stores.store import Diagnosed, Plan, Row, Store
from hotplate.stores.verification import OnProgress, load_manifest, unreported, verify

log = logging.getLogger(__name__)

# How the tokens of writers that copy begin: their drafts hold the rows of another store, and no others.
COPIER = "copy-"

# How the tokens of scheduled runs begin: a store has one at a time, and each goes on with its own draft.
RUNNER = "run-"

# How often a draft that somebody else writes is looked at.
DRAFT_POLL_S = 1.0

# Makes the manifest of a release from the sums over all of its rows.
Finish = Callable[[Tally], Awaitable[Manifest]]

# What a manifest says of its release's origin, or what returns it once all rows are written.
About = dict[str, Any] | Callable[[], Awaitable[dict[str, Any]]]

# Whether a release that was committed goes live, or what decides it then.
GoesLive = bool | Callable[[Manifest], Awaitable[bool]]

# Names the gates that refuse a release whose manifest is written: a draft may be judged again when it is resumed.
RefusedBy = Callable[[Manifest], Awaitable[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The result of one run of a writer.

    *rows* counts the rows that it put, and *skipped* those that an earlier run had put. *seconds* holds the wall time
    of each step that was timed. *held_back* says why the release did not go live, if it should have. *repaired* is true
    if the release existed already, and missing or damaged rows were written again.
    """

    manifest: Manifest
    rows: int
    skipped: int
    seconds: dict[str, float] = field(default_factory=dict)
    held_back: HeldBack | None = None
    repaired: bool = False


async def publish(
    store: Store,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: About,
    encoding: str = "json",
    live: GoesLive = True,
    refused_by: RefusedBy | None = None,
    end_canary: bool = False,
    resume: ReleaseId | DraftRef | None = None,
    others: ParallelWriters | None = None,
    on_progress: OnProgress = unreported,
) -> WriteResult:
    """Write a whole release, check that it adds up, commit it and, unless *live* is false, make it live.

    If another release is the canary, this one stays ready, and the result says so; with *end_canary*, the canary ends.
    *batches* are rows of bodies, as `hotplate.stores.encoding` makes them of lists, and `meta` rows of any bytes;
    *plan* counts keys and lists. They are stored in *encoding*. Readers see nothing before the last step. A failure or
    an interrupt gives the draft up at once. A killed process, or a store that is away, leaves the draft: *resume*
    continues it if it is given the same rows, and does not put acknowledged rows again. It works until the first
    `prune` after the draft's lease has ended. If *resume* is a DraftRef, the caller is its writer, and an interrupt
    leaves the draft, too. *about* goes into the manifest; it is not asked for if a resumed draft has its manifest
    already. *others* write the rows that are not among *batches*, after those, and *plan* counts theirs, too.
    *refused_by* names the gates that refuse the release; by default they are those of its manifest. *on_progress* is
    called with (lists written, lists in all).

    Raises ReleaseConflict if *resume* is not a draft, has a writer, or was begun with other rows; StoreMisused for a
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
    result = await write(store, draft, encode, finish=finish, others=others, refused_by=refused_by)
    if live if isinstance(live, bool) else await live(result.manifest):
        return await go_live(store, result, end_canary=end_canary)
    await scale_down(store, draft.release)
    return result


async def go_live(
    store: Store, result: WriteResult, *, end_canary: bool = False, though_refused: bool = False
) -> WriteResult:
    """Make live what was written; if a canary or its gates hold it back, it stays ready, and the result says so."""
    release, started = result.manifest.release, time.perf_counter()
    try:
        await activate(store, release, end_canary=end_canary, though_refused=though_refused)
    except HeldBack as error:
        await scale_down(store, (await store.catalogue()).find(release).ref)
        return replace(result, held_back=error)
    return replace(result, seconds=result.seconds | {"activate": time.perf_counter() - started})


async def begin(store: Store, release: ReleaseId, *, repairs: str | None = None, copies: bool = False) -> DraftRef:
    """Begin a draft under an id that was given elsewhere; ReleaseConflict if the store has that id already."""
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
        left_s = entry.lease_left_s(found.now)
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
    async with store.taking_over(draft) if isinstance(store, Diagnosed) else nullcontext():
        await change(store, partial(changes.take_over, draft=draft))


async def write(
    store: Store,
    draft: DraftRef,
    encode: Callable[[], Awaitable[EncodedRows]],
    *,
    finish: Finish,
    prepare: bool = False,
    others: ParallelWriters | None = None,
    refused_by: RefusedBy | None = None,
    check_same: Finish | None = None,
) -> WriteResult:
    """Write or continue a draft, under a lease, up to its commit; with *prepare*, fit to be live at once.

    *check_same* holds the rows against a manifest that an earlier run has written, if they may differ from it.
    """
    try:
        async with lease(store, draft) as check_lease:
            encoded = await encode()
            check_lease()
            manifest = await _claim(store, draft, encoded.plan)
            written = await _put_all(store, draft, encoded, others, check_lease, puts=manifest is None)
            if manifest is None:
                manifest = await finish(written.tally)
                await store.put(draft, [manifest.key_row])
            elif check_same is not None:
                await check_same(written.tally)
            else:
                _check_same(manifest, written.tally)
            result = WriteResult(manifest, written.rows, written.tally.rows - written.rows)
            await store.seal(draft)
            await _verify(store, draft, result)
            if prepare:
                await store.prepare(draft.release)
            refusing = manifest.refused_by if refused_by is None else await refused_by(manifest)
            check_lease()
            await change(store, lambda found: changes.commit(found, draft, refusing))
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
    others: ParallelWriters | None,
    check_lease: Callable[[], None],
    *,
    puts: bool,
) -> WrittenPart:
    """Put the rows of all parts, or, unless *puts*, only sum them up."""
    written = await put_part(store, draft, encoded.batches, check=check_lease, puts=puts)
    if others is None:
        return written
    by_them = await others.write(PartContext(draft, encoded.dictionary, puts))
    written.tally.merge(by_them.tally)
    return WrittenPart(written.tally, written.rows + by_them.rows)


def _check_same(manifest: Manifest, tally: Tally) -> None:
    """Hold rows against the manifest of what was written before; _Refused if they are others."""
    try:
        compare(manifest, tally)
    except ReleaseCorrupt as error:
        raise _Refused(
            f"these are other lists than release {manifest.release} was begun with; publish them as a new release"
        ) from error


async def _reported(batches: AsyncIterator[list[Row]], total: int, on_progress: OnProgress) -> AsyncIterator[list[Row]]:
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
            await drop(store, draft.release)
    except StoreError:
        return  # unreachable, committed, or another's by now: the lease decides
