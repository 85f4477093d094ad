"""Writing releases to any store.

A draft is a release being written. Its writer, known by a random token, begins it, writes part 0 and commits it, and
renews its lease until then; other processes may write parts numbered from 1 with the same token. A lapsed draft can be
resumed: the rows of a part are the same in each attempt, so any attempt continues after the last acknowledged row, and
puts only `meta` rows again.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Any

from hotplate.base.timing import loop_time
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import LEASE_S, Arm, Catalogue, DraftRef, Erased, ReleaseId
from hotplate.stores.compression import EncodedRows, Encoder, encode_rows
from hotplate.stores.concurrency import end_tasks
from hotplate.stores.encoding import META, Checksum
from hotplate.stores.erasure_log import erased_from, lost_sentence
from hotplate.stores.errors import (
    AccessDenied,
    HeldBack,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.lifecycle import Override, activate, drop, scale_down, update_catalogue
from hotplate.stores.manifest import Manifest, Tally, compare, describe
from hotplate.stores.store import Plan, Row, Store
from hotplate.stores.users import clear_erased
from hotplate.stores.verification import OnProgress, load_manifest, unreported, verify

log = logging.getLogger(__name__)

DRAFT_POLL_S = 1.0

# A lease that ends earlier is not renewed again.
LAST_RENEWAL_S = 1.0

# Time for a renewal in a process that was suspended beyond its lease.
RENEWAL_GRACE_S = LEASE_S / 3

# Of a draft for rows of users that were erased meanwhile.
SEARCHES = 3

# Raises an error if a writer has lost its lease.
CheckLease = Callable[[], Awaitable[None]]

# From the sums over all rows: returns the manifest, or that of an earlier attempt (None: there is none) if it matches.
Finish = Callable[[Tally, Manifest | None], Awaitable[Manifest]]

# From the sums over all rows: returns the record of the manifest's origin (`hotplate.stores.origin`).
About = Callable[[Tally], Awaitable[Mapping[str, Any]]]

# Returns the gates that refuse a release; called again when a draft is resumed.
RefusedBy = Callable[[Manifest], Awaitable[tuple[str, ...]]]


class WriterKind(Enum):
    """Who writes a draft; the value is the prefix of the writer's token. PERSON is the last, as it has none."""

    COPY = "copy-"
    RUN = "run-"
    PERSON = ""


@dataclass(frozen=True, slots=True)
class Writer:
    """The writer of a draft: a command of a person, a copy from another store, or a scheduled run.

    *name* is random, but that of a run is the same in all of its attempts.
    """

    kind: WriterKind
    name: str

    @classmethod
    def new(cls, kind: WriterKind = WriterKind.PERSON) -> "Writer":
        """Return a writer with a random name."""
        return cls(kind, secrets.token_hex(8))

    @classmethod
    def of(cls, token: str) -> "Writer":
        """Decode the token in a draft."""
        kind = next(kind for kind in WriterKind if token.startswith(kind.value))
        return cls(kind, token.removeprefix(kind.value))

    @property
    def token(self) -> str:
        """The token that drafts have; the inverse of `of`."""
        return self.kind.value + self.name


@dataclass(frozen=True, slots=True)
class Activation:
    """How a written release becomes live: for an *arm*, perhaps ending a canary, or overriding its gates."""

    arm: Arm = "A"
    end_canary: bool = False
    override: Override = Override.NOTHING


LIVE = Activation()


@dataclass(frozen=True, slots=True)
class PartContext:
    """A draft for processes that write its parts.

    *dictionary* is that of its compression, None without. If *puts* is false, an earlier attempt has written all rows,
    and they are only summed.
    """

    draft: DraftRef
    dictionary: bytes | None
    puts: bool = True


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """Sums over the rows of parts, and the number of rows put by this attempt."""

    tally: Tally
    rows: int


@dataclass(frozen=True, slots=True)
class ParallelWriters:
    """Writers of the parts from 1 on; *sample* are rows to learn a dictionary from."""

    sample: Sequence[Row]
    write: Callable[[PartContext], Awaitable[WrittenPart]]


@dataclass(frozen=True, slots=True)
class WrittenRelease:
    """The result of a writer.

    *rows* were put by this writer, *skipped* by an earlier one. *seconds* is the wall time by step, *held_back* why the
    release did not go live, *repaired* whether an existing release was rewritten.
    """

    manifest: Manifest
    rows: int
    skipped: int
    seconds: dict[str, float] = field(default_factory=dict)
    held_back: HeldBack | None = None
    repaired: bool = False


