"""Credentials that rotate while a store is open: no read and no publish fails."""

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from redis.auth.token import TokenInterface
from redis.credentials import StreamingCredentialProvider

from hotplate.stores.errors import StoreMisused, StoreUnavailable
from hotplate.stores.redis.credentials import CreateProvider, Credentials
from hotplate.stores.redis.keys import Keys
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.store import TOKEN, ChargeCounter, Row
from tests.support.redis_cluster import RedisCluster
from tests.support.redis_sentinel import SentinelDeployment, sentinel_deployment
from tests.support.redis_server import SOON_S, OpenRedis, RedisServer, running
from tests.support.rotation import FakeIdentity, RotatingProvider, SlowProvider
from tests.support.soak import MINUTES
from tests.support.stores import FIRST, expect_rows, lists_of, publish, ref_of, release_ref, scan_rows, write_release
from tests.support.streams import until_sockets_are_closed
from tests.support.waiting import until_true

ROWS = [Row("popular:", b"{}"), *lists_of(300)]
ROTATIONS = 2
SLOW_ROTATIONS = 5
READS_PER_S = 100


@dataclass(frozen=True, slots=True)
class Place:
    """A deployment, and the credentials that its servers accept."""

    url: str
    provider: RotatingProvider

    def opened(self) -> RedisStore:
        return open_url(self.url, provider=self.provider.create)


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelDeployment]:
    with sentinel_deployment(tmp_path_factory.mktemp("sentinels")) as running_deployment:
        yield running_deployment


@pytest.fixture(params=["redis", "redis+sentinel", "redis+cluster"])
def place(request: pytest.FixtureRequest, prefix: str) -> Place:
    servers: Sequence[RedisServer]
    if request.param == "redis+cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        url = cluster.url(prefix=prefix, seeds=1)
        servers = [node.server for node in cluster.nodes]
    elif request.param == "redis+sentinel":
        deployment: SentinelDeployment = request.getfixturevalue("sentinels")
        url = deployment.url(prefix)
        servers = deployment.servers
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        url = server.url(prefix=prefix)
        servers = [server]
    return Place(url, RotatingProvider(servers))


async def rotated(place: Place, store: RedisStore, *, rotations: int, pause_s: float) -> int:
    """Rotate the credentials while *store* is read and published to; return how many rows were read."""
    release = await ref_of(store, await publish(store, ROWS))
    keys = [row.key for row in ROWS]
    expected = dict(zip(keys, await store.get_many(release, keys), strict=True))
    is_over = asyncio.Event()

    async def read() -> int:
        reads = 0
        while not is_over.is_set():
            key = keys[reads % len(keys)]
            assert await store.get_many(release, [key], timeout_s=SOON_S) == [expected[key]]
            if store.has_replicas:
                elsewhere = await store.get_many_elsewhere(release, [key], timeout_s=SOON_S)
                assert elsewhere in ([expected[key]], [None])  # a replica may lag
            reads += 1
            await asyncio.sleep(1 / READS_PER_S)
        return reads

    async def publish_all_the_time() -> int:
        publishes = 0
        while not is_over.is_set():
            await publish(store, ROWS)
            publishes += 1
            await asyncio.sleep(pause_s / 10)
        return publishes

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(read())
        publishing = tasks.create_task(publish_all_the_time())
        for _ in range(rotations):
            await asyncio.sleep(pause_s)
            await place.provider.rotate()
        await asyncio.sleep(pause_s)
        is_over.set()
    assert publishing.result() > 0
    return reading.result()


SLOW_PAUSE_S = MINUTES * 6 / (SLOW_ROTATIONS + 1)
SLOW_MARKS = [pytest.mark.soak, pytest.mark.timeout(3600)]
SLOWLY = pytest.param(SLOW_ROTATIONS, SLOW_PAUSE_S, marks=SLOW_MARKS, id="slowly")


@pytest.mark.parametrize(("rotations", "pause_s"), [(ROTATIONS, 0.2), SLOWLY])
async def test_no_read_and_no_publish_fails_while_credentials_rotate(
    place: Place, rotations: int, pause_s: float
) -> None:
    store = place.opened()
    try:
        assert await rotated(place, store, rotations=rotations, pause_s=pause_s) > rotations
    finally:
        await store.close()


