"""A server that returns with older data between two calls of a verb: the catalogue names whole releases only.

All connections are idle at the restart, and redis-py opens them again without an error. In `test_fences`, a connection
that waits for a reply is cut.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from hotplate.stores.catalogue import Catalogue
from hotplate.stores.erasure_log import erased_from
from hotplate.stores.errors import CatalogueUnreadable, StoreError, StoreUnavailable
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.redis.errors import RowsLost
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.store import RedisStore
from hotplate.stores.store import Plan, Row
from hotplate.stores.verification import verify
from tests.support.older_servers import Snapshots
from tests.support.redis_server import OpenRedis, RedisServer
from tests.support.soak import in_soak
from tests.support.stores import FIRST, SECOND, draft_of, publish, publish_three, with_each_verb

ROWS = [Row("popular:", b"{}"), *(Row(f"user:{number}", b"list of %d" % number) for number in range(9))]
CATALOGUE = Keys("test").catalogue

CALLS = (
    "catalogue", "create", "erase", "erase_rows", "get_many", "incarnations", "prepare", "put", "records",
    "resume_point", "seal", "swap",
)  # fmt: skip

# Long enough for connections to notice their end; if not, calls fail as after a cut.
NOTICED_S = 0.02

Verb = Callable[[RedisStore], Awaitable[object]]


class Interruptions:
    """Saves the server's data before one call of a store, and restarts it with them before a later one."""

    def __init__(self, store: RedisStore, snapshots: Snapshots) -> None:
        self.calls = list[str]()
        self._save_at: int | None = None
        self._restart_at: int | None = None
        self._snapshots = snapshots
        for name in CALLS:
            setattr(store, name, partial(self._call, name, getattr(store, name)))

    async def recorded(self, work: Awaitable[object]) -> list[str]:
        """Await *work* without interruptions; return the calls that it made."""
        self.calls.clear()
        await work
        return [*self.calls]

    async def interrupted(self, work: Awaitable[object], *, save_at: int | None, restart_at: int) -> None:
        """Await *work*, which may fail; the calls are counted from 0."""
        self.calls.clear()
        self._save_at = save_at
        self._restart_at = restart_at
        with suppress(StoreError):
            await work
        assert self._restart_at is None, "the server was not restarted"

    async def _call(
        self,
        name: str,
        call: Callable[..., Awaitable[Any]],
        *args: object,
        **options: object,
    ) -> Any:  # noqa: ANN401 -- the call's result
        number = len(self.calls)
        self.calls.append(name)
        if number == self._save_at:
            self._save_at = None
            self._snapshots.save()
        if number == self._restart_at:
            self._restart_at = None
            self._snapshots.restart()
            await asyncio.sleep(NOTICED_S)
        return await call(*args, **options)


@pytest.fixture
def store(server: RedisServer, opened: OpenRedis) -> RedisStore:
    return opened(server.url())


async def rebuild_with_last(store: RedisStore) -> None:
    contents = await survey(store)
    await rebuild(store, contents, list(contents.candidates)[-1])


async def catalogue_of(store: RedisStore) -> Catalogue:
    while True:
        with suppress(StoreUnavailable):
            return await store.catalogue()


async def check_whole(store: RedisStore, context: str) -> None:
    """Verify each release that the catalogue names."""
    catalogue = await catalogue_of(store)
    erased = await erased_from(store)
    for entry in catalogue.committed:
        try:
            await verify(store, entry.ref, erased=erased)
        except StoreError as error:
            pytest.fail(f"{context}: {entry.id} is {entry.state}, but {error}")


@pytest.mark.parametrize("every", [False, in_soak(True)])
@with_each_verb(ROWS)
async def test_named_releases_are_whole_after_a_restart_between_calls(
    store: RedisStore, server: RedisServer, verb: Verb, *, every: bool
) -> None:
    """The data are those at the begin and after the first change of the catalogue, or at *every* call."""
    interruptions = Interruptions(store, Snapshots(server))
    await publish_three(store, ROWS)
    published = server.copied("test")
    calls = await interruptions.recorded(verb(store))
    saves = range(len(calls)) if every else (0, calls.index("swap") + 1)
    for save_at in saves:
        for restart_at in range(save_at + 1, len(calls)):
            server.put_back("test", published)
            await interruptions.interrupted(verb(store), save_at=save_at, restart_at=restart_at)
            context = f"data of {save_at} {calls[save_at]}, restart before {restart_at} {calls[restart_at]}"
            await check_whole(store, context)


async def test_lost_rows_are_found_by_a_process_that_writes_two_releases(
    store: RedisStore, server: RedisServer
) -> None:
    """The other release is written first after the restart, over the new connection."""
    snapshots = Snapshots(server)
    lossy = draft_of(FIRST)
    other = draft_of(SECOND)
    for draft in (lossy, other):
        await store.create(draft, Plan(len(ROWS), 1000))
        await store.put(draft, ROWS[:3])
    snapshots.save()
    await store.put(lossy, ROWS[3:6])
    snapshots.restart()
    await asyncio.sleep(NOTICED_S)
    await store.put(other, ROWS[3:])
    with pytest.raises(RowsLost, match="has lost rows of release"):
        await store.put(lossy, ROWS[6:])
    with pytest.raises(RowsLost, match="has lost rows of release"):
        await store.seal(lossy)
    await store.seal(other)


@pytest.mark.parametrize("lost", ["absent", "unreadable"])
async def test_rebuild_names_whole_releases_after_a_restart_between_calls(
    store: RedisStore, server: RedisServer, lost: str
) -> None:
    """The older data have no readable catalogue, either, and the first release only."""
    snapshots = Snapshots(server)
    interruptions = Interruptions(store, snapshots)

    def lose_catalogue() -> None:
        server.execute_command("RENAME", CATALOGUE, "aside")
        if lost == "unreadable":
            server.execute_command("SET", CATALOGUE, "{")

    await publish(store, ROWS)
    lose_catalogue()
    snapshots.save()
    server.execute_command("RENAME", "aside", CATALOGUE)
    for _ in range(2):
        await publish(store, ROWS)
    lose_catalogue()
    published = server.copied("test")
    calls = await interruptions.recorded(rebuild_with_last(store))
    for restart_at in range(len(calls)):
        server.put_back("test", published)
        await interruptions.interrupted(rebuild_with_last(store), save_at=None, restart_at=restart_at)
        with suppress(CatalogueUnreadable):
            await check_whole(store, f"restart before {restart_at} {calls[restart_at]}")