async def publish_release(
    store: Store,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: About | None = None,
    encoding: str = "json",
    activation: Activation | None = LIVE,
    refused_by: RefusedBy | None = None,
    draft: DraftRef | None = None,
    others: ParallelWriters | None = None,
    on_progress: OnProgress = unreported,
) -> WrittenRelease:
    """Write a release, verify it, commit it and, with an *activation*, make it live.

    *batches* are rows of bodies (`hotplate.stores.encoding`) and `meta` rows. *others* are processes that write further
    rows, and *plan* counts all. *about* returns the record of the origin, by default an empty one.
    *refused_by* returns the gates, checks of a release before it goes live, that refuse it; by default the manifest has
    them. *on_progress* gets lists written and in all.

    The release stays ready, with the reason as `held_back`, if `activate` raises HeldBack: for gates, for another
    release that is the canary, and for arm B, the canary's side of an experiment, without an experiment.

    A failure or an interrupt drops the draft. A killed process or an unavailable store leaves it, until a `prune` drops
    it DRAFT_GRACE_S after its lease has lapsed. To continue one, give the *draft* of `take_over`, and the same rows:
    those that were not acknowledged are put. Raises ReleaseConflict if *draft* has another writer or was begun with
    other rows; StoreMisused for a value that is not a body.
    """
    if draft is None:
        draft = await begin(store, await new_id(store))
    release = draft.release

    async def finish(tally: Tally, begun: Manifest | None) -> Manifest:
        if begun is not None:
            return _check_same(begun, tally)
        origin = {} if about is None else await about(tally)
        created_at = (await store.catalogue()).now
        return describe(release.id, tally, created_at=created_at, encoding=encoding, about=origin)

    async def encode() -> EncodedRows:
        sample = () if others is None else others.sample
        encoded = await encode_rows(batches, plan, encoding, Checksum(release.id), sample)
        return replace(encoded, batches=_reported(encoded.batches, plan.rows, on_progress))

    written = await write_draft(store, draft, encode, finish=finish, others=others, refused_by=refused_by)

    if activation is not None:
        return await go_live(store, written, activation)

    await scale_down(store, release)
    return written


async def go_live(store: Store, written: WrittenRelease, activation: Activation) -> WrittenRelease:
    """Activate a written release; a canary, or the gates that refused it, may hold it back.

    Returns *written* with the seconds that the activation took, or with the reason as `held_back`.
    """
    release = written.manifest.release
    started = time.perf_counter()
    try:
        await activate(
            store,
            release,
            arm=activation.arm,
            end_canary=activation.end_canary,
            override=activation.override,
        )
    except HeldBack as error:
        await scale_down(store, (await store.catalogue()).find(release).ref)
        return replace(written, held_back=error)
    return replace(written, seconds=written.seconds | {"activate": time.perf_counter() - started})


async def begin(
    store: Store, release: ReleaseId, *, repairs: str | None = None, writer: Writer | None = None
) -> DraftRef:
    """Begin a draft, a release that is being written, or continue one of the same *writer*, by default a new one.

    *repairs* names the damaged release that the draft replaces by its incarnation, the unique name of one write of a
    release: both have one id. A writer has one process at a time. Raises ReleaseConflict if the id is taken.
    """
    token = (writer or Writer.new()).token

    def add_draft(catalogue: Catalogue) -> Catalogue:
        return changes.begin(catalogue, DraftRef(release, secrets.token_hex(6), token), repairs=repairs)

    entry = (await update_catalogue(store, add_draft)).find_draft(release)
    return DraftRef(entry.id, entry.incarnation, token)