async def test_connection_opened_during_a_rotation_is_replaced(
    redis_server: RedisServer, prefix: str, opened: OpenRedis
) -> None:
    provider = SlowProvider([redis_server])
    store = opened(redis_server.url(prefix=prefix), provider=provider.create)
    await write_release(store, FIRST, ROWS)
    former = provider.user
    asked = provider.asked
    provider.may_return.clear()
    scanning = asyncio.create_task(scan_rows(store, FIRST))  # over a connection that is not open yet
    await until_true(lambda: provider.asked > asked)
    provider.replace_user()
    for _ in range(10):  # in which the store begins to replace its connections
        await asyncio.sleep(0)
    provider.may_return.set()
    assert await scanning == ROWS
    await provider.wait_until_unused(former)


async def test_call_cancelled_before_its_connection_logged_in_fails_no_later_call(
    tmp_path: Path, opened: OpenRedis
) -> None:
    with running(tmp_path, password=secrets.token_hex(4)) as server:
        provider = SlowProvider([server])
        store = opened(server.url(), provider=provider.create)
        provider.may_return.clear()
        reading = asyncio.create_task(store.catalogue())
        await until_true(lambda: provider.asked > 0)
        reading.cancel()
        await asyncio.wait([reading])
        provider.may_return.set()
        assert (await store.catalogue()).generation == 0


async def test_read_cancelled_before_its_connections_logged_in_leaves_none_of_them(
    redis_cluster: RedisCluster, prefix: str, opened: OpenRedis
) -> None:
    servers = [node.server for node in redis_cluster.nodes]
    provider = SlowProvider(servers)
    url = redis_cluster.url(prefix=prefix, seeds=1)
    store = opened(url, provider=provider.create)
    await write_release(store, FIRST, ROWS)
    located = Keys(prefix).release(release_ref(FIRST)).located([row.key for row in ROWS])
    near = ROWS[redis_cluster.owners([name.decode() for name in located.names]).index(redis_cluster.nodes[0])]
    await expect_rows(store, near)  # connects to one node or two
    asked = provider.asked
    provider.may_return.clear()
    reading = asyncio.create_task(store.get_many(release_ref(FIRST), [row.key for row in ROWS]))
    await until_true(lambda: provider.asked > asked)
    reading.cancel()
    await asyncio.wait([reading])
    provider.may_return.set()
    await expect_rows(store, *ROWS)
    clients = [client for server in servers for client in server.execute_command("CLIENT LIST")]
    assert {client["user"] for client in clients if client["cmd"] == "get"} == {provider.user}


@pytest.mark.usefixtures("real_limits")
async def test_renewal_goes_on_after_a_server_that_hung_while_connections_were_closed(
    tmp_path: Path, prefix: str
) -> None:
    async with until_sockets_are_closed(SOON_S):
        with running(tmp_path) as server:
            provider = RotatingProvider([server])
            store = open_url(server.url("rediss", prefix=prefix), provider=provider.create)
            try:
                await write_release(store, FIRST, ROWS)
                await expect_rows(store, ROWS[1])
                former = provider.user
                provider.replace_user()
                with server.stopped():  # before the renewal begins
                    await asyncio.sleep(1.5)  # redis-py waits for 1 s until a TLS connection is closed
                await provider.wait_until_unused(former)
            finally:
                await store.close()


