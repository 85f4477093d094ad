"""A server that returns with older data at any command: nothing that is live in them is erased."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseConflict, StoreError, StoreUnavailable
from hotplate.stores.lifecycle import prune
from hotplate.stores.store import Row, Store
from hotplate.stores.verification import verify
from tests.support.older_servers import Snapshots
from tests.support.redis_proxy import RedisProxy, counting
from tests.support.redis_server import RedisServer, running
from tests.support.stores import publish, ref_of

ROWS = [Row("popular:", b"{}"), *(Row(f"user:{n:06}", b"list of %d" % n) for n in range(600))]

# Commands after which the data of a server are others.
CHANGES = {"EVAL", "DEL", "UNLINK", "SREM", "LREM"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[RedisProxy]:
    async with counting(server.port) as between:
        yield between


@pytest.fixture
async def store(proxy: RedisProxy) -> AsyncIterator[Store]:
    opened = connect(f"redis://127.0.0.1:{proxy.port}/0?prefix=test")
    yield opened
    await opened.close()


async def live_before_prune(store: Store, snapshots: Snapshots, keep: int) -> ReleaseId:
    """Publish what a prune will erase, save the data in which it is live, and publish what is kept."""
    release = await publish(store, ROWS)
    snapshots.save()
    for _ in range(1 + keep):
        await publish(store, ROWS[:1])
    return release


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("every", [False, pytest.param(True, id="soak", marks=pytest.mark.soak)])
async def test_prune_never_erases_what_is_live_in_the_data_of_a_restarted_server(
    store: Store, proxy: RedisProxy, server: RedisServer, keep: int, *, every: bool
) -> None:
    snapshots = Snapshots(server)
    release = await live_before_prune(store, snapshots, keep)
    proxy.arm()
    assert await prune(store, keep=keep, grace_s=0) == [release]
    commands = [*proxy.commands]
    for number, name in enumerate(commands):
        for is_executed in (False, True) if every else (False,):
            if not every and name not in CHANGES:
                continue
            server.execute_command("FLUSHALL")
            release = await live_before_prune(store, snapshots, keep)
            proxy.arm(number, snapshots.restart, is_executed=is_executed)
            with suppress(ReleaseConflict, StoreUnavailable):
                await prune(store, keep=keep, grace_s=0)
            found = await again(store)
            assert found == release, f"{number}: {name}"
            assert (await verify(store, await ref_of(store, release))).rows == len(ROWS), f"{number}: {name}"
            await prune(store, keep=keep, grace_s=0)
            assert await store.incarnations() == [(await ref_of(store, release)).incarnation]


async def again(store: Store) -> ReleaseId | None:
    """Return what is live, once the store has found its server."""
    for _ in range(100):
        try:
            return (await store.catalogue()).live
        except StoreError:
            continue
    return (await store.catalogue()).live
