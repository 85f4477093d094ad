"""Writing releases to any store.

A draft is a release being written. Its writer, known by a random token, begins it, writes part 0 and commits it, and
renews its lease until then; other processes may write parts numbered from 1 with the same token. A lapsed draft can be
resumed: the rows of a part are the same in each attempt, so any attempt continues after the last acknowledged row.
"""

import asyncio
import gc
import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from hotplate.stores import catalogue as changes
from hotplate.stores.catalogue import LEASE_S, Arm, Catalogue, DraftRef, ReleaseId, State
from hotplate.stores.compression import EncodedRows, Encoder, encode_rows
from hotplate.stores.encoding import META, Checksum
from hotplate.stores.erasure_log import erased_from, first_records, lost_sentence
from hotplate.stores.errors import (
    HeldBack,
    ReleaseConflict,
    ReleaseCorrupt,
    ReleaseNotFound,
    ReleaseWithdrawn,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.file.store import CatalogueFile, LmdbStore
from hotplate.stores.folders import temporary_folder
from hotplate.stores.lifecycle import activate, drop, scale_down, update_catalogue
from hotplate.stores.manifest import Manifest, Tally, compare, describe
from hotplate.stores.store import Diagnosed, Plan, RecordChange, Row, Store
from hotplate.stores.verification import OnProgress, load_manifest, unreported, verify

log = logging.getLogger(__name__)

# Prefixes of the writer tokens of copies, and of scheduled runs: the same in all attempts of a run.
COPIER = "copy-"
RUNNER = "run-"

DRAFT_POLL_S = 1.0
# The same for a release on probation.
PROBATION_POLL_S = 2.0

# From the sums over all rows: returns the manifest, or that of an earlier attempt (None: there is none) if it matches.
Finish = Callable[[Tally, Manifest | None], Awaitable[Manifest]]

# The record of a manifest's origin (`hotplate.stores.origin`), or a function from the sums over all rows to it.
About = dict[str, Any] | Callable[[Tally], Awaitable[dict[str, Any]]]

# Returns the gates that refuse a release; called again when a draft is resumed.
RefusedBy = Callable[[Manifest], Awaitable[tuple[str, ...]]]


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

    def merged(self, other: "WrittenPart") -> "WrittenPart":
        """Return the sums of both, and change this tally."""
        self.tally.merge(other.tally)
        return WrittenPart(self.tally, self.rows + other.rows)


@dataclass(frozen=True, slots=True)
class ParallelWriters:
    """Writers of the parts from 1 on; *sample* are rows to learn a dictionary from."""

    sample: Sequence[Row]
    write: Callable[[PartContext], Awaitable[WrittenPart]]


@dataclass(frozen=True, slots=True)
class WriteResult:
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


async def publish(
    store: Store,
    batches: AsyncIterable[Sequence[Row]],
    *,
    plan: Plan,
    about: About,
    encoding: str = "json",
    live: bool = True,
    refused_by: RefusedBy | None = None,
    arm: Arm = "A",
    end_canary: bool = False,
    resume: ReleaseId | DraftRef | None = None,
    others: ParallelWriters | None = None,
    on_progress: OnProgress = unreported,
) -> WriteResult:
    """Write a release, verify it, commit it and, unless *live* is false, activate it.

    *batches* are rows of bodies (`hotplate.stores.encoding`) and `meta` rows; *others* write further rows; *plan*
    counts all. *about* is the record of the origin. *refused_by* returns the gates that refuse the release, by default
    those that failed in the manifest. *on_progress* gets lists written and in all.

    While another release is the canary, unless that is arm B or *end_canary* is true, and for arm B without an
    experiment, the release stays ready (`held_back`).

    A failure or an interrupt drops the draft. A killed process or an unavailable store leaves it until the first
    `prune` after its lease: *resume*, given the same rows, puts those that were not acknowledged. *resume* is a
    release's id, or a DraftRef of which the caller is the writer. Raises ReleaseConflict if *resume* has another writer
    or other rows, or is not a draft; StoreMisused for a value that is not a body.
    """

    async def finish(tally: Tally, begun: Manifest | None) -> Manifest:
        if begun is not None:
            return _check_same(begun, tally)
        origin = about if isinstance(about, dict) else await about(tally)
        created_at = (await store.catalogue()).now
        return describe(draft.id, tally, created_at=created_at, encoding=encoding, about=origin)

    async def encode() -> EncodedRows:
        sample = () if others is None else others.sample
        encoded = await encode_rows(batches, plan, encoding, Checksum(draft.id), sample)
        return replace(encoded, batches=_reported(encoded.batches, plan.rows, on_progress))

    if isinstance(resume, DraftRef):
        draft = resume
    else:
        draft = await (begin(store, await new_id(store)) if resume is None else take_over(store, resume))
    with frozen_heap():
        result = await write(store, draft, encode, finish=finish, others=others, refused_by=refused_by)
    if live:
        return await go_live(store, result, arm=arm, end_canary=end_canary)
    await scale_down(store, draft.release)
    return result


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Keep objects that exist already out of garbage collections, which rows cause often: 8 % of a publish's CPU."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def go_live(
    store: Store, result: WriteResult, *, arm: Arm = "A", end_canary: bool = False, though_refused: bool = False
) -> WriteResult:
    """Activate a written release; a canary, or the gates that refused it, may hold it back.

    *arm* is that of a running experiment for which it is. Returns *result* with the seconds that the activation took,
    or with the reason as `held_back`.
    """
    release = result.manifest.release
    started = time.perf_counter()
    try:
        await activate(store, release, arm=arm, end_canary=end_canary, though_refused=though_refused)
    except HeldBack as error:
        await scale_down(store, (await store.catalogue()).find(release).ref)
        return replace(result, held_back=error)
    return replace(result, seconds=result.seconds | {"activate": time.perf_counter() - started})