@pytest.mark.usefixtures("real_limits")
async def test_hung_node_fails_no_read_when_a_replaced_client_is_closed(
    redis_cluster: RedisCluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with until_sockets_are_closed(SOON_S):
        monkeypatch.setattr("hotplate.stores.redis.reader.LOOKUP_TIMEOUT_S", SOON_S)
        servers = [node.server for node in redis_cluster.nodes]
        hung = redis_cluster.primaries[-1]
        provider = RotatingProvider(servers)
        url = redis_cluster.url("rediss+cluster", prefix=prefix)
        store = open_url(url, provider=provider.create)
        try:
            await write_release(store, FIRST, ROWS)
            located = Keys(prefix).release(release_ref(FIRST)).located([row.key for row in ROWS])
            owners = redis_cluster.owners([name.decode() for name in located.names])
            rows = [row for row, owner in zip(ROWS, owners, strict=True) if owner is not hung]
            await expect_rows(store, *ROWS)
            provider.replace_user()
            with hung.server.stopped():  # before the renewal begins
                deadline_s = time.monotonic() + 3  # in which the client is replaced, and closed after 1 s more
                while time.monotonic() < deadline_s:
                    await expect_rows(store, *rows)
                    await asyncio.sleep(1 / READS_PER_S)
        finally:
            await store.close()


async def test_renewals_follow_one_another(redis_server: RedisServer) -> None:
    provider = RotatingProvider([redis_server])
    credentials = Credentials(provider.create)
    begun = 0
    may_end = asyncio.Event()

    async def renew() -> None:
        nonlocal begun
        begun += 1
        await may_end.wait()

    credentials.on_renewal(renew)
    await credentials.get_credentials_async()
    for _ in range(2):
        provider.replace_user()
        for _ in range(10):
            await asyncio.sleep(0)
    assert begun == 1
    may_end.set()
    await until_true(lambda: begun == 2)
    await credentials.close()


async def test_entra_id_tokens_replace_user_and_password(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch, opened: OpenRedis
) -> None:
    pytest.importorskip("redis_entraid", reason="needs the extra redis-entra")
    from azure.core.credentials import AccessToken  # noqa: PLC0415 -- an extra
    from azure.identity import DefaultAzureCredential  # noqa: PLC0415 -- as above

    user = secrets.token_hex(8)
    expires_on = int(time.time()) + 3600
    token = jwt.encode({"oid": user, "exp": expires_on}, secrets.token_hex(32), algorithm="HS256")
    scopes = list[str]()

    def get_token(_: object, *asked: str, **__: object) -> AccessToken:
        scopes.extend(asked)
        return AccessToken(token, expires_on)

    monkeypatch.setattr(DefaultAzureCredential, "get_token", get_token)
    redis_server.execute_command("ACL", "SETUSER", user, "on", f">{token}", "~*", "&*", "+@all")
    store = opened(f"{redis_server.url('rediss', prefix)}&auth=entra")
    await write_release(store, FIRST, ROWS)
    await expect_rows(store, ROWS[1])
    connected = {client["user"] for client in redis_server.execute_command("CLIENT LIST")}
    assert user in connected
    assert set(scopes) == {"https://redis.azure.com/.default"}
    assert token not in repr(store)


class EndlessProvider(RotatingProvider):
    """Fails when it is to renew no more."""

    def on_next(self, callback: Callable[[TokenInterface], Any] | None) -> None:
        if callback is None:
            raise OSError("the provider does not stop")
        super().on_next(callback)


async def test_close_leaves_no_connection_if_the_provider_fails(place: Place) -> None:
    provider = EndlessProvider(place.provider.servers)
    async with until_sockets_are_closed(SOON_S):
        store = open_url(place.url, provider=provider.create)
        await write_release(store, FIRST, ROWS)
        assert await scan_rows(store, FIRST) == ROWS
        await expect_rows(store, ROWS[1])
        if store.has_replicas:
            await store.get_many_elsewhere(release_ref(FIRST), [ROWS[1].key], timeout_s=SOON_S)
        with pytest.raises(OSError, match="does not stop"):
            await store.close()
        await provider.wait_until_unused(provider.user)


def test_close_on_another_loop_leaves_credentials_and_connections(redis_server: RedisServer, prefix: str) -> None:
    provider = RotatingProvider([redis_server])
    store = open_url(redis_server.url(prefix=prefix), provider=provider.create)

    async def read_and_rotate() -> None:
        await expect_rows(store, ROWS[1])
        await provider.rotate()

    with asyncio.Runner() as runner:
        runner.run(write_release(store, FIRST, ROWS))
        for _ in range(2):
            runner.run(read_and_rotate())
            with pytest.raises(StoreMisused, match="another event loop"):
                asyncio.run(store.close())
        runner.run(store.close())


async def test_missing_token_is_an_error_and_requested_again(
    redis_server: RedisServer, prefix: str, opened: OpenRedis
) -> None:
    provider = RotatingProvider([redis_server])
    refusing = True

    class Refusing(RotatingProvider):
        def get_credentials(self) -> tuple[str, str]:
            if refusing:
                raise ValueError("no managed identity here\nand a second line")
            return provider.get_credentials()

    store = opened(redis_server.url(prefix=prefix), provider=Refusing([]).create)
    with pytest.raises(StoreUnavailable, match=r"no credentials: no managed identity here$"):
        await store.catalogue()
    refusing = False
    assert (await store.catalogue()).generation == 0


async def test_provider_that_cannot_be_created_is_an_error_and_created_again(
    redis_server: RedisServer, prefix: str
) -> None:
    provider = RotatingProvider([redis_server])
    is_configured = False

    def create() -> StreamingCredentialProvider:
        if not is_configured:
            raise ValueError("no authority is configured")
        return provider

    store = open_url(redis_server.url(prefix=prefix), provider=create)
    for call in (store.catalogue, lambda: store.get_many(release_ref(FIRST), [ROWS[1].key])):
        with pytest.raises(StoreUnavailable, match="no credentials: no authority is configured"):
            await call()
    is_configured = True
    assert (await store.catalogue()).generation == 0
    await store.close()


def renewed_by_redis_entraid(identity: FakeIdentity) -> CreateProvider:
    """Return what creates redis-entraid's token manager, which asks *identity* at 70 % of a token's life."""
    provider = pytest.importorskip("redis_entraid.cred_provider", reason="needs the extra redis-entra")
    config = provider.TokenManagerConfig(0.7, 0, 1000, provider.RetryPolicy(3, 3))
    return lambda: provider.EntraIdCredentialsProvider(identity, config)


async def renewals_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Wait until redis-entraid, at its next renewal, has noticed that the store was closed, and has logged that."""
    await until_true(lambda: "Renewal cancelled" in caplog.text)


async def read_eventually(store: RedisStore) -> None:
    async with asyncio.timeout(SOON_S):
        while True:
            with suppress(StoreUnavailable):
                await expect_rows(store, ROWS[1])
                return
            await asyncio.sleep(0.01)


async def refused_eventually(store: RedisStore, reason: str) -> None:
    """Read until there is an error, which must name the reason; the end of a connection is noticed later."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await store.get_many(release_ref(FIRST), [ROWS[1].key])
            except StoreUnavailable as error:
                if reason in str(error):
                    return
            await asyncio.sleep(0.01)


async def test_reads_outlive_a_failed_renewal_and_recover_from_a_revoked_token(
    redis_server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hotplate.stores.redis.credentials.RETRY_S", 0.05)
    identity = FakeIdentity(redis_server, life_s=0.5)
    observer = ChargeCounter()
    store = open_url(redis_server.url(prefix=prefix), observer, provider=renewed_by_redis_entraid(identity))
    try:
        await write_release(store, FIRST, ROWS)
        await read_eventually(store)
        assert observer.failures == []
        identity.is_down = True
        await until_true(lambda: "could not be renewed" in caplog.text)
        await until_true(lambda: "no credentials: the identity endpoint is down" in caplog.text)
        for _ in range(20):  # over the connection that was open before
            await expect_rows(store, ROWS[1])
        await until_true(lambda: len(observer.failures) > 2)  # before the server refuses
        assert set(observer.failures) == {TOKEN}
        identity.revoke_all()
        await refused_eventually(store, "the identity endpoint is down")
        identity.is_down = False
        await read_eventually(store)
        requests = identity.requests
        await until_true(lambda: identity.requests > requests + 2)  # it renews again
        await read_eventually(store)
    finally:
        await store.close()
    await renewals_ended(caplog)
    requests = identity.requests
    await asyncio.sleep(2 * identity.life_s)
    assert identity.requests == requests, "a closed store asks for tokens"


async def test_reads_continue_while_a_renewed_token_is_refused(
    redis_server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    identity = FakeIdentity(redis_server, life_s=0.3)
    observer = ChargeCounter()
    store = open_url(redis_server.url(prefix=prefix), observer, provider=renewed_by_redis_entraid(identity))
    try:
        await write_release(store, FIRST, ROWS)
        await read_eventually(store)
        identity.is_known = False
        requests = identity.requests
        while identity.requests < requests + 3:
            await expect_rows(store, ROWS[1])
            await asyncio.sleep(0.01)
        await until_true(lambda: TOKEN in observer.failures)
        identity.is_known = True
        requests = identity.requests
        await until_true(lambda: identity.requests > requests + 1)
        identity.revoke_all()  # a reconnection asks for another token
        await read_eventually(store)
    finally:
        await store.close()
    await renewals_ended(caplog)
