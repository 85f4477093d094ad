"""The contract suite for third-party stores: subclass `StoreContract` in your tests, and pytest runs all of it.

    import pytest
    from hotplate.testing import OpenStore, StoreContract
    from my_package import MyStore

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store(self, tmp_path) -> OpenStore:
            return lambda: MyStore(tmp_path / "lists")

A store over a network also provides the fixture `stall`, so that its time limits are tested. The suite of a store of
local files that is not `is_local` sets `is_local = True`.

It needs pytest-asyncio; in strict mode, mark coroutine fixtures with `pytest_asyncio.fixture`. With
`pytest -p hotplate.testing` failed assertions show their values.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar
from unittest.mock import Mock

import pytest
import pytest_asyncio

from hotplate.stores import transitions as catalogue_changes
from hotplate.stores.catalogue import Canary, Catalogue, DraftRef, ReleaseId, ReleaseRef
from hotplate.stores.encoding import body_of
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import (
    CatalogueUnreadable,
    NotSent,
    ReleaseConflict,
    ReleaseNotFound,
    StoreClosed,
    StoreError,
    StoreUnavailable,
)
from hotplate.stores.lifecycle import prune, rollback
from hotplate.stores.publication import begin as begin_release
from hotplate.stores.publication import publish_release
from hotplate.stores.store import (
    Level,
    Plan,
    Reader,
    ReadResult,
    RecordChange,
    Row,
    Store,
)
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import verify

__all__ = ("OpenStore", "Stall", "StoreContract")

# Opens another handle on the same store, as another process would.
OpenStore = Callable[[], Store]
# During the block of the result, the server of the store keeps its connections, and answers nothing.
Stall = Callable[[], AbstractContextManager[object]]

Call = Callable[[], Awaitable[object]]
T = TypeVar("T")

# Time limits of two reads of a store that stalls, and of what must end: longer than a busy machine halts a process.
SHORT_S = 0.1
LONG_S = 30.0
SOON_S = 60.0

# Accepted between the clock of the store and that of the test.
CLOCK_SKEW_S = 3600.0

FIRST = ReleaseId("20261120T064200Z-aaaa")
SECOND = ReleaseId("20261120T064300Z-bbbb")
ROWS = [
    Row("item:a/b", b'{"id":"x","score":1}'),
    Row("popular:", b'{"id":"p","score":3}'),
    Row("user:", b"an empty id, but a key"),
    Row("user:%FF", b"percent"),
    Row("user:1", b"one"),
    Row("user:2", b""),
    Row("user:é", b"\x00\xff binary \n"),
    Row("user:😀", b"emoji"),
    Row("user:" + "😀" * 64, b"x" * 20_000),
]


def draft_of(release: ReleaseId, writer: str = "writer") -> DraftRef:
    """Return an unfinished release as stores receive it: id, incarnation (the name of its data), and its writer."""
    return DraftRef(release, f"incarnation-{release}", writer)


def release_ref(release: ReleaseId) -> ReleaseRef:
    """Return a release as stores receive it: its id, and the incarnation, the name of its data, that `draft_of` has."""
    return draft_of(release).release


# The releases of the tests, and an estimate of the size of ROWS.
DRAFT = draft_of(FIRST)
RELEASE = DRAFT.release
OTHER_DRAFT = draft_of(SECOND)
OTHER_RELEASE = OTHER_DRAFT.release
PLAN = Plan(len(ROWS), 1000)


def in_key_order(rows: Sequence[Row]) -> list[Row]:
    """Return *rows* in the order of a scan: that of the bytes of their keys."""
    return sorted(rows, key=lambda row: row.key.encode())


def allow_erasure(catalogue: Catalogue) -> None:
    """Allow `Store.erase` to delete a release, whatever the catalogue says."""
    del catalogue


def refusal() -> Mock:
    """Return a function that forbids `Store.erase` to delete a release; it records the catalogues of its calls."""
    return Mock(side_effect=ReleaseConflict("it is live again"))


async def write_release(
    store: Store, release: ReleaseId = FIRST, rows: Sequence[Row] = ROWS, *, seal: bool = True
) -> None:
    """Create a draft, put *rows*, and seal it by default, so that it can be read."""
    await store.create(draft_of(release), Plan(len(rows), 1000))
    await store.put(draft_of(release), rows)
    if seal:
        await store.seal(draft_of(release))


async def swap_catalogue(store: Store, change: Catalogue, records: Sequence[RecordChange] = ()) -> Catalogue:
    """Store a changed catalogue with the next generation, and records, and return the catalogue as stored."""
    old = await store.catalogue()
    new = catalogue_changes.succeed(old, change, token=secrets.token_hex(8), store_id="here")
    await store.swap(old, new, records)
    return new


async def begin_draft(store: Store, release: ReleaseId = FIRST) -> Catalogue:
    """Add a draft to the catalogue, and return the catalogue as stored."""
    return await swap_catalogue(store, catalogue_changes.begin(await store.catalogue(), draft_of(release)))


async def commit_release(store: Store) -> Catalogue:
    """Write a release as its publisher does, without making it live, and return the catalogue as stored."""
    await begin_draft(store)
    await write_release(store)
    return await swap_catalogue(store, catalogue_changes.commit(await store.catalogue(), DRAFT))


async def scan_rows(store: Store, release: ReleaseId = FIRST) -> list[Row]:
    """Return all rows of a sealed release in scan order."""
    return [row async for row in store.scan(release_ref(release))]


def reads_of(store: Store, release: ReleaseId) -> dict[str, Call]:
    """Return a call of each method that reads a store with a sealed *release*, by name."""
    ref = release_ref(release)
    keys = [row.key for row in ROWS]
    calls: dict[str, Call] = {
        "get_many": partial(store.get_many, ref, keys),
        "get_many with timeout_s": partial(store.get_many, ref, keys, timeout_s=SOON_S),
        "catalogue": store.catalogue,
        "records": partial(store.records, ["one"]),
        "poll": store.poll,
        "incarnations": store.incarnations,
        "is_sealed": partial(store.is_sealed, ref),
        "scan": partial(scan_rows, store, release),
        "prepare": partial(store.prepare, ref),
    }
    if store.is_local:
        calls["warm"] = partial(store.warm, ref)
    if store.has_replicas:
        calls["get_many_elsewhere"] = partial(store.get_many_elsewhere, ref, keys, timeout_s=SOON_S)
    return calls


def writes_of(store: Store, sealed: ReleaseId, draft: DraftRef, stored: Catalogue) -> dict[str, Call]:
    """Return a call of each method that writes, by name, which succeed one after the other.

    The store has a *sealed* release, none with the id of *draft*, and the catalogue *stored*.
    """
    successor = catalogue_changes.succeed(stored, stored, token="successor", store_id="here")
    calls: dict[str, Call] = {
        "create": partial(store.create, draft, PLAN),
        "put": partial(store.put, draft, ROWS),
        "resume_point": partial(store.resume_point, draft),
        "seal": partial(store.seal, draft),
        "swap": partial(store.swap, stored, successor),
        "erase": partial(store.erase, draft.release, allow_erasure),
    }
    if store.erases_rows:
        calls["erase_rows"] = partial(store.erase_rows, release_ref(sealed), ["user:absent"], allow_erasure)
    if store.is_provisioned:
        calls["scale_down"] = partial(store.scale_down, release_ref(sealed))
    return calls


async def outcome_of(call: Awaitable[T]) -> T | BaseException:
    """Return what a call returns, or the exception that it raises."""
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return outcome


async def outcomes_of(read: Awaitable[list[ReadResult]]) -> list[BaseException | bytes | None]:
    """Return the results of a read, once it has ended, or its error as the only one."""
    outcome = await outcome_of(read)
    return [outcome] if isinstance(outcome, BaseException) else [*outcome]


async def read_until_available(reader: Reader, release: ReleaseId, keys: Sequence[str]) -> object:
    """Read *keys* again until there is no StoreUnavailable, as from connections that are opened again."""
    async with asyncio.timeout(SOON_S):
        while True:
            outcomes = await outcomes_of(reader.get_many(release_ref(release), keys))
            if not any(isinstance(outcome, StoreUnavailable) for outcome in outcomes):
                return outcomes
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
class StoreContract:
    """Tests of the store contract; a subclass provides the fixture `open_store`."""

    is_local = False
    """Whether the store has only files of this machine, which calls after `close` may open again."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Return a function that opens handles on one new store."""
        raise NotImplementedError("a subclass of StoreContract provides the fixture `open_store`")

    @pytest.fixture
    def stall(self) -> Stall:
        """Return a function that stalls the server of the store, for example by SIGSTOP, during a block."""
        pytest.skip("needs the fixture `stall`, which a subclass provides for a store over a network")

    @pytest_asyncio.fixture
    async def open_handle(self, open_store: OpenStore) -> AsyncIterator[OpenStore]:
        """Open handles, and close them twice when the test ends."""
        handles = list[Store]()

        def open_another() -> Store:
            handles.append(open_store())
            return handles[-1]

        yield open_another
        for handle in [*handles, *handles]:
            await handle.close()

    @pytest_asyncio.fixture
    async def store(self, open_handle: OpenStore) -> Store:
        """Open one handle."""
        return open_handle()

    async def test_a_new_store_has_an_empty_catalogue_a_clock_and_batch_sizes(self, store: Store) -> None:
        catalogue = await store.catalogue()
        assert (catalogue.generation, catalogue.live, catalogue.releases) == (0, None, ())
        assert catalogue.now > 0
        assert min(store.batch, store.coalesce) >= 1

    async def test_the_catalogue_has_the_time_of_a_clock(self, store: Store) -> None:
        """`now` is in seconds since 1970; a clock may count whole seconds."""
        began_at = time.time()
        first = (await store.catalogue()).now
        assert abs(first - began_at) < CLOCK_SKEW_S, "catalogue: `now` is not the time of a clock"
        await asyncio.sleep(1.1)
        passed_s = (await store.catalogue()).now - first
        assert 0 < passed_s < time.time() - began_at + 1, "catalogue: `now` stands still, or is not the time of a clock"

    async def test_rows_are_read_in_the_order_of_the_keys_by_another_handle(self, open_handle: OpenStore) -> None:
        """A handle is one opened store; two handles are as two processes. An absent key is None.

        A local store, as of files, also reads one key without awaiting.
        """
        await write_release(open_handle())
        reader = open_handle()
        keys = [*(row.key for row in reversed(ROWS)), "user:absent", ROWS[-1].key]
        values = [*(row.value for row in reversed(ROWS)), None, ROWS[-1].value]
        assert await reader.get_many(RELEASE, keys) == values
        assert await reader.get_many(RELEASE, []) == []
        if reader.is_local:
            assert [reader.get(RELEASE, key) for key in keys] == values
            await reader.warm(RELEASE)
            with pytest.raises(ReleaseNotFound):
                reader.get(OTHER_RELEASE, "user:1")

    async def test_a_read_ends_after_its_time_limit_and_harms_no_later_one(self, store: Store) -> None:
        """With too little time, the read raises StoreUnavailable, or returns it for the keys without an answer."""
        await write_release(store)
        keys = [row.key for row in ROWS]
        values = [row.value for row in ROWS]
        try:
            results = await asyncio.wait_for(store.get_many(RELEASE, keys, timeout_s=1e-6), 60)
        except StoreUnavailable as error:
            results = [error] * len(keys)
        for result, value in zip(results, values, strict=True):
            assert isinstance(result, StoreUnavailable) or result == value
        assert await store.get_many(RELEASE, keys) == values

    @pytest.mark.parametrize(("is_closed", "is_connected"), [(False, False), (False, True), (True, True)])
    async def test_a_read_of_a_stalled_store_ends_in_time_or_by_close_and_harms_no_other(
        self, stall: Stall, open_handle: OpenStore, *, is_closed: bool, is_connected: bool
    ) -> None:
        """A read of another handle with a longer limit, which began before, still waits when the read ends.

        A store that reads key by key, with a `coalesce` of 1, ends a read after its limit itself; for others, callers
        cancel it. `close` ends a read with StoreClosed, or another StoreUnavailable.
        """
        await write_release(open_handle())
        patient_reader = open_handle()
        reader = open_handle()
        if is_connected:
            for handle in (patient_reader, reader):
                await handle.get_many(RELEASE, ["user:1"])

        with stall():
            patient_read = asyncio.ensure_future(patient_reader.get_many(RELEASE, ["user:1"], timeout_s=LONG_S))
            limit_s = LONG_S if is_closed else SHORT_S
            read = asyncio.ensure_future(reader.get_many(RELEASE, ["user:1"], timeout_s=limit_s))
            ending = asyncio.ensure_future(asyncio.sleep(0))
            if is_closed:
                await asyncio.wait([read], timeout=SHORT_S)
                assert not read.done()
                ending = asyncio.ensure_future(reader.close())
            elif reader.coalesce > 1:
                asyncio.get_running_loop().call_later(SHORT_S, read.cancel)
            reads = [patient_read, read]
            ended, _ = await asyncio.wait(reads, timeout=SOON_S, return_when=asyncio.FIRST_COMPLETED)
            assert ended == {read}, "the read with the shorter limit, or of the closed handle, ends first"
            assert not (is_closed and read.cancelled()), "close: a read was cancelled"
            patient_read.cancel()
            await asyncio.wait(reads, timeout=SOON_S)
            assert patient_read.done(), "a read that is cancelled ends"
            for outcome in (*await outcomes_of(patient_read), *await outcomes_of(read)):
                assert isinstance(outcome, StoreUnavailable | asyncio.CancelledError)
        await asyncio.wait_for(ending, SOON_S)  # a close may wait for the server

        # A late reply must not be taken for that of another key.
        for handle in (patient_reader, open_handle() if is_closed else reader):
            keys = ["user:2", "user:%FF", "user:absent"]
            assert await read_until_available(handle, FIRST, keys) == [b"", b"percent", None]

    async def test_each_call_after_close_raises_store_closed_or_opens_local_files_again(
        self, open_handle: OpenStore
    ) -> None:
        """A swap may raise NotSent instead. Local files that are opened again have the same results as before."""
        writer = open_handle()
        stored = await commit_release(writer)

        store = open_handle()
        is_local = self.is_local or store.is_local
        reads = reads_of(store, FIRST)
        writes = writes_of(store, FIRST, OTHER_DRAFT, stored)
        expected: dict[str, object] = {name: await call() for name, call in reads.items()}
        expected |= dict.fromkeys(writes) | {"resume_point": ROWS[-1].key, "erase_rows": 0}
        await store.close()

        wrong = dict[str, object]()
        for name, call in (reads | writes).items():
            outcome = await outcome_of(asyncio.wait_for(call(), SOON_S))
            is_refused = isinstance(outcome, StoreClosed) or (name == "swap" and isinstance(outcome, NotSent))
            if not is_refused and not (is_local and outcome == expected[name]):
                wrong[name] = outcome
        assert wrong == {}, "of a closed store; a store of local files sets `is_local`"

    async def test_releases_and_incarnations_do_not_see_each_other(self, store: Store) -> None:
        """A release that is written again has a new incarnation, the name of its data."""
        erased = DRAFT
        again = erased._replace(incarnation="again")
        other = OTHER_DRAFT
        for draft in (erased, again, other):
            await store.create(draft, Plan(2, 100))
            await store.put(draft, [Row("user:1", draft.incarnation.encode())])
        await store.put(other, [Row("user:2", b"other")])
        for draft in (erased, again, other):
            await store.seal(draft)

        async def read_each() -> list[object]:
            missing = erased.release._replace(incarnation="gone")
            releases = (erased.release, missing, again.release, other.release)
            reads = (store.get_many(release, ["user:1", "user:2"]) for release in releases)  # perhaps one request
            return [
                ReleaseNotFound if isinstance(outcome, ReleaseNotFound) else outcome
                for outcome in await asyncio.gather(*reads, return_exceptions=True)
            ]

        of_others = [ReleaseNotFound, [b"again", None], [other.incarnation.encode(), b"other"]]
        assert await read_each() == [[erased.incarnation.encode(), None], *of_others]
        await store.erase(erased.release, allow_erasure)
        assert await read_each() == [ReleaseNotFound, *of_others]

    async def test_scan_yields_sealed_rows_in_ascending_order_of_key_bytes(self, store: Store) -> None:
        """Only a sealed release, one that takes no more rows, can be scanned; `prepare` makes it fast to read."""
        meta = Row("meta:manifest", b"{}")
        await store.create(DRAFT, PLAN)
        for start in range(0, len(ROWS), 2):
            await store.put(DRAFT, ROWS[start : start + 2])
        await store.put(DRAFT, [meta])

        assert not await store.is_sealed(RELEASE)
        with pytest.raises(ReleaseNotFound):
            await scan_rows(store)
        await store.seal(DRAFT)
        assert await store.is_sealed(RELEASE)
        assert not await store.is_sealed(OTHER_RELEASE)
        assert not await store.is_sealed(ReleaseRef(SECOND, "../no-incarnation"))
        for _ in range(2):
            await store.prepare(RELEASE)

        assert await scan_rows(store) == in_key_order([*ROWS, meta])
        await store.check_size(RELEASE)
        await store.check_integrity(RELEASE)
        await store.check_room(OTHER_DRAFT, Plan(1, 100))
        assert {type(sentence) for sentence in await store.warnings()} <= {str}
        assert Level.ERROR not in {finding.level for finding in await store.examine()}

    async def test_put_again_changes_nothing_and_a_sealed_release_takes_no_more_rows(
        self, open_handle: OpenStore
    ) -> None:
        """A publisher that was interrupted puts rows again; rows out of order are not lost."""
        store = open_handle()
        await store.create(DRAFT, PLAN)
        await store.put(DRAFT, ROWS[4:])
        await store.put(DRAFT, ROWS[4:])
        await store.put(DRAFT, ROWS[:6])
        await store.put(DRAFT, [Row("user:0", b"unsorted")])
        await store.put(DRAFT, [])
        for _ in range(2):
            await store.seal(DRAFT)
        for handle in (store, open_handle()):
            with pytest.raises(ReleaseConflict):
                await handle.put(DRAFT, [Row("user:late", b"x")])
        expected = in_key_order([*ROWS, Row("user:0", b"unsorted")])
        assert await scan_rows(store) == expected, "a scrub counts the rows of a scan"

    async def test_each_part_of_a_killed_writer_is_continued_from_its_resume_point(
        self, open_handle: OpenStore
    ) -> None:
        """Two processes of one writer each put a part: the rows with even keys, and those with odd ones."""
        even = [Row(f"user:{n:03}", b"even") for n in range(0, 100, 2)]
        odd = [Row(f"user:{n:03}", b"odd") for n in range(1, 100, 2)]
        dictionary = Row("meta:dictionary", b"early")
        first = open_handle()
        await first.create(DRAFT, Plan(100, 1000))
        await first.put(DRAFT, [dictionary])
        assert await first.resume_point(DRAFT) is None

        await first.put(DRAFT, even[:20], part=0)
        await first.put(DRAFT, odd[:30], part=1)
        await first.put(DRAFT, [dictionary], part=1)
        await first.put(DRAFT, even[20:40], part=0)
        await first.close()

        second = open_handle()
        await second.create(DRAFT, Plan(100, 1000))
        points = [await second.resume_point(DRAFT, part) for part in range(3)]
        assert points == [even[39].key, odd[29].key, None]

        await second.put(DRAFT, odd[30:], part=1)
        assert await second.resume_point(DRAFT, part=0) == even[39].key
        await second.put(DRAFT, even[40:], part=0)
        await second.seal(DRAFT)

        assert await scan_rows(second) == sorted([dictionary, *even, *odd])
        assert await second.get_many(RELEASE, [odd[7].key, even[7].key]) == [b"odd", b"even"]

    async def test_a_claimed_draft_takes_no_rows_from_its_earlier_writer(self, open_handle: OpenStore) -> None:
        """A second writer that creates the same draft claims it: it continues, and calls of the first are refused."""
        first = open_handle()
        second = open_handle()
        before = draft_of(FIRST, "before")
        after = draft_of(FIRST, "after")
        await first.create(before, PLAN)
        await first.put(before, ROWS[:3])

        try:
            await second.create(after, PLAN)
        except ReleaseConflict:  # the store knows that the earlier writer is alive
            await first.close()
            await second.create(after, PLAN)
        else:
            late = [first.put(before, [Row(key, b"x")]) for key in ("user:late", "meta:late")]
            for call in (*late, first.resume_point(before), first.seal(before)):
                fault = "put, resume_point or seal: the writer has lost the draft to another one"
                assert isinstance(await outcome_of(call), ReleaseConflict), fault

        assert await second.resume_point(after) == ROWS[2].key
        late_seal = await outcome_of(open_handle().seal(before))
        assert isinstance(late_seal, ReleaseConflict), "seal: a draft that another writer has claimed was sealed"
        await second.put(after, ROWS[3:])
        await second.seal(after)

        third = open_handle()
        with pytest.raises(ReleaseConflict):
            await third.create(before, PLAN)
        with pytest.raises(ReleaseConflict):
            await third.put(before, [Row("user:late", b"x")])
        await third.seal(draft_of(FIRST, "a third"))  # of a sealed release: no effect, whoever the writer is
        assert await scan_rows(third) == ROWS

    @pytest.mark.parametrize("erased", [False, True])
    async def test_no_row_is_put_by_a_writer_that_has_lost_its_draft(
        self, open_handle: OpenStore, *, erased: bool
    ) -> None:
        """A writer puts row after row, while another one claims the draft or erases it.

        After a claim, the rows of the first one end with the resume point that the second one finds.
        """
        early = [Row(f"user:{number:03}", b"early") for number in range(100)]
        own = Row("user:own", b"own")
        after = draft_of(FIRST, "after")

        async def put_each(store: Store) -> None:
            for row in early:
                await store.put(DRAFT, [row])

        first = open_handle()
        second = open_handle()
        await first.create(DRAFT, Plan(100, 1000))
        putting = asyncio.ensure_future(put_each(first))
        await asyncio.sleep(0)
        lose_draft = partial(second.create, after, Plan(100, 1000))
        if erased:
            lose_draft = partial(second.erase, after.release, allow_erasure)
        error = await outcome_of(lose_draft())
        point = "" if erased or error else await second.resume_point(after) or ""
        await asyncio.wait([putting], timeout=SHORT_S)
        putting.cancel()
        await outcome_of(putting)

        if erased:
            assert await second.incarnations() == [], "put or erase: a row was put into a draft that was erased"
        elif error is None:  # otherwise, the store knows that the earlier writer is alive
            await second.put(after, [own])
            await second.seal(after)
            expected = [*(row for row in early if row.key <= point), own]
            assert await scan_rows(second) == expected, "put: a row was put into a draft that another claimed"

    async def test_a_key_that_is_not_text_is_absent_and_fails_no_other(self, store: Store) -> None:
        await write_release(store)
        keys = ["user:1", "user:\ud800", "user:2"]
        assert await outcome_of(store.get_many(RELEASE, keys)) == [b"one", None, b""]
        if store.is_local:
            assert store.get(RELEASE, keys[1]) is None

    @pytest.mark.parametrize("seal", [True, False])
    async def test_a_catalogue_is_begun_over_drafts_but_not_over_sealed_releases(
        self, open_handle: OpenStore, *, seal: bool
    ) -> None:
        """A store with sealed releases and no catalogue has lost it; a new one would let their data be erased."""
        store = open_handle()
        await write_release(store, seal=seal)
        if not seal:
            begun = await begin_release(open_handle(), SECOND)
            assert (await store.catalogue()).find_draft(SECOND).incarnation == begun.incarnation
            return
        for work in (begin_release(store, SECOND), prune(store, grace_s=0)):
            assert "hotplate store rebuild" in str(await outcome_of(work)), "the next prune would erase the release"
        assert (await open_handle().catalogue()).generation == 0
        assert await scan_rows(store) == ROWS

    async def test_a_release_that_was_never_created_is_not_found(self, store: Store) -> None:
        calls = (
            store.get_many(RELEASE, ["user:1"]),
            store.put(DRAFT, ROWS),
            store.seal(DRAFT),
            scan_rows(store),
        )
        for call in (*calls, store.prepare(RELEASE)):
            with pytest.raises(ReleaseNotFound):
                await call

    @pytest.mark.parametrize("sealed", [True, False])
    async def test_erase_removes_every_row_and_is_idempotent(self, open_handle: OpenStore, *, sealed: bool) -> None:
        """A second erase, by another process, does nothing; other releases stay.

        `incarnations` names all data in the store, also of drafts, that is, unsealed releases.
        """
        store = open_handle()
        await write_release(store, seal=sealed)
        await write_release(store, SECOND, ROWS[:1])
        incarnations = [release_ref(release).incarnation for release in (FIRST, SECOND)]
        assert sorted(await store.incarnations()) == sorted(incarnations)
        await open_handle().erase(RELEASE, allow_erasure)
        await store.erase(RELEASE, allow_erasure)
        assert await store.incarnations() == incarnations[1:]
        with pytest.raises(ReleaseNotFound):
            await open_handle().get_many(RELEASE, ["user:1"])
        assert await store.get_many(OTHER_RELEASE, [ROWS[0].key]) == [ROWS[0].value]

        # Erased before others, and erased as the newest of the store, which may number it as the one before.
        for _ in range(2):
            await store.create(DRAFT, Plan(1, 100))
            assert await store.resume_point(DRAFT) is None, "erase: a resume point was left"
            await store.put(DRAFT, ROWS[:1])
            await store.erase(RELEASE, allow_erasure)

    @pytest.mark.parametrize("sealed", [True, False])
    async def test_erase_deletes_nothing_that_the_catalogue_read_last_forbids(
        self, open_handle: OpenStore, *, sealed: bool
    ) -> None:
        """`erase` calls a function with the catalogue as it is then; if that raises, all rows stay."""
        store = open_handle()
        await begin_draft(store)
        await write_release(store, seal=sealed)
        refuse = refusal()
        for _ in range(2):
            # A change after `store` has read the catalogue: the writer's lease of the draft is renewed.
            await swap_catalogue(store, catalogue_changes.renew(await store.catalogue(), DRAFT))
            for handle in (store, open_handle()):
                with pytest.raises(ReleaseConflict, match="live again"):
                    await handle.erase(RELEASE, refuse)
                refuse.assert_called_with(await store.catalogue())

        expected = ROWS
        if not sealed:  # the draft takes rows as before
            later = Row("user:later", b"later")
            await store.put(DRAFT, [later])
            await store.seal(DRAFT)
            expected = in_key_order([*ROWS, later])
        assert await scan_rows(open_handle()) == expected
        assert await store.get_many(RELEASE, ["user:1", "user:absent"]) == [b"one", None]

    async def test_rows_are_erased_if_the_catalogue_read_last_allows_it(self, open_handle: OpenStore) -> None:
        """Some stores delete rows of a sealed release; if the function that it calls raises, all rows stay."""
        store = open_handle()
        if not store.erases_rows:
            pytest.skip("erases no rows")
        await commit_release(store)
        await swap_catalogue(open_handle(), await store.catalogue())  # which *store* has not read
        refuse = refusal()
        with pytest.raises(ReleaseConflict, match="live again"):
            await store.erase_rows(RELEASE, ["user:1"], refuse)
        refuse.assert_called_with(await store.catalogue())
        assert await scan_rows(store) == ROWS

        for deleted in (2, 0):
            assert await store.erase_rows(RELEASE, ["user:1", "user:é", "user:no"], allow_erasure) == deleted
        reader = open_handle()
        assert await reader.get_many(RELEASE, ["user:1", "user:2", "user:é"]) == [None, b"", None]
        assert await scan_rows(reader) == [row for row in ROWS if row.key not in {"user:1", "user:é"}]
        with pytest.raises(ReleaseNotFound):
            await store.erase_rows(OTHER_RELEASE, ["user:1"], allow_erasure)

    async def test_a_release_that_is_scaled_down_can_be_read_and_prepared_again(self, store: Store) -> None:
        """A provisioned store reduces the cost of a release that is not live."""
        if not store.is_provisioned:
            pytest.skip("not provisioned")
        await write_release(store)
        for _ in range(2):
            await store.scale_down(RELEASE)
        assert await store.get_many(RELEASE, ["user:1"]) == [b"one"]
        await store.prepare(RELEASE)
        assert await scan_rows(store) == ROWS

    async def test_a_swap_compares_generation_token_and_store(self, store: Store) -> None:
        """A swap replaces the stored catalogue only if that is the one that the caller has read."""
        await begin_draft(store)
        stored = await store.catalogue()
        successor = catalogue_changes.succeed(stored, stored, "next", "here")
        later = replace(stored, generation=stored.generation + 1)
        for impostor in (later, replace(stored, token="another"), replace(stored, store_id="elsewhere"), Catalogue()):
            with pytest.raises(ReleaseConflict):
                await store.swap(impostor, successor)
        assert await store.catalogue() == stored

    async def test_records_are_swapped_with_the_catalogue_or_not_at_all(self, open_handle: OpenStore) -> None:
        """Records are small values by name, which a swap changes together with the catalogue.

        A RecordChange has a record's name, old and new value; if the record has the new one, the swap succeeds.
        """
        store = open_handle()
        reader = open_handle()
        assert await reader.records(["one", "other"]) == [None, None]
        stored = await begin_draft(store)
        first = [RecordChange("one", None, b'1 "\x00\xff'), RecordChange("other", None, b"x" * 1_000_000)]
        second = [RecordChange("one", first[0].after, b"2")]
        for records in (first, second):
            stored = await swap_catalogue(store, stored, records)
            assert await reader.records(["one", "absent"]) == [records[0].after, None]
        assert await reader.records(["other"]) == [first[1].after]

        refused = catalogue_changes.succeed(stored, stored, token="refused", store_id="here")
        with pytest.raises(ReleaseConflict):
            await store.swap(replace(stored, token="outdated"), refused, [RecordChange("one", b"2", b"3")])
        assert await store.records(["one"]) == [b"2"]

        repeated = [RecordChange("one", b"1", b"2")]  # of an attempt that changed the record, and has lost its reply
        stored = await swap_catalogue(store, stored, repeated)
        assert await reader.records(["one"]) == [b"2"]
        assert await reader.catalogue() == stored

    async def test_one_of_many_concurrent_swaps_wins_with_its_record(self, open_handle: OpenStore) -> None:
        """All have read the same catalogue and the same record, which the others do not replace."""
        await begin_draft(open_handle())
        handles = [open_handle() for _ in range(8)]
        for handle in handles:  # connect one after the other
            seen = await handle.catalogue()
        outcomes = await asyncio.gather(
            *(
                handle.swap(
                    seen,
                    catalogue_changes.succeed(seen, seen, f"t{n}", "here"),
                    [RecordChange("one", None, b"t%d" % n)],
                )
                for n, handle in enumerate(handles)
            ),
            return_exceptions=True,
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["ReleaseConflict"] * 7
        winner = b"t%d" % outcomes.index(None)
        assert await handles[0].records(["one"]) == [winner], "swap: one that lost has replaced a record"

    async def test_an_unreadable_catalogue_is_replaced_by_one_of_several_handles(self, open_handle: OpenStore) -> None:
        """`swap` takes the bytes of a damaged record that a handle read, so that only the first one replaces it."""
        store = open_handle()
        committed = await commit_release(store)
        damaged = replace(committed, releases=committed.releases * 2)  # an entry twice is invalid
        await swap_catalogue(store, damaged)
        unreadable = await outcome_of(open_handle().catalogue())
        if isinstance(unreadable, Catalogue):
            pytest.skip("this store has no record that can be damaged")
        assert isinstance(unreadable, CatalogueUnreadable)
        record = unreadable.record
        rebuilt = catalogue_changes.succeed(Catalogue(), committed, "rebuilt", "elsewhere")
        assert record is not None

        with pytest.raises(ReleaseConflict):
            await store.swap(record + b" ", rebuilt)
        handles = [open_handle() for _ in range(3)]
        tries = (handle.swap(record, rebuilt) for handle in handles)
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["ReleaseConflict"] * 2

        assert await open_handle().catalogue() == rebuilt
        with pytest.raises(ReleaseConflict):
            await store.swap(record, rebuilt)

    async def test_a_poll_reads_the_catalogue_and_soon_each_change(self, open_handle: OpenStore) -> None:
        """`poll` is how a service follows a store, every `poll_s` seconds; it may lag behind a swap for a while.

        A canary is a release that a percentage of the users gets, for some days if it is an experiment.
        """
        writer = open_handle()
        reader = open_handle()
        for release in (FIRST, SECOND):
            catalogue = await begin_draft(writer, release)
            await write_release(writer, release, ROWS)
        assert await reader.poll() == catalogue

        failed_gates = ("ndcg", "overlap@10")
        catalogue = catalogue_changes.commit(catalogue, DRAFT)
        catalogue = catalogue_changes.commit(catalogue, OTHER_DRAFT, failed_gates)
        catalogue = await swap_catalogue(writer, catalogue_changes.activate(catalogue, FIRST))
        for percent, days in ((2.5, None), (50.0, 14)):
            change = catalogue_changes.start_canary(catalogue, SECOND, percent, days, overridden=failed_gates)
            catalogue = await swap_catalogue(writer, change)
            assert catalogue.canary == Canary(SECOND, percent, salt=SECOND)
            assert reader.poll_s > 0
            async with asyncio.timeout(60):
                polled = await reader.poll()
                while polled != catalogue:
                    await asyncio.sleep(reader.poll_s)
                    polled = await reader.poll()

    async def test_odd_release_ids_are_refused(self, store: Store) -> None:
        for odd in ("../../etc/passwd", "", "a/b", "a\x00b"):
            with pytest.raises(StoreError):
                await store.get_many(ReleaseRef(ReleaseId(odd), odd), ["user:1"])

    async def test_erased_users_stay_erased_after_rollback_and_prune(self, store: Store) -> None:
        """In each release, `verify` counts the rows of an erased user as erased, and not as missing.

        The rows of a named list have its name in their keys, as user@basket:1.
        """
        body = body_of(b'{"id":"x","score":1}')
        keys = ["item@basket:x", "popular:", "popular@basket:", "popular@basket:é", "user:1", "user:2", "user@basket:1"]

        async def rows() -> AsyncIterator[Sequence[Row]]:
            yield [Row(key, body) for key in keys]

        results = [await publish_release(store, rows(), plan=Plan(len(keys), 400)) for _ in range(2)]
        first, second = (result.manifest.release for result in results)
        stored = (await store.catalogue()).find(second).ref
        assert (await verify(store, stored)).named == {"basket": ("é",)}
        assert all(isinstance(result, bytes) for result in await store.get_many(stored, keys))
        assert [row.key async for row in store.scan(stored)] == [*keys[:1], "meta:manifest", *keys[1:]]
        assert (await find_users(store, ["1"])).lists == {first: ("basket",), second: ("basket",)}

        await erase_users(store, ["1"])
        erased = await erased_from(store)
        assert [key for key in keys if erased.covers(key)] == ["user:1", "user@basket:1"]
        assert await rollback(store) == first
        for release in (first, second):
            await verify(store, (await store.catalogue()).find(release).ref)
        await prune(store, keep=0, grace_s=0.0)
        searched = await find_users(store, ["1", "2"])
        assert searched.erased == ("1",)
        assert "2" in searched.holding[first]
