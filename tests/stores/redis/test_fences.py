"""A server that returns with older data at any command: nothing that is live in them is erased."""

from collections.abc import AsyncIterator
from contextlib import suppress

import pytest

from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreUnavailable
from hotplate.stores.lifecycle import activate, prune
from hotplate.stores.rebuild import rebuild, survey
from hotplate.stores.redis.keys import Keys
from hotplate.stores.store import Row, Store
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.older_servers import Snapshots
from tests.support.redis_proxy import Cut, RedisProxy, counting
from tests.support.redis_server import RedisServer
from tests.support.soak import in_soak
from tests.support.stores import lists_of, publish, ref_of

ROWS = [Row("popular:", b"{}"), *lists_of(600)]


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
    """Publish a release for a prune to erase, save the data while it is live, and publish one to keep."""
    release = await publish(store, ROWS)
    snapshots.save()
    for _ in range(1 + keep):
        await publish(store, ROWS[:1])
    return release


@pytest.mark.soak
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("every", [False, True])
async def test_prune_never_erases_what_is_live_in_the_data_of_a_restarted_server(
    store: Store, proxy: RedisProxy, server: RedisServer, keep: int, *, every: bool
) -> None:
    snapshots = Snapshots(server)
    release = await live_before_prune(store, snapshots, keep)
    proxy.arm()
    assert await prune(store, keep=keep, grace_s=0) == [release]
    commands = [*proxy.commands]
    for number, name in enumerate(commands):
        for cut in Cut if every else (Cut.AFTER,):
            server.execute_command("FLUSHALL")
            release = await live_before_prune(store, snapshots, keep)
            proxy.arm(number, snapshots.restart, cut)
            with suppress(ReleaseConflict, StoreUnavailable):
                await prune(store, keep=keep, grace_s=0)
            catalogue = await again(store)
            assert catalogue == release, f"{number}: {name}, {cut}"
            assert (await verify(store, await ref_again(store, release))).rows == len(ROWS), f"{number}: {name}, {cut}"
            await prune(store, keep=keep, grace_s=0)
            assert await store.incarnations() == [(await ref_again(store, release)).incarnation]


async def again(store: Store) -> ReleaseId | None:
    """Return the live release, once the store has found its server."""
    for _ in range(100):
        try:
            return (await store.catalogue()).live
        except StoreError:
            continue
    return (await store.catalogue()).live


async def ref_again(store: Store, release: ReleaseId) -> ReleaseRef:
    """Return a release's reference; a handle fails once for each of its connections to the server before."""
    for _ in range(100):
        try:
            return await ref_of(store, release)
        except StoreUnavailable:
            continue
    return await ref_of(store, release)


async def test_activate_makes_nothing_live_that_a_restarted_server_lacks(
    store: Store, proxy: RedisProxy, server: RedisServer
) -> None:
    snapshots = Snapshots(server)
    first = await publish(store, ROWS[:5])
    snapshots.save()
    second = await publish(store, ROWS[:5], live=False)
    published = server.copied("test")
    proxy.arm()
    await activate(store, second)
    for number, name in enumerate([*proxy.commands]):
        server.put_back("test", published)
        proxy.arm(number, snapshots.restart, Cut.AFTER)
        with suppress(ReleaseConflict, ReleaseNotFound, StoreUnavailable):
            await activate(store, second)
        assert len(proxy.commands) > number, "the server was not restarted"
        assert await again(store) == first, f"{number}: {name}"


async def test_rebuild_names_nothing_that_a_restarted_server_lacks(
    store: Store, proxy: RedisProxy, server: RedisServer
) -> None:
    snapshots = Snapshots(server)
    catalogue = Keys("test").catalogue
    await publish(store, ROWS[:5])
    server.execute_command("RENAME", catalogue, "aside")
    snapshots.save()
    server.execute_command("RENAME", "aside", catalogue)
    second = await publish(store, ROWS[:5])
    server.execute_command("DEL", catalogue)
    published = server.copied("test")
    surveyed = await survey(store)
    proxy.arm()
    assert (await rebuild(store, surveyed, second)).live == second
    for number, name in enumerate([*proxy.commands]):
        server.put_back("test", published)
        surveyed = await survey(store)
        proxy.arm(number, snapshots.restart, Cut.AFTER)
        with suppress(ReleaseConflict, ReleaseNotFound, StoreUnavailable):
            await rebuild(store, surveyed, second)
        assert len(proxy.commands) > number, "the server was not restarted"
        assert await again(store) is None, f"{number}: {name}"


@pytest.mark.parametrize("step", [5, in_soak(1)])
async def test_erasure_on_a_restarted_server_leaves_no_unrecorded_loss(
    store: Store, proxy: RedisProxy, server: RedisServer, step: int
) -> None:
    snapshots = Snapshots(server)
    release = await publish(store, ROWS[:20])
    snapshots.save()
    published = server.copied("test")
    proxy.arm()
    await erase_users(store, ["000003"])
    for number in range(0, len(proxy.commands), step):
        server.put_back("test", published)
        proxy.arm(number, snapshots.restart, Cut.AFTER)
        with suppress(StoreUnavailable):
            await erase_users(store, ["000003"])
        assert len(proxy.commands) > number, "the server was not restarted"
        assert await again(store) == release
        await verify(store, await ref_again(store, release))
