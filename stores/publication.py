"""Writing releases, over any store: begin or take over a draft, put its rows under a lease, verify, commit, go live.

The writer that begins a draft writes part 0, and commits the draft. Other processes, on any machine, may write further
parts, numbered from 1, with the token of the draft's writer. The rows of a part are the same for each writer and each
attempt, so a second attempt, even beside the first, continues after the last acknowledged row. The sums over the parts
add up to those over the release, in any order, and are all that the other processes return.

A store has one scheduled run at a time. A run has chosen the id of its release before anything is written, and each of
its attempts goes on with its draft: the tokens of all of them begin with the id of the run.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import LEASE_S, Catalogue, DraftRef, Release, ReleaseId, State
from hotplate.stores.compression import EncodedRows, Encoder, encode_rows
from hotplate.stores.connect import connect
from hotplate.stores.encoding import Checksum
from hotplate.stores.erasure import erased_from
from hotplate.stores.errors import (
    HeldBack,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.keys import META
from hotplate.stores.lifecycle import SWAP_ATTEMPTS, activate, change, drop, scale_down
from hotplate.stores.manifest import Manifest, Tally, compare, describe
from hotplate.stores.store import Diagnosed, Plan, Row, Store
from hotplate.stores.verification import OnProgress, load_manifest, unreported, verify

log = logging.getLogger(__name__)

# How the tokens of writers that copy begin: their drafts hold the rows of another store, and no others.
COPIER = "copy-"

# How the tokens of scheduled runs begin: a store has one at a time, and each goes on with its own draft.
RUNNER = "run-"

# How often a draft that somebody else writes is looked at.
DRAFT_POLL_S = 1.0

# How long a store may take to be closed whose lease was held; one that never answers is left to end with the process.
_CLOSE_S = 3.0

# Makes the manifest of a release from the sums over all of its rows.
Finish = Callable[[Tally], Awaitable[Manifest]]

# What a manifest says of its release's origin, or what returns it once all rows are written.
About = dict[str, Any] | Callable[[], Awaitable[dict[str, Any]]]

# Whether a release that was committed goes live, or what decides it then.
GoesLive = bool | Callable[[Manifest], Awaitable[bool]]

# Names the gates that refuse a release whose manifest is written: a draft may be judged again when it is resumed.
RefusedBy = Callable[[Manifest], Awaitable[tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class PartContext:
    """What the writers of parts have to know of their draft; it goes to other processes.

    *dictionary* is that of the draft's encoding, None for lists that are not compressed. Where *puts* is false rows
    are only summed up, for all were written before.
    """

    draft: DraftRef
    dictionary: bytes | None
    puts: bool = True


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """The sums over all rows of a part, or of several, and how many of them were put just now."""

    tally: Tally
    rows: int


@dataclass(frozen=True, slots=True)
class ParallelWriters:
    """Who writes most of a draft: *write* has the parts from 1 on written, and returns what they add up to.

    *sample* are rows of bodies like theirs, to learn a dictionary from.
    """

    sample: Sequence[Row]
    write: Callable[[PartContext], Awaitable[WrittenPart]]


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


async def put_part(
    store: Store,
    draft: DraftRef,
    batches: AsyncIterable[Sequence[Row]],
    part: int = 0,
    check: Callable[[], None] = lambda: None,
    *,
    puts: bool = True,
) -> WrittenPart:
    """Put the rows of a part, those aside that were acknowledged before, or, unless *puts*, only sum them up.

    Rows of erased users are left out. *check* is called before each batch.
    """
    erased = await erased_from(store)
    point = await store.resume_point(draft, part) if puts else None
    tally = Tally()
    put = 0
    async for batch in batches:
        check()
        if erased:
            batch = [row for row in batch if not erased.covers(row.key)]  # noqa: PLW2901 -- the rest of it
        if puts:
            fresh, point = _after(point, batch)
            if fresh:
                await store.put(draft, fresh, part)
            put += len(fresh)
        tally.add(batch)
        await asyncio.sleep(0)  # the lease is renewed even if neither rows nor store ever wait
    return WrittenPart(tally, put)


async def write_part(
    store: Store, context: PartContext, part: int, bodies: AsyncIterable[Sequence[Row]]
) -> WrittenPart:
    """Encode *bodies* as the other parts are, and put them as one; raises StoreError as `Store.put` does."""
    encoder = Encoder(Checksum(context.draft.id), context.dictionary)
    batches = (encoder.rows(rows) async for rows in bodies)
    return await put_part(store, context.draft, batches, part, puts=context.puts)


def _after(point: str | None, rows: Sequence[Row]) -> tuple[Sequence[Row], str | None]:
    """Return the rows that come after the resume point, and the point as long as it lies further on.

    Puts are acknowledged in the order of the rows, so what comes before the point, `meta` rows too, is written.
    """
    if point is None:
        return rows, None
    last = point.encode()
    for index, (key, _) in enumerate(rows):
        if not key.startswith(META) and (raw := key.encode()) >= last:
            return rows[index + (raw == last) :], None
    return (), point


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


async def claim(store: Store, run: str, release: ReleaseId, wait_s: float = 0.0) -> DraftRef | None:
    """Become the writer of the *release* of *run*: begin it, or go on with the draft that an earlier attempt has left.

    None if it is committed. No earlier attempt may live, because its lease is not waited for. Raises ReleaseConflict if
    another run has a draft under a lease for *wait_s* seconds.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + wait_s
    writer = f"{_writer(run)}{secrets.token_hex(4)}"

    def step(found: Catalogue) -> Catalogue:
        _check_others(found, run)
        entry = _entry_of(found, run, release)
        if entry is None:
            return changes.begin(found, DraftRef(release, secrets.token_hex(6), writer))
        if entry.state is not State.DRAFT or entry.writer == writer:
            return found
        if entry.writer.startswith(_writer(run)):
            found = changes.end_lease(found, DraftRef(entry.id, entry.incarnation, entry.writer))
        return changes.take_over(found, DraftRef(entry.id, entry.incarnation, writer))

    while True:
        try:
            entry = _entry_of(await change(store, step), run, release)
        except ReleaseConflict:
            if loop.time() >= give_up_at:
                raise
            await asyncio.sleep(min(DRAFT_POLL_S, give_up_at - loop.time()))
        else:
            is_draft = entry is not None and entry.state is State.DRAFT
            return DraftRef(entry.id, entry.incarnation, writer) if entry is not None and is_draft else None


