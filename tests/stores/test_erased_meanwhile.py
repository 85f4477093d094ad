"""Users are erased between any two steps of a change of releases: no row of them is left where rows are deleted.

A process is held before one of its calls to the store, until another process has made some or all of its own.
"""

import asyncio
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from hotplate.stores import lifecycle as life
from hotplate.stores import transitions as changes
from hotplate.stores.catalogue import ReleaseId, ReleaseRef, State
from hotplate.stores.change_warnings import collected_warnings
from hotplate.stores.doctor import examine
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import ReleaseConflict, StoreError, StoreUnavailable
from hotplate.stores.file.backup import backup, restore
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.publication import take_over
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.store import Row, Store
from hotplate.stores.transfer import copy, repair
from hotplate.stores.users import erase_users, find_users
from hotplate.stores.verification import verify
from tests.support.memory_store import MemoryStore
from tests.support.service import a_list
from tests.support.soak import SEED, scaled
from tests.support.stores import OpenStore, lapse, publish

ROWS = [
    Row("popular:", a_list("p1")),
    Row("popular@basket:", a_list("p1")),
    *(Row(f"user:{number}", a_list("a", "b")) for number in range(8)),
    Row("user@basket:1", a_list("c")),
]
USER = "1"

PRIMITIVES = (
    "catalogue", "records", "get_many", "create", "put", "resume_point", "seal", "is_sealed", "prepare", "swap",
    "erase_rows", "incarnations",
)  # fmt: skip

on_three_stores = pytest.mark.parametrize("open_store", ["file", "redis", "cosmos+http"], indirect=True)

# A change of the releases of a store by one process.
Change = Callable[[Store], Coroutine[Any, Any, object]]


