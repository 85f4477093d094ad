"""Faults of a real server: what a caller sees, never for longer than it waits, and that it recovers."""

import asyncio
import secrets
import shutil
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from hotplate.stores import transitions as changes
from hotplate.stores.errors import ReleaseConflict, ReleaseNotFound, StoreError, StoreFull, StoreUnavailable
from hotplate.stores.lifecycle import activate, prune, rollback
from hotplate.stores.publication import publish_release
from hotplate.stores.redis import replication
from hotplate.stores.redis import server as server_module
from hotplate.stores.redis import store as redis_store
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.store import Plan, ReadResult, Row
from hotplate.stores.users import erase_users
from hotplate.stores.verification import verify
from tests.support.interrupted import turns_with_sockets_left
from tests.support.redis_sentinel import sentinel_deployment
from tests.support.redis_server import OpenRedis, RedisServer, certify, replica_of, running
from tests.support.stores import (
    FIRST,
    SECOND,
    as_bodies,
    begin_draft,
    draft_of,
    expect_rows,
    lists_of,
    ref_of,
    release_ref,
    swap_catalogue,
    write_release,
)
from tests.support.stores import publish as publish_rows
from tests.support.streams import open_sockets, until_sockets_are_closed
from tests.support.tcp_proxy import Proxy, through

USERS = [Row(f"user:{n:06}", b"list of %06d" % n) for n in range(2000)]

TEN = [Row("popular:", b"{}"), *lists_of(10, b"x" * 100)]

# Generous: the test asserts recovery, not its speed on a busy machine.
RECOVERS_WITHIN_S = 30.0


# The loop of tests and jobs, and the loop of a service, with transports that are not asyncio's.
LOOPS = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])

# How long a tier waits for a store.
BUDGET_S = 0.05

Factory = Callable[[], asyncio.AbstractEventLoop]

T = TypeVar("T")


@pytest.fixture
def redis(server: RedisServer, opened: OpenRedis) -> RedisStore:
    return opened(server.url())


@pytest.fixture
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    async with through(server.port) as between:
        yield between


@pytest.fixture
def remote(proxy: Proxy, opened: OpenRedis) -> RedisStore:
    return opened(f"redis://127.0.0.1:{proxy.port}/0?prefix=test")


async def try_read(
    store: RedisStore, row: Row = USERS[7], budget_s: float = 0.05
) -> list[ReadResult] | StoreError | None:
    """Read as the service does: the slots, the error, or None for nothing within the budget."""
    try:
        async with asyncio.timeout(budget_s):
            outcome: list[ReadResult] | StoreError | None = await store.get_many(release_ref(FIRST), [row.key])
    except TimeoutError:
        outcome = None
    except StoreError as error:
        outcome = error
    if isinstance(outcome, list):
        assert outcome == [row.value], "somebody else's list"
    return outcome


async def recovered(store: RedisStore, row: Row = USERS[7]) -> None:
    """Read until a list comes."""
    started = time.monotonic()
    while not isinstance(await try_read(store, row), list):
        assert time.monotonic() - started < RECOVERS_WITHIN_S
        await asyncio.sleep(0.02)


@pytest.mark.usefixtures("real_limits")
async def test_suspended_server_costs_callers_only_their_budget(redis: RedisStore, server: RedisServer) -> None:
    await write_release(redis, FIRST, USERS)
    await recovered(redis)
    seen = set[str]()
    with server.stopped():
        started = time.monotonic()
        while "StoreUnavailable" not in seen:
            assert time.monotonic() - started < RECOVERS_WITHIN_S
            reads = await asyncio.gather(*(try_read(redis, row) for row in USERS[:50]))
            seen |= {type(outcome).__name__ for outcome in reads}
    assert seen == {"NoneType", "StoreUnavailable"}
    await recovered(redis)
    assert all(
        isinstance(outcome, list)
        for outcome in await asyncio.gather(*(try_read(redis, row, 10.0) for row in USERS[:50]))
    )


async def test_a_read_is_sent_again_once_if_its_connection_is_reset(remote: RedisStore, proxy: Proxy) -> None:
    await write_release(remote, FIRST, USERS)
    await recovered(remote)
    for resets, kind in ((1, list), (2, StoreUnavailable)):
        proxy.delay_s = 3600.0
        sent = asyncio.create_task(try_read(remote, budget_s=10.0))
        await asyncio.sleep(0.05)
        if resets == 1:
            proxy.delay_s = 0.0
        proxy.reset()
        if resets == 2:
            accepted = proxy.accepted
            async with asyncio.timeout(RECOVERS_WITHIN_S):
                while proxy.accepted == accepted:
                    await asyncio.sleep(0.01)
            proxy.reset()
            proxy.delay_s = 0.0
        assert isinstance(await sent, kind)
    await recovered(remote)