async def give_up(store: Store, run: str, release: ReleaseId) -> None:
    """Drop the draft of a run that will not be continued, if it has left one."""

    def step(found: Catalogue) -> Catalogue:
        entry = _entry_of(found, run, release)
        if entry is None or entry.state is not State.DRAFT:
            return found
        return changes.abandon(found, DraftRef(entry.id, entry.incarnation, entry.writer))

    await change(store, step)


@contextmanager
def held(url: str, draft: DraftRef) -> Iterator[None]:
    """Renew the lease of *draft* in a thread while this one is at other work.

    A lease that is lost all the same, as if the store is away for long, shows when the draft is claimed again.
    """
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def keep() -> None:
        store = connect(url)
        try:
            async with lease(store, draft):
                await done.wait()
        finally:
            with suppress(StoreError):
                await store.close()

    def work() -> None:
        try:
            loop.run_until_complete(keep())
        finally:
            loop.close()

    thread = threading.Thread(target=work, daemon=True)
    try:
        thread.start()
        yield
    finally:
        with suppress(RuntimeError):  # the thread has ended, or an interrupt kept it from starting
            loop.call_soon_threadsafe(done.set)
            thread.join(_CLOSE_S)


def _entry_of(found: Catalogue, run: str, release: ReleaseId) -> Release | None:
    """Return what the catalogue has of the *release* of *run*; ReleaseConflict if somebody else wrote that id."""
    try:
        entry = found.find(release)
    except ReleaseNotFound:
        return None
    if not entry.writer.startswith(RUNNER):
        raise ReleaseConflict(f"release {release} was written by somebody else than run {run}")
    return entry


def _writer(run: str) -> str:
    """Return how the tokens of all attempts of *run* begin."""
    return f"{RUNNER}{run}-"


def _check_others(found: Catalogue, run: str) -> None:
    """Raise ReleaseConflict if another run has a draft under a lease."""
    for entry in found.releases:
        left_s = entry.lease_left_s(found.now)
        is_run = entry.state is State.DRAFT and entry.writer.startswith(RUNNER)
        if is_run and left_s > 0 and not entry.writer.startswith(_writer(run)):
            raise ReleaseConflict(
                f"another run is writing release {entry.id} in this store, and its lease runs for {left_s:.0f} s more; "
                "wait for its end, or give --wait SECONDS"
            )