async def take_over(store: Store, release: ReleaseId, *, writer: Writer | None = None) -> DraftRef:
    """Become a draft's *writer*, by default a new one, as soon as the lease of the former writer has lapsed.

    A lease is the time during which only its holder may write; a living writer renews it. Waits while it runs.
    Raises ReleaseConflict if it is renewed meanwhile, as its writer is alive, if the release is not a draft, or if it
    is a copy and *writer* does not copy; ReleaseNotFound if it was dropped.
    """
    writer = writer or Writer.new()
    catalogue = await store.catalogue()
    entry = catalogue.find_draft(release)
    if Writer.of(entry.writer).kind is WriterKind.COPY and writer.kind is not WriterKind.COPY:
        raise ReleaseConflict(f"release {release} is a copy that was cut off; give the same `releases copy` again")

    first_lease_until = entry.lease_until
    left_s = entry.lease_left_s(catalogue.now)
    if left_s > 0:
        log.warning("release %s has a writer; if that process is gone, its lease lapses in %.0f s", release, left_s)
    while left_s > 0 and entry.lease_until == first_lease_until:
        await asyncio.sleep(min(left_s, DRAFT_POLL_S))
        catalogue = await store.catalogue()
        entry = catalogue.find_draft(release)
        left_s = entry.lease_left_s(catalogue.now)

    draft = DraftRef(entry.id, entry.incarnation, writer.token)
    # Raises ReleaseConflict if the lease was renewed.
    await update_catalogue(store, partial(changes.take_over, draft=draft))
    return draft


async def write_draft(
    store: Store,
    draft: DraftRef,
    encode: Callable[[], Awaitable[EncodedRows]],
    *,
    finish: Finish,
    prepare: bool = False,
    others: ParallelWriters | None = None,
    refused_by: RefusedBy | None = None,
) -> WrittenRelease:
    """Write or continue a draft, a release that is not committed yet, up to its commit.

    A lease, renewed in the background, keeps other writers away. *encode* returns the rows, *others* are processes
    that write further parts. *finish* gets the sums over all rows and the manifest of an earlier attempt (None without
    one), and returns the manifest, which is written last. Then the draft is sealed, verified and committed.

    With *prepare*, the store is prepared to serve the release before the commit, for a repair, which replaces a release
    that may be live. *refused_by* returns the names of the gates, the checks of a release before it goes live, that
    refuse it; by default the manifest has them.

    After StoreUnavailable, and if an earlier attempt wrote other rows or its writer is alive, the draft stays for
    another attempt, without its lease. After any other error or an interrupt it is dropped, but for an interrupt of a
    scheduled run, which resumes.
    """
    kind = Writer.of(draft.writer).kind
    try:
        async with lease(store, draft) as check_lease:
            erased = (await store.catalogue()).erased  # before `put_part` reads those that it leaves out
            encoded = await encode()
            await check_lease()
            result = await _write_rows(store, draft, encoded, finish=finish, others=others, check_lease=check_lease)

            await store.seal(draft)
            await _verify(store, draft, result)
            if prepare:
                await store.prepare(draft.release)

            refusing = result.manifest.refused_by if refused_by is None else await refused_by(result.manifest)
            await check_lease()
            await _commit(store, draft, refusing, erased)
    except (StoreUnavailable, _AttemptRefused) as error:
        with suppress(StoreError):  # unavailable: the lease will lapse
            await update_catalogue(store, partial(changes.renew, draft=draft, lease_s=0.0))
        if isinstance(error, _AttemptRefused):
            raise

        advice = "give the same command again"
        if kind is WriterKind.PERSON:
            advice = f"continue with --resume {draft.id}"
        failure = AccessDenied if isinstance(error, AccessDenied) else StoreUnavailable
        raise failure(f"{error}; to finish this release, {advice}") from error
    except BaseException as error:
        is_resumed = isinstance(error, asyncio.CancelledError) and kind is WriterKind.RUN
        if not is_resumed:
            await _abandon(store, draft)
        raise
    return result


async def _commit(store: Store, draft: DraftRef, refused_by: tuple[str, ...], erased: Erased | None) -> None:
    """Commit a verified draft without rows of erased users; *erased* are those that were left out as it was written.

    From the commit on, `erase_users` searches the release. So the swap requires that nobody was erased since the rows
    were searched, as the catalogue names the erased users; otherwise they are searched again. If users were erased
    during each of SEARCHES, the release is committed first, and searched last.
    """

    def commit_if_searched(catalogue: Catalogue) -> Catalogue:
        if catalogue.erased != erased:
            return catalogue
        return changes.commit(catalogue, draft, refused_by)

    for _ in range(SEARCHES):
        if (await update_catalogue(store, commit_if_searched)).erased == erased:
            return
        erased = await clear_erased(store, draft.release)
    await update_catalogue(store, partial(changes.commit, draft=draft, refused_by=refused_by))
    await clear_erased(store, draft.release)