async def outlast_probation(store: Store, release: ReleaseId, wait_s: float) -> ReleaseWithdrawn | None:
    """Wait up to *wait_s* seconds while a release is live; return the reason if services withdraw it meanwhile.

    Services with `--probation` withdraw a new release that is worse than the one before. None if it stays live, or if
    another release replaced it.
    """
    log.warning("waiting %g s for services to judge release %s", wait_s, release)
    ends_at = time.monotonic() + wait_s
    while (left_s := ends_at - time.monotonic()) > 0:
        await asyncio.sleep(min(left_s, PROBATION_POLL_S))
        with suppress(StoreUnavailable):
            catalogue = await store.catalogue()
            if catalogue.live == release:
                continue
            entry = catalogue.get(release)
            if entry is None or entry.state is not State.WITHDRAWN or not entry.refused_by:
                return None
            reasons = ", ".join(entry.refused_by)
            return ReleaseWithdrawn(f"release {release} was withdrawn, and {catalogue.live} is live again: {reasons}")
    return None


async def begin(store: Store, release: ReleaseId, *, repairs: str | None = None, writer: str | None = None) -> DraftRef:
    """Begin a draft, or continue one of the same *writer*, by default a new one.

    *repairs* is the incarnation of the damaged release of this id that the draft replaces. A writer has one process at
    a time. Raises ReleaseConflict if the id is taken.
    """
    token = writer or secrets.token_hex(8)

    def add_draft(catalogue: Catalogue) -> Catalogue:
        return changes.begin(catalogue, DraftRef(release, secrets.token_hex(6), token), repairs=repairs)

    entry = (await update_catalogue(store, add_draft)).find_draft(release)
    return DraftRef(entry.id, entry.incarnation, token)


async def take_over(store: Store, release: ReleaseId, *, writer: str | None = None) -> DraftRef:
    """Become a draft's *writer*, by default a new one, as soon as the lease of the writer before has lapsed.

    Waits while that lease runs. Raises ReleaseConflict if it is renewed meanwhile, as its writer is alive, if the
    release is not a draft, or is a copy's; ReleaseNotFound if it was dropped.
    """
    token = writer or secrets.token_hex(8)
    first_lease_until = None
    while True:
        catalogue = await store.catalogue()
        entry = catalogue.find_draft(release)
        if entry.writer.startswith(COPIER) and not token.startswith(COPIER):
            raise ReleaseConflict(f"release {release} is a copy that was cut off; give the same `releases copy` again")
        left_s = entry.lease_left_s(catalogue.now)
        is_renewed = first_lease_until is not None and entry.lease_until != first_lease_until
        if left_s <= 0 or is_renewed:
            draft = DraftRef(entry.id, entry.incarnation, token)
            await update_catalogue(
                store, partial(changes.take_over, draft=draft)
            )  # raises ReleaseConflict if it was renewed
            return draft
        if first_lease_until is None:
            first_lease_until = entry.lease_until
            log.warning("release %s has a writer; if that process is gone, its lease lapses in %.0f s", release, left_s)
        await asyncio.sleep(min(left_s, DRAFT_POLL_S))