async def test_call_waits_for_earlier_ones_no_longer_than_for_a_reply(
    redis: RedisStore, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.catalogue()
    with server.stopped():
        calls = [asyncio.create_task(redis.catalogue()) for _ in range(server_module.MAX_SESSIONS)]
        await asyncio.sleep(0)
        monkeypatch.setattr(server_module, "COMMAND_TIMEOUT_S", 0.01)
        with pytest.raises(StoreUnavailable, match="8 earlier calls still wait for it"):
            await redis.catalogue()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_full_server_keeps_its_releases_and_allows_rollback_and_prune(
    redis: RedisStore, server: RedisServer
) -> None:
    old, new = [await publish_rows(redis, TEN) for _ in range(2)]
    keys = server.execute_command("DBSIZE")
    used = int(server.execute_command("INFO", "memory")["used_memory"])
    for limit, sentence in ((used + 3_000_000, "has reached its maxmemory"), (1, "has a limit of")):
        server.execute_command("CONFIG", "SET", "maxmemory", str(limit))
        with pytest.raises(StoreFull, match=sentence):
            await publish_release(redis, lists(100_000), plan=Plan(1000, 10_000))
        assert server.execute_command("DBSIZE") == keys
    assert await rollback(redis) == old
    await activate(redis, new)
    assert await prune(redis, keep=0, grace_s=0) == [old]
    catalogue = await redis.catalogue()
    assert catalogue.releases == (catalogue.find(new),)
    assert await redis.incarnations() == [catalogue.releases[0].incarnation]
    await verify(redis, catalogue.releases[0].ref)


async def test_connection_whose_setup_failed_is_closed_at_once(server: RedisServer, opened: OpenRedis) -> None:
    store = opened(server.url("rediss").replace("/0?", "/99?"))
    before = open_sockets()
    for call in (store.catalogue, lambda: store.get_many(release_ref(FIRST), ["user:1"])):
        with pytest.raises(StoreUnavailable, match="DB index is out of range"):
            await call()
        await asyncio.sleep(0)
        assert open_sockets() == before


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel"])
async def test_password_file_may_end_with_a_line_feed(
    tmp_path: Path, scheme: str, end: str, monkeypatch: pytest.MonkeyPatch, opened: OpenRedis
) -> None:
    file = tmp_path / "password"
    file.write_text(f"right{end}", newline="")
    for variable in ("HOTPLATE_REDIS_PASSWORD_FILE", "HOTPLATE_REDIS_SENTINEL_PASSWORD_FILE"):
        monkeypatch.setenv(variable, str(file))
    with ExitStack() as stack:
        if scheme == "redis+sentinel":
            deployment = stack.enter_context(sentinel_deployment(tmp_path, password="right"))
            url = deployment.url().replace(":right@", "")
        else:
            url = stack.enter_context(running(tmp_path, password="right")).url()
        store = opened(url)
        assert (await store.catalogue()).generation == 0


@pytest.fixture
def password_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file that stores read the password from, which is `right`."""
    file = tmp_path / "password"
    file.write_text("right")
    monkeypatch.setenv("HOTPLATE_REDIS_PASSWORD_FILE", str(file))
    return file


async def test_changed_password_file_is_read_again(tmp_path: Path, password_file: Path, opened: OpenRedis) -> None:
    with running(tmp_path, password="right") as server:
        store = opened(server.url())
        await write_release(store, FIRST, TEN)
        await recovered(store, TEN[7])

        server.execute_command("CONFIG", "SET", "requirepass", "later")
        server.password = "later"
        server.execute_command("CLIENT", "KILL", "TYPE", "normal")
        password_file.write_text("later")
        await recovered(store, TEN[7])
        await again(store.catalogue)


async def test_connection_waits_while_a_rotation_rewrites_the_password_file(
    tmp_path: Path, password_file: Path, opened: OpenRedis
) -> None:
    with running(tmp_path, password="right") as server:
        store = opened(server.url())
        password_file.write_text("")  # the rotation has truncated it
        reading = asyncio.create_task(store.catalogue())
        await asyncio.sleep(0.05)
        password_file.write_text("right")
        assert (await reading).generation == 0


async def test_password_file_that_stays_empty_is_named_and_may_be_mended(
    tmp_path: Path, password_file: Path, opened: OpenRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotplate.stores.redis.credentials.REWRITE_S", 0.0)
    with running(tmp_path, password="right") as server:
        store = opened(server.url())
        password_file.write_text("")
        with pytest.raises(StoreUnavailable, match=rf"{password_file}, which is empty") as raised:
            await store.catalogue()
        assert not raised.value.permanent
        password_file.write_text("right")
        assert (await store.catalogue()).generation == 0


async def test_replica_as_primary_serves_and_refuses_writes(
    redis: RedisStore, server: RedisServer, tmp_path: Path, opened: OpenRedis
) -> None:
    await begin_draft(redis, FIRST)
    await write_release(redis, FIRST, USERS)
    with replica_of(server, tmp_path / "replica") as copy:
        replica = opened(copy.url())
        await recovered(replica)
        catalogue = await replica.catalogue()
        assert catalogue == await redis.catalogue()
        assert ((await redis.catalogue()).primary, catalogue.primary) == (True, False)
        with pytest.raises(StoreUnavailable, match="read-only replica; give the URL of the primary"):
            await replica.swap(
                catalogue, changes.succeed(catalogue, changes.renew(catalogue, draft_of(FIRST)), "t", "s")
            )
        with pytest.raises(StoreUnavailable, match="read-only replica"):
            await replica.create(draft_of(SECOND), Plan(1, 1))


async def test_a_failover_that_lost_swaps_is_an_older_catalogue_from_a_primary(
    remote: RedisStore, proxy: Proxy, server: RedisServer, tmp_path: Path
) -> None:
    first = await begin_draft(remote, FIRST)
    await write_release(remote, FIRST, USERS)
    with replica_of(server, tmp_path / "replica") as replica:
        replica.execute_command("REPLICAOF", "NO", "ONE")
        last = await begin_draft(remote, SECOND)
        await write_release(remote, SECOND, USERS[:1])
        server.kill()
        proxy.target = replica.port
        proxy.reset()
        await recovered(remote)
        catalogue = await remote.catalogue()
        assert (catalogue.version, catalogue.primary) == (first.version, True)
        assert (catalogue.store_id, catalogue.generation) == (last.store_id, last.generation - 1)
        with pytest.raises(ReleaseNotFound):
            await remote.get_many(release_ref(SECOND), [USERS[0].key])
        with pytest.raises(ReleaseConflict):
            await remote.swap(last, changes.succeed(last, last, "late", "s"))
        assert await swap_catalogue(remote, changes.renew(catalogue, draft_of(FIRST))) == await remote.catalogue()


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "closed"])
def test_connections_that_are_being_opened_are_closed_with_the_store(
    redis_server: RedisServer, prefix: str, *, is_cancelled: bool
) -> None:
    assert turns_with_sockets_left(redis_server.url("rediss", prefix), is_cancelled=is_cancelled) == []


@pytest.mark.usefixtures("real_limits")
async def test_store_closes_without_an_error_while_its_server_hangs(server: RedisServer) -> None:
    before = open_sockets()
    store = open_url(server.url("rediss"))
    await write_release(store, FIRST, TEN)
    await expect_rows(store, TEN[0])
    with server.stopped():
        await store.close()
        await asyncio.sleep(0)
        assert open_sockets() == before


async def test_changed_certificate_of_an_authority_is_read_again(
    server: RedisServer, tmp_path: Path, opened: OpenRedis
) -> None:
    store = opened(server.url("rediss"))
    await write_release(store, FIRST, TEN)
    await recovered(store, TEN[7])

    later = tmp_path / "later"
    later.mkdir()
    certify(later)
    files = {"tls-ca-cert-file": "ca.pem", "tls-cert-file": "server.pem", "tls-key-file": "server.key"}
    settings = [text for name, file in files.items() for text in (name, str(later / file))]
    server.execute_command("CONFIG", "SET", *settings)
    server.execute_command("CLIENT", "KILL", "TYPE", "normal")

    authority = tmp_path / "ca.pem"
    authority.unlink()
    for call in (store.catalogue, lambda: store.get_many(release_ref(FIRST), [TEN[7].key])):
        refusal = ""
        while f"the certificates in {authority} cannot be read" not in refusal:  # the first may be that of the kill
            with pytest.raises(StoreUnavailable) as refused:
                await call()
            refusal = str(refused.value)
    shutil.copy(later / "ca.pem", authority)
    await recovered(store, TEN[7])
    await again(store.catalogue)


async def test_read_that_connects_while_the_store_is_closed_leaves_no_connection(server: RedisServer) -> None:
    async with until_sockets_are_closed(RECOVERS_WITHIN_S):
        store = open_url(server.url("rediss"))
        with server.stopped():
            reading = asyncio.create_task(store.get_many(release_ref(FIRST), ["user:1"]))
            await asyncio.sleep(0.05)  # in which the handshake begins
            await store.close()
        await asyncio.wait([reading])
        assert isinstance(reading.exception(), StoreError)


@pytest.mark.usefixtures("brief_waits")
async def test_what_no_replica_has_is_reported(
    redis: RedisStore,
    server: RedisServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replication, "OFFSETS_WAIT_S", RECOVERS_WITHIN_S)
    for _ in range(2):
        await publish_rows(redis, TEN)
    with replica_of(server, tmp_path / "replica") as replica:
        with monkeypatch.context() as patch:
            patch.setattr(redis_store, "CONTROL_WAIT_S", RECOVERS_WITHIN_S)
            complete = await erase_users(redis, ["000001"])
        assert complete.warning is not None
        assert "replicas" not in complete.warning
        assert not caplog.records
        with replica.stopped():
            with monkeypatch.context() as patch:
                patch.setattr(replication, "OFFSETS_WAIT_S", 0.0)
                for _ in range(2):  # the second time, nothing is changed
                    erasure = await erase_users(redis, ["000007"])
                    assert erasure.warning is not None
                    assert "0 of the 1 replicas" in erasure.warning
            caplog.clear()
            await rollback(redis)
            assert "0 of the 1 replicas" in caplog.text
        erasure = await erase_users(redis, ["000007"])
        assert erasure.warning == complete.warning


async def test_publish_survives_a_reset_without_loss_or_repetition(remote: RedisStore, proxy: Proxy) -> None:
    async def interrupted() -> AsyncIterator[Sequence[Row]]:
        async for rows in lists(20_000):
            if rows[0].key.endswith(("4000", "9000", "9500")):
                proxy.reset()
            yield rows

    manifest = (await publish_release(remote, interrupted(), plan=Plan(20_001, 2_000_000))).manifest
    assert (await verify(remote, await ref_of(remote, manifest.release))).counts == {"popular": 1, "user": 20_000}


async def lists(users: int) -> AsyncIterator[Sequence[Row]]:
    yield as_bodies([Row("popular:", b"{}")])
    for start in range(0, users, 500):
        yield as_bodies([Row(f"user:{n:06}", b"x" * 100) for n in range(start, min(start + 500, users))])


async def read_within_budget(store: RedisStore) -> list[ReadResult]:
    """Read as a tier does; unavailability raises."""
    async with asyncio.timeout(BUDGET_S):
        return await store.get_many(release_ref(FIRST), ["user:1"], timeout_s=BUDGET_S)


async def again(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the store has found its server."""
    while True:
        try:
            return await call()
        except (StoreUnavailable, TimeoutError):
            await asyncio.sleep(0.01)


async def read_in_vain(url: str) -> None:
    store = open_url(url)
    for _ in range(3):
        with pytest.raises((StoreUnavailable, TimeoutError)):
            await read_within_budget(store)
    await store.close()


def run(loop: Factory, work: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(work, RECOVERS_WITHIN_S))


@LOOPS
def test_silent_server_or_one_that_drops_packets_fails_a_read_in_time(loop: Factory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        run(loop, read_in_vain(f"redis://127.0.0.1:{silent.getsockname()[1]}/0"))
        place = full.getsockname()
        with socket.create_connection(place), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(place)  # the kernel drops what does not fit into the backlog
            run(loop, read_in_vain(f"redis://127.0.0.1:{place[1]}/0"))


@LOOPS
def test_a_store_reads_again_once_its_dead_server_is_back(server: RedisServer, loop: Factory) -> None:
    async def read() -> None:
        store = open_url(server.url())
        server.kill()
        with pytest.raises((StoreUnavailable, TimeoutError)):
            await read_within_budget(store)
        for _ in range(2):
            server.start()
            with pytest.raises(ReleaseNotFound):
                await again(lambda: read_within_budget(store))
            await again(lambda: store.create(draft_of(FIRST), Plan(1, 100)))
            await again(lambda: store.put(draft_of(FIRST), [Row("user:1", b"a list")]))
            await again(lambda: store.seal(draft_of(FIRST)))
            assert await again(lambda: read_within_budget(store)) == [b"a list"]
            server.kill()
            for _ in range(3):
                with pytest.raises((StoreUnavailable, TimeoutError)):
                    await read_within_budget(store)
        await store.close()

    run(loop, read())


def test_a_store_reads_over_each_transport_on_the_loop_of_a_service(redis_server: RedisServer) -> None:
    async def read() -> None:
        for scheme in ("redis", "rediss"):
            store = open_url(redis_server.url(scheme, secrets.token_hex(4)))
            await write_release(store, FIRST, TEN[:2])
            assert await store.get_many(release_ref(FIRST), [TEN[1].key, "user:absent"]) == [TEN[1].value, None]
            await store.close()

    run(uvloop.new_event_loop, read())