class Held:
    """A process over a handle on the store, which is held before a chosen call.

    *at* is the number of that call among all of them, or among those of the primitive *of*.
    """

    def __init__(self, store: Store, at: float, of: str = "") -> None:
        self.store = store
        self.calls = 0
        self._at = at
        self._of = of
        self._task: asyncio.Task[object] | None = None
        self._is_killed = False
        self._is_held = asyncio.Event()
        self._may_go_on = asyncio.Event()
        for name in PRIMITIVES:
            if hasattr(store, name):
                setattr(store, name, self._counted(name, getattr(store, name)))

    def _counted(self, name: str, primitive: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def call(*arguments: object, **named: object) -> object:
            self.calls += self._of in ("", name)
            if self._of in ("", name) and self.calls == self._at:
                self._is_held.set()
                await self._may_go_on.wait()
            if self._is_killed:
                raise StoreUnavailable("the process was killed")
            return await primitive(*arguments, **named)

        return call

    async def start(self, work: Coroutine[Any, Any, object]) -> None:
        """Run until the chosen call, or to the end."""
        self._task = asyncio.create_task(work)
        held = asyncio.create_task(self._is_held.wait())
        await asyncio.wait([self._task, held], return_when=asyncio.FIRST_COMPLETED)
        held.cancel()

    async def finish(self) -> None:
        self._may_go_on.set()
        assert self._task is not None
        await self._task

    @property
    def failed(self) -> bool:
        """Whether it has ended with an error."""
        return self._task is not None and self._task.exception() is not None

    async def kill(self) -> None:
        """End the process: none of its further calls reaches the store."""
        self._is_killed = True
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.store.close()


async def assert_erased(store: Store, user: str = USER) -> None:
    """The user is erased, every release verifies, and no row of the user is left where rows are deleted."""
    erased = await erased_from(store)
    assert erased.covers_user(user)
    for entry in (await store.catalogue()).committed:
        await verify(store, entry.ref)
        if store.erases_rows:
            assert [row.key async for row in store.scan(entry.ref) if erased.covers(row.key)] == [], entry
    if store.erases_rows:
        assert (await find_users(store, [user])).holding == {}


async def publish_one(store: Store) -> object:
    return await publish(store, ROWS, 3)


@on_three_stores
@pytest.mark.parametrize(
    ("primitive", "number"),
    [("swap", 1), ("create", 1), ("put", 1), ("put", 3), ("seal", 1), ("swap", 2), ("prepare", 1), ("swap", 3)],
    ids=["begin", "create", "write", "write-later", "seal", "commit", "prepare", "activate"],
)
async def test_user_erased_before_any_step_of_a_publish_has_no_rows_in_it(
    open_store: OpenStore, primitive: str, number: int
) -> None:
    store = open_store()
    await publish(store, ROWS)
    publisher = Held(open_store(), number, primitive)
    await publisher.start(publish_one(publisher.store))
    await erase_users(store, [USER])
    await publisher.finish()
    await assert_erased(store)


@on_three_stores
async def test_publish_erase_find_and_doctor_agree_on_a_user_erased_meanwhile(open_store: OpenStore) -> None:
    store = open_store()
    await publish(store, ROWS)
    publisher = Held(open_store(), 1, "seal")
    with collected_warnings() as warnings:
        await publisher.start(publish_one(publisher.store))
        erasure = await erase_users(store, [USER])
        (draft,) = erasure.being_written
        assert (await find_users(store, [USER])).being_written == (draft,)
        searched_later = f"release {draft} is being written, and is searched for erased users when it is committed"
        assert searched_later in await doctor_on_erased_users(store)
        await publisher.finish()

    found = await find_users(store, [USER])
    said = await doctor_on_erased_users(store)
    assert found.being_written == ()
    if store.erases_rows:
        assert f"release {draft} was begun; 2 rows of them were deleted" in " ".join(warnings)
        assert (found.holding, said) == ({}, "1")
    else:
        assert f"release {draft} was begun; 2 rows of them are kept, hidden, until it is pruned" in " ".join(warnings)
        assert found.holding[draft] == (USER,)
        assert f"release {draft} keeps rows of them, hidden, until it is pruned" in said


async def doctor_on_erased_users(store: Store) -> str:
    return {finding.subject: finding.sentence for finding in await examine(store)}["erased users"]


@on_three_stores
async def test_draft_of_a_killed_publisher_is_resumed_without_the_erased_user(open_store: OpenStore) -> None:
    store = open_store()
    await publish(store, ROWS)
    publisher = Held(open_store(), 2, "swap")  # of the commit
    await publisher.start(publish_one(publisher.store))
    (draft,) = (await erase_users(store, [USER])).being_written
    await publisher.kill()
    await lapse(store)
    again = await take_over(store, draft)
    with suppress(ReleaseConflict):  # it was begun with the rows of the user
        await publish(store, ROWS, 3, draft=again)
    await assert_erased(store)


@on_three_stores
async def test_sealed_draft_that_a_rebuild_makes_a_release_has_no_rows_of_erased_users(open_store: OpenStore) -> None:
    store = open_store()
    live = await publish(store, ROWS)
    publisher = Held(open_store(), 2, "swap")  # of the commit
    await publisher.start(publish_one(publisher.store))
    (draft,) = (await erase_users(store, [USER])).being_written
    await publisher.kill()
    await rebuild_from_nothing(store, live)
    assert (await store.catalogue()).find(draft).state is State.READY
    await assert_erased(store)


class CountingStore(MemoryStore):
    """Counts its scans."""

    scans = 0

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        self.scans += 1
        async for row in super().scan(release):
            yield row


async def test_user_erased_during_a_publish_takes_one_more_search() -> None:
    store = CountingStore()
    await publish(store, ROWS)
    scans = store.scans
    publisher = Held(store, 1, "seal")
    await publisher.start(publish_one(store))
    await erase_users(store, [USER])
    before = store.scans
    await publisher.finish()
    assert store.scans - before == scans + 1
    await assert_erased(store)


class ErasingStore(MemoryStore):
    """Erases one more of the *victims* at the end of each scan."""

    def __init__(self, victims: Sequence[str]) -> None:
        super().__init__()
        self.victims = list(victims)

    async def scan(self, release: ReleaseRef) -> AsyncGenerator[Row]:
        async for row in super().scan(release):
            yield row
        if self.victims and self.current.generation > 1:
            await erase_users(self, [self.victims.pop()])


async def test_publish_ends_although_users_are_erased_during_each_search() -> None:
    users = [f"victim-{number}" for number in range(40)]
    rows = [*ROWS[:2], *(Row(f"user:{user}", a_list("a")) for user in sorted(users)), Row("user:z", a_list("b"))]
    store = ErasingStore(users)
    await publish(store, rows)
    await publish(store, rows, 3)
    erased = set(users) - set(store.victims)
    assert len(store.victims) > 20
    store.victims.clear()
    for user in erased:
        await assert_erased(store, user)


async def rebuild_from_nothing(store: Store, live: ReleaseId | None = None) -> None:
    """Damage the catalogue, and rebuild it; by default, with the release live that is live now."""
    is_damaged = False
    while not is_damaged:
        before = await store.catalogue()
        contradiction = replace(before, releases=before.releases * 2)
        with suppress(ReleaseConflict):  # an erasure was first
            await store.swap(before, changes.succeed(before, contradiction, "spoilt", ""))
            is_damaged = True
    surveyed = await survey(store)
    await rebuild(store, surveyed, live or before.live or surveyed.only())


@pytest.fixture
async def source() -> MemoryStore:
    store = MemoryStore()
    await publish(store, ROWS)
    return store


class Changes:
    """Prepares the changes of releases that erasures meet; *folder* is for backups."""

    def __init__(self, store: Store, source: Store, folder: Path, rows: Sequence[Row] = ROWS) -> None:
        self.store = store
        self.source = source
        self.folder = folder
        self.rows = rows

    async def prepared(self, name: str) -> Change:
        """Publish what a change needs, and return the change."""
        await publish(self.store, self.rows)
        prepare: Callable[[], Awaitable[Change]] = getattr(self, name)
        return await prepare()

    async def publish(self) -> Change:
        return lambda store: publish(store, self.rows, 3)

    async def activate(self) -> Change:
        ready = await publish(self.store, self.rows, live=False)
        return lambda store: life.activate(store, ready)

    async def rollback(self) -> Change:
        await publish(self.store, self.rows)
        return life.rollback

    async def copy(self) -> Change:
        copied = await publish(self.source, self.rows)
        return lambda store: copy(self.source, store, copied)

    async def repair(self) -> Change:
        copied = await publish(self.source, self.rows)
        await copy(self.source, self.store, copied)
        return lambda store: repair(store, self.source, copied)

    async def rebuild(self) -> Change:
        return rebuild_from_nothing

    async def restore(self) -> Change:
        if not isinstance(self.store, LmdbStore):
            pytest.skip("backups are of files")
        saved = self.folder / secrets.token_hex(4)
        await backup(self.store, saved)
        return lambda store: restore(saved, store, over=True)  # type: ignore[arg-type]  # it is of files, too


CHANGES = ("publish", "activate", "rollback", "copy", "repair", "rebuild", "restore")


@on_three_stores
@pytest.mark.parametrize("name", ["activate", "rollback", "copy", "repair", "restore"])
async def test_user_erased_before_the_last_swap_of_a_change_has_no_rows_left(
    open_store: OpenStore, tmp_path: Path, source: MemoryStore, name: str
) -> None:
    store = open_store()
    change = await Changes(store, source, tmp_path).prepared(name)
    changer = Held(open_store(), 2 if name in ("copy", "repair") else 1, "records" if name == "restore" else "swap")
    await changer.start(change(changer.store))
    await erase_users(store, [USER])
    await changer.finish()
    await assert_erased(store)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@on_three_stores
@pytest.mark.parametrize("name", CHANGES)
async def test_user_erased_in_any_interleaving_with_a_change_has_no_rows_left(
    open_store: OpenStore,
    tmp_path: Path,
    source: MemoryStore,
    name: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Either process is held before any of its calls, while the other makes some or all of its own."""
    store = open_store()
    drawn = random.Random(f"{SEED} {name}")
    refused = 0
    rounds = scaled(15 if "cosmos" in str(type(store)).lower() else 60)
    for number in range(rounds):
        user = f"victim-{number}"
        rows = [*ROWS[:2], Row(f"user:{user}", a_list("a")), Row("user:other", a_list("b"))]
        change = await Changes(store, source, tmp_path, rows).prepared(name)
        held_at = [drawn.choice([inf, drawn.randrange(1, 40)]) for _ in range(2)]
        changer = Held(open_store(), held_at[0])
        eraser = Held(open_store(), held_at[1])
        works = [(changer, change(changer.store)), (eraser, erase_users(eraser.store, [user]))]
        if drawn.random() < 0.5:
            works.reverse()
        for process, work in works:
            await process.start(work)
        for process, _ in works:
            try:
                await process.finish()
            except StoreError:
                refused += process is changer
        if eraser.failed:  # as while the catalogue cannot be read: the command is given again
            await erase_users(store, [user])
        await assert_erased(store, user)
        await life.prune(store, keep=0, grace_s=0.0)
        for process in (changer, eraser):
            await process.store.close()
    record_property("rounds", rounds)
    record_property("refused", refused)
    assert refused < rounds / 2