async def write(
    store: Store,
    draft: DraftRef,
    encode: Callable[[], Awaitable[EncodedRows]],
    *,
    finish: Finish,
    prepare: bool = False,
    others: ParallelWriters | None = None,
    refused_by: RefusedBy | None = None,
) -> WriteResult:
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
    try:
        async with lease(store, draft) as check_lease:
            encoded = await encode()
            check_lease()
            result = await _write_rows(store, draft, encoded, finish=finish, others=others, check_lease=check_lease)
            await store.seal(draft)
            await _verify(store, draft, result)
            if prepare:
                await store.prepare(draft.release)
            refusing = result.manifest.refused_by if refused_by is None else await refused_by(result.manifest)
            check_lease()
            await update_catalogue(store, partial(changes.commit, draft=draft, refused_by=refusing))
    except (StoreUnavailable, _AttemptRefused) as error:
        with suppress(StoreError):  # unavailable: the lease will lapse
            await update_catalogue(store, partial(changes.end_lease, draft=draft))
        if isinstance(error, _AttemptRefused):
            raise
        is_repeated = draft.writer.startswith((COPIER, RUNNER))
        advice = "give the same command again" if is_repeated else f"continue with --resume {draft.id}"
        raise StoreUnavailable(f"{error}; once that is corrected, {advice}") from error
    except BaseException as error:
        if not (isinstance(error, asyncio.CancelledError) and draft.writer.startswith(RUNNER)):
            await _abandon(store, draft)
        raise
    return result


async def _write_rows(
    store: Store,
    draft: DraftRef,
    encoded: EncodedRows,
    *,
    finish: Finish,
    others: ParallelWriters | None,
    check_lease: Callable[[], None],
) -> WriteResult:
    """Write the rows of a draft that earlier attempts have not written, the manifest last.

    Returns the manifest, and how many rows were written and skipped. An attempt that finds a manifest only sums up the
    rows, which *finish* compares with it. *check_lease* raises if another writer has the draft; *others* are processes
    that write further parts.
    """
    earlier_manifest = await _claim(store, draft, encoded.plan)
    context = PartContext(draft, encoded.dictionary, puts=earlier_manifest is None)
    written = await put_part(store, context, encoded.batches, check=check_lease)
    if others is not None:
        written = written.merged(await others.write(context))
    manifest = await finish(written.tally, earlier_manifest)
    if earlier_manifest is None:
        await store.put(draft, [manifest.key_row])
    return WriteResult(manifest, rows=written.rows, skipped=written.tally.rows - written.rows)