async def _abandon(store: Store, draft: DraftRef) -> None:
    """Drop a draft, as far as possible."""
    with suppress(StoreError):  # unavailable, committed, taken over, or dropped: a prune erases rows put since
        await update_catalogue(store, partial(changes.abandon, draft=draft))
        await drop(store, draft.release)


async def _write_rows(
    store: Store,
    draft: DraftRef,
    encoded: EncodedRows,
    *,
    finish: Finish,
    others: ParallelWriters | None,
    check_lease: CheckLease,
) -> WrittenRelease:
    """Write the rows of a draft that earlier attempts have not written, the manifest last.

    Returns the manifest, and how many rows were written and skipped. An attempt that finds a manifest only sums up the
    rows, which *finish* compares with it. *check_lease* raises if another writer has the draft; *others* are processes
    that write further parts.
    """
    earlier_manifest = await _claim(store, draft, encoded.plan)
    context = PartContext(draft, encoded.dictionary, puts=earlier_manifest is None)

    written = await put_part(store, context, encoded.batches, check=check_lease)
    tally = written.tally
    rows = written.rows
    if others is not None:
        other_parts = await others.write(context)
        tally.merge(other_parts.tally)
        rows += other_parts.rows

    manifest = await finish(tally, earlier_manifest)
    if earlier_manifest is None:
        await store.put(draft, [manifest.key_row])

    written_before = tally.rows - rows  # the tally has all rows, also those of earlier attempts
    return WrittenRelease(manifest, rows=rows, skipped=written_before)


async def new_id(store: Store) -> ReleaseId:
    """Return a new id of a release: the time by the store's clock, and four random hexadecimal digits."""
    catalogue = await store.catalogue()
    started = datetime.fromtimestamp(catalogue.now, UTC)
    taken = {release.id for release in catalogue.releases}
    while True:
        release_id = ReleaseId(f"{started:%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}")
        if release_id not in taken:
            return release_id


class _AttemptRefused(ReleaseConflict):
    """A draft has other rows or a living writer, so this attempt ends; the draft stays."""


async def _claim(store: Store, draft: DraftRef, plan: Plan) -> Manifest | None:
    """Claim a draft for its writer; return its manifest if an earlier attempt wrote it, else None.

    The manifest is written last, so the earlier attempt has written all rows then. Raises ReleaseConflict if the writer
    of an earlier attempt is alive.
    """
    refused = None
    try:
        await store.create(draft, plan)
    except ReleaseConflict as error:  # sealed, or its writer is alive
        refused = error

    try:
        return await load_manifest(store, draft.release)
    except (ReleaseNotFound, ReleaseCorrupt):  # usually not written yet
        if refused is not None:
            raise _AttemptRefused(str(refused)) from refused
        return None


async def _verify(store: Store, draft: DraftRef, result: WrittenRelease) -> None:
    """Verify a sealed draft; ReleaseConflict if an earlier attempt may have put other rows, else ReleaseCorrupt."""
    try:
        await verify(store, draft.release)
    except ReleaseCorrupt as error:
        if not result.skipped:
            raise
        is_copy = Writer.of(draft.writer).kind is WriterKind.COPY
        advice = "give the same command again" if is_copy else "publish them as a new release"
        raise ReleaseConflict(
            f"release {draft.id} was begun with other lists than these, or before a user was erased, or the store has "
            f"lost rows of it; it was dropped: {advice}"
        ) from error


async def put_part(
    store: Store,
    context: PartContext,
    batches: AsyncIterable[Sequence[Row]],
    part: int = 0,
    check: CheckLease | None = None,
) -> WrittenPart:
    """Put the rows of a part that are not acknowledged yet, and sum up all of them; without those of erased users.

    A part is the rows that one process of a publish writes; part 0 is that of the draft's writer. *batches* are all its
    rows, in the same order in each attempt. If `context.puts` is false, none is put. *check* is called before each
    batch, and may raise to end the part.
    """
    erased = await erased_from(store)
    if erased.lost and part == 0:
        log.warning("%s", lost_sentence(erased.lost))
    resume_point = await store.resume_point(context.draft, part) if context.puts else None
    tally = Tally()
    rows_put = 0

    async for batch in batches:
        if check is not None:
            await check()

        rows = batch
        if erased:
            rows = [row for row in batch if not erased.covers(row.key)]
        if context.puts:
            new_rows = _unacknowledged(rows, resume_point)
            if new_rows:
                await store.put(context.draft, new_rows, part)
            rows_put += len(new_rows)

        # All rows count, also those that an earlier attempt put: the manifest describes the whole release.
        tally.add(rows)
        tally.left_out += len(batch) - len(rows)
        await asyncio.sleep(0)  # let the lease be renewed
    return WrittenPart(tally, rows_put)