def new_copier() -> str:
    """Return the token of a copy's writer."""
    return COPIER + secrets.token_hex(8)


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
    """Claim a draft; return its manifest if an earlier attempt wrote it, and so all of its rows.

    Raises ReleaseConflict if the writer of an earlier attempt is alive.
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


async def _verify(store: Store, draft: DraftRef, result: WriteResult) -> None:
    """Verify a sealed draft; ReleaseConflict if an earlier attempt may have put other rows, else ReleaseCorrupt."""
    try:
        await verify(store, draft.release)
    except ReleaseCorrupt as error:
        if not result.skipped or draft.writer.startswith(COPIER):
            raise
        raise ReleaseConflict(
            f"release {draft.id} was begun with other lists than these, or before a user was erased, or the store has "
            f"lost rows of it; it was dropped: publish them as a new release"
        ) from error


async def put_part(
    store: Store,
    context: PartContext,
    batches: AsyncIterable[Sequence[Row]],
    part: int = 0,
    check: Callable[[], None] = lambda: None,
) -> WrittenPart:
    """Put the rows of a part that are not acknowledged yet, without erased users, and sum up all of them.

    *batches* are all rows of the *part* (0: that of the draft's writer), in the same order in each attempt. *check* is
    called before each batch, and may raise to end the part.
    """
    erased = await erased_from(store)
    if erased.lost and part == 0:
        log.warning("%s", lost_sentence(erased.lost))
    resume_point = await store.resume_point(context.draft, part) if context.puts else None
    tally = Tally()
    rows_put = 0
    async for batch in batches:
        check()
        rows = batch
        if erased:
            rows = [row for row in batch if not erased.covers(row.key)]
        if context.puts:
            new_rows = rows
            if resume_point is not None:
                new_rows, resume_point = _after(resume_point, rows)
            if new_rows:
                await store.put(context.draft, new_rows, part)
            rows_put += len(new_rows)
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


def _after(resume_point: str, rows: Sequence[Row]) -> tuple[Sequence[Row], str | None]:
    """Return the rows after the last acknowledged key, and the resume point for the next rows, None once passed.

    Puts are acknowledged in order: all rows before the point, `meta` too, are written.
    """
    last = resume_point.encode()
    for index, (key, _) in enumerate(rows):
        if key.startswith(META):  # not in the order of the others, and no resume point
            continue
        raw = key.encode()
        if raw >= last:
            first_new = index + 1 if raw == last else index
            return rows[first_new:], None
    return (), resume_point


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
async def lease(store: Store, draft: DraftRef) -> AsyncIterator[Callable[[], None]]:
    """Renew a draft's lease in the background, at each third of it, until the end of the context.

    Yields a function that raises the error of the renewal if the lease is lost: the writer calls it before each step.
    """

    async def renew() -> None:
        left_s = LEASE_S
        while True:
            await asyncio.sleep(left_s / 3)
            try:
                await update_catalogue(store, partial(changes.renew, draft=draft))
                left_s = LEASE_S
            except StoreUnavailable:  # again after a third of what is left, up to the last second
                left_s *= 2 / 3
                if left_s < 1.0:
                    raise

    renewal = asyncio.create_task(renew())

    def check() -> None:
        if renewal.done():
            renewal.result()

    try:
        yield check
    finally:
        renewal.cancel()
        await asyncio.gather(renewal, return_exceptions=True)  # `check` has raised its error


async def _abandon(store: Store, draft: DraftRef) -> None:
    """Drop a draft, as far as possible."""
    with suppress(StoreError):  # unavailable, committed, taken over, or dropped: a prune erases rows put since
        await update_catalogue(store, partial(changes.abandon, draft=draft))
        await drop(store, draft.release)


async def rehearse(store: Store, run: Callable[[Store], Awaitable[Manifest]]) -> Plan:
    """Run a publish against a stand-in for *store*, and return its rows and bytes.

    The stand-in is a folder with the catalogue and the erased users of *store*. Raises StoreFull if the release does
    not fit into *store*.
    """
    with temporary_folder("rehearsal") as folder:
        catalogue = await store.catalogue()
        erased = await erased_from(store)
        stand_in = _StandIn(folder, store, catalogue)
        try:
            if catalogue.generation:
                copied = replace(catalogue, erased=None)
                records = list[RecordChange]()
                if erased:
                    entry, records = first_records(erased)
                    copied = replace(copied, erased=entry)
                CatalogueFile(folder).replace(copied, records)
            manifest = await run(stand_in)
        finally:
            await stand_in.close()
    key, value = manifest.key_row
    return Plan(manifest.rows + 1, manifest.bytes + len(key) + len(value))


class _StandIn(LmdbStore):
    """Files with the catalogue and the free space of another store."""

    def __init__(self, folder: Path, store: Store, catalogue: Catalogue) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        super().__init__(folder, lambda: catalogue.now + clock() - began)
        self._store = store

    async def create(self, draft: DraftRef, plan: Plan) -> None:
        if isinstance(self._store, Diagnosed):
            await self._store.check_room(draft, plan)
        await super().create(draft, plan)