async def write_part(
    store: Store, context: PartContext, part: int, bodies: AsyncIterable[Sequence[Row]]
) -> WrittenPart:
    """Encode and put the *bodies* of a part; raises StoreError."""
    encoder = Encoder(Checksum(context.draft.id), context.dictionary)
    batches = (encoder.rows(rows) async for rows in bodies)
    return await put_part(store, context, batches, part)


def _unacknowledged(rows: Sequence[Row], resume_point: str | None) -> Sequence[Row]:
    """Return those of *rows* that come after the last acknowledged key, and `meta` rows, which are in no order."""
    if resume_point is None:
        return rows
    # `str` has the same order as its UTF-8 bytes, by which rows are sorted.
    return [row for row in rows if row.key > resume_point or row.key.startswith(META)]


def _check_same(manifest: Manifest, tally: Tally) -> Manifest:
    """Return the manifest of an earlier attempt; ReleaseConflict if the rows of this one differ from it."""
    try:
        return compare(manifest, tally)
    except ReleaseCorrupt as error:
        raise _AttemptRefused(
            f"these are other lists than release {manifest.release} was begun with, or a user was erased since; "
            f"publish them as a new release"
        ) from error


async def _reported(batches: AsyncIterator[list[Row]], total: int, on_progress: OnProgress) -> AsyncIterator[list[Row]]:
    """Yield *batches*, and report the rows after each."""
    done = 0
    async for rows in batches:
        yield rows
        done += len(rows)
        on_progress(min(done, total), total)  # a dictionary is a row but not a list


@asynccontextmanager
async def lease(store: Store, draft: DraftRef) -> AsyncIterator[CheckLease]:
    """Renew a draft's lease in the background, at each third of it, until the end of the context.

    The lease keeps other writers away from the draft for LEASE_S.

    Yields a function that raises an error if the lease is lost: that of the renewal, or StoreUnavailable once the lease
    has run out by the local clock. The writer calls it before each step. In a process that was suspended beyond the
    lease, it waits for the renewal that is due.
    """
    ends_at = loop_time() + LEASE_S
    renewed = asyncio.Event()

    async def keep_renewed() -> None:
        nonlocal ends_at
        while True:
            await asyncio.sleep((ends_at - loop_time()) / 3)
            ends_at = await _renew(store, draft, until=max(ends_at, loop_time() + RENEWAL_GRACE_S))
            renewed.set()

    renewal = asyncio.create_task(keep_renewed())
    renewal.add_done_callback(lambda _: renewed.set())  # wakes `check` if renewing has failed

    async def check() -> None:
        while loop_time() >= ends_at and not renewal.done():
            renewed.clear()
            await renewed.wait()
        if renewal.done():
            renewal.result()

    try:
        yield check
    finally:
        await end_tasks(renewal)  # `check` has raised its error


async def _renew(store: Store, draft: DraftRef, until: float) -> float:
    """Renew a draft's lease, and return its new end; both times are by the loop's clock.

    Attempts that fail with StoreUnavailable are repeated until the time *until*. If the process was suspended beyond
    it, further attempts are made for RENEWAL_GRACE_S, because nobody else may have taken the draft.
    """
    while True:
        began_at = loop_time()
        try:
            async with asyncio.timeout_at(until):
                await update_catalogue(store, partial(changes.renew, draft=draft))
            return began_at + LEASE_S
        except TimeoutError as error:
            if loop_time() - until < LAST_RENEWAL_S:
                raise StoreUnavailable(
                    f"the lease of release {draft.id} was not renewed in time, so another process may write it"
                ) from error
        except StoreUnavailable:
            if abs(loop_time() - until) < LAST_RENEWAL_S:
                raise
        if loop_time() >= until:  # suspended meanwhile
            until = loop_time() + RENEWAL_GRACE_S
        else:
            await asyncio.sleep((until - loop_time()) / 3)
