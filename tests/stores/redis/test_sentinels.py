"""Redis behind sentinels: the primary that they name is followed."""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.doctor import examine
from hotplate.stores.erasure_log import read_erased
from hotplate.stores.errors import AccessDenied, ReleaseNotFound, StoreClosed, StoreUnavailable
from hotplate.stores.lifecycle import update_catalogue
from hotplate.stores.redis.reader import RedisReader
from hotplate.stores.redis.sentinels import Sentinels
from hotplate.stores.redis.store import RedisStore, open_url
from hotplate.stores.redis.url import parse
from hotplate.stores.store import Finding, Level, Row
from hotplate.stores.transitions import commit
from hotplate.stores.users import erase_users
from hotplate.testing import StoreContract
from tests.support.interrupted import turns_with_sockets_left
from tests.support.redis_sentinel import NAME, SentinelDeployment, sentinel_deployment
from tests.support.redis_server import SOON_S, OpenRedis, RedisServer, array, certify, commands_in
from tests.support.scripted_sentinel import ScriptedSentinel, speaking
from tests.support.stores import (
    FIRST,
    OpenStore,
    allow_erasure,
    begin_draft,
    draft_of,
    publish,
    ref_of,
    release_ref,
    write_release,
)
from tests.support.streams import listening
from tests.support.tcp_proxy import through
from tests.support.waiting import until_true

T = TypeVar("T")

ONE, TWO = Row("user:1", b"one"), Row("user:2", b"two")
BOTH = [ONE.key, TWO.key, "user:3"]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelDeployment]:
    with sentinel_deployment(tmp_path_factory.mktemp("sentinel")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelDeployment]:
    """One over TLS, in which everybody has a password."""
    folder = tmp_path_factory.mktemp("guarded")
    with sentinel_deployment(folder, tls=True, password=secrets.token_hex(4)) as running:
        yield running


async def until_read(store: RedisStore, expected: Sequence[bytes | None], release: ReleaseId = FIRST) -> None:
    """Read BOTH until there is an answer, which must equal *expected*."""
    async with asyncio.timeout(SOON_S):
        while True:
            try:
                assert await store.get_many(release_ref(release), BOTH) == expected
            except (StoreUnavailable, ReleaseNotFound):
                await asyncio.sleep(0.01)
            else:
                return


@asynccontextmanager
async def scripted(*sentinels: ScriptedSentinel) -> AsyncIterator[Sentinels]:
    """Ask these; closed when the block ends."""
    async with speaking(*sentinels) as url:
        asking = Sentinels(parse(url))
        try:
            yield asking
        finally:
            await asking.close()


@pytest.mark.soak
class TestSentinelStore(StoreContract):
    @pytest.fixture(params=["deployment", "guarded"])
    def open_store(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> OpenStore:
        """Open handles on a real deployment, and on one over TLS with passwords."""
        deployment: SentinelDeployment = request.getfixturevalue(request.param)
        if deployment.password is not None:
            monkeypatch.setenv("HOTPLATE_REDIS_SENTINEL_PASSWORD", deployment.password)
        url = deployment.url(secrets.token_hex(4))
        return lambda: open_url(url)


async def test_sentinels_with_another_password_deny_access(
    guarded: SentinelDeployment, opened: OpenRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTPLATE_REDIS_SENTINEL_PASSWORD", "wrong")
    store = opened(guarded.url(secrets.token_hex(4)))
    with pytest.raises(AccessDenied, match=r"no sentinel of .* does not accept this user and password"):
        await store.catalogue()


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "closed"])
def test_connections_that_are_being_opened_are_closed_with_the_store(
    guarded: SentinelDeployment, prefix: str, monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool
) -> None:
    monkeypatch.setenv("HOTPLATE_REDIS_SENTINEL_PASSWORD", str(guarded.password))
    assert turns_with_sockets_left(guarded.url(prefix), is_cancelled=is_cancelled) == []


async def test_replica_answers_while_the_primary_does_not(deployment: SentinelDeployment, opened: OpenRedis) -> None:
    store = opened(deployment.url(secrets.token_hex(4)))
    await write_release(store, FIRST, [ONE, TWO])
    assert store.has_replicas
    primary = deployment.primary
    with primary.stopped():
        slots = await store.get_many_elsewhere(release_ref(FIRST), BOTH, timeout_s=5.0)
    assert slots == [b"one", b"two", None]


async def test_connections_to_former_primaries_are_closed(redis_server: RedisServer, opened: OpenRedis) -> None:
    """Each primary has another address, like a pod that replaces one."""
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(through(redis_server.port)) for _ in range(3)]
        sentinel = ScriptedSentinel(0, proxies[0].port)
        url = await stack.enter_async_context(speaking(sentinel))
        store = opened(f"{url}?prefix={secrets.token_hex(4)}")
        for proxy in proxies:
            sentinel.primary = proxy.port
            sentinel.epoch += 1
            await store.check_durability()  # asks the sentinels
            release = await publish(store)
            assert None not in await store.get_many(await ref_of(store, release), ["user:1"])
            assert proxy.is_connected
        await until_true(lambda: not any(proxy.is_connected for proxy in proxies[:-1]))


async def test_closed_store_asks_no_sentinel(redis_server: RedisServer, opened: OpenRedis) -> None:
    async with speaking(ScriptedSentinel(0, redis_server.port)) as url, through(urlsplit(url).port or 0) as proxy:
        store = opened(f"redis+sentinel://127.0.0.1:{proxy.port}/{NAME}?prefix={secrets.token_hex(4)}")
        await store.catalogue()
        await store.close()
        before = proxy.accepted
        with pytest.raises(StoreClosed):
            await store.poll()
        assert proxy.accepted == before


async def test_replicas_linked_to_the_primary_are_read_or_without_one_all() -> None:
    sentinel = ScriptedSentinel(1, 1, 2, 3)
    async with scripted(sentinel) as deployment:
        for unlinked, read in [({2}, {1, 3}), ({2, 3}, {1, 2, 3})]:
            sentinel.unlinked = unlinked
            await deployment.ask()
            assert {node.port for node in deployment.nodes} == read


async def test_late_read_asks_one_replica_of_a_primary() -> None:
    asked = list[int]()

    def replica(number: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async for command in commands_in(reader):
                names = command[1:] if command[0] == b"MGET" else []
                asked.extend([number] * len(names))
                writer.write(array(*(b"one" for _ in names)) if names else b"+OK\r\n")

        return serve

    keys = [f"user:{number}" for number in range(64)]
    async with (
        asyncio.timeout(SOON_S),
        listening(replica(1)) as first,
        listening(replica(2)) as second,
        scripted(ScriptedSentinel(1, 1, first, second)) as deployment,
    ):
        await deployment.load()
        slots = await RedisReader(deployment).get_many_elsewhere(release_ref(FIRST), keys, timeout_s=SOON_S)
    assert slots == [b"one"] * len(keys)
    assert len(asked) == len(keys)
    assert len(set(asked)) == 1


async def test_renewal_closes_the_connections_to_a_server_that_is_gone() -> None:
    is_gone = asyncio.Event()
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if is_gone.is_set():
            return  # to new connections only
        async for command in commands_in(reader):
            writer.write(array(b"role", b"master") if command[0] == b"HELLO" else b"+OK\r\n")
        ended.set()

    async with asyncio.timeout(SOON_S), listening(serve) as port:
        sentinel = ScriptedSentinel(1, port)
        async with scripted(sentinel) as deployment:
            await deployment.load()
            await deployment.server(deployment.primaries[0]).open_reads()
            is_gone.set()
            with pytest.raises(StoreUnavailable):  # it may come back
                await deployment.renew()
            sentinel.epoch = 2
            sentinel.primary = 1
            await deployment.ask()
            await deployment.renew()
            await ended.wait()


async def test_the_doctor_names_what_a_failover_would_lack(deployment: SentinelDeployment, opened: OpenRedis) -> None:
    store = opened(deployment.url(secrets.token_hex(4)))

    async def look() -> dict[str, Finding]:
        return {finding.subject: finding for finding in await examine(store)}

    by_subject = await look()
    assert all(by_subject[subject].level == Level.OK for subject in ("sentinels", "sentinel", "replicas"))
    assert (by_subject["min-replicas"].level, by_subject["may publish"].level) == (Level.WARNING, Level.OK)
    assert "min-replicas-to-write" in by_subject["min-replicas"].sentence
    primary = deployment.primary
    primary.execute_command("CONFIG", "SET", "min-replicas-to-write", "1")
    assert (await look())["min-replicas"].level == Level.OK
    primary.execute_command("CONFIG", "SET", "min-replicas-to-write", "0")
    strange = opened(deployment.url().replace(f"/{NAME}/", "/another/"))
    findings = await examine(strange)
    assert [finding.level for finding in findings if finding.subject == "sentinel"] == [Level.WARNING] * 3
    assert any("No such master" in finding.sentence for finding in findings if finding.subject == "servers")


@dataclass
class Failover:
    """A replica that becomes the primary before any sentinel says so."""

    primary: RedisServer
    successor: RedisServer
    sentinels: list[ScriptedSentinel]
    url: str

    def promote(self) -> None:
        """Promote the successor; the other replica goes on following the former primary."""
        self.primary.wait_for_replicas(2)
        self.successor.execute_command("REPLICAOF", "NO", "ONE")

    async def started(self, work: Coroutine[Any, Any, T], command: str) -> asyncio.Task[T]:
        """Start *work*, and return it when it has called a command of the former primary, and waits."""
        calls = self.primary.calls(command)
        task = asyncio.create_task(work)
        while self.primary.calls(command) == calls and not task.done():
            await asyncio.sleep(0.01)
        assert not task.done()
        return task

    def announce(self) -> None:
        """Let all sentinels name the new primary."""
        for sentinel in self.sentinels:
            sentinel.epoch = 2
            sentinel.primary = self.successor.port
            sentinel.replicas = ()


@asynccontextmanager
async def failing_over(deployment: SentinelDeployment) -> AsyncIterator[Failover]:
    primary = deployment.primary
    successor, other = deployment.replicas
    sentinels = [ScriptedSentinel(1, primary.port, successor.port, other.port) for _ in range(3)]
    async with asyncio.timeout(SOON_S), speaking(*sentinels) as url:
        yield Failover(primary, successor, sentinels, url)
    successor.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))


async def test_commit_on_a_replaced_primary_is_lost_and_reported_as_lost(
    deployment: SentinelDeployment, opened: OpenRedis
) -> None:
    async with failing_over(deployment) as failover:
        prefix = secrets.token_hex(4)
        store = opened(f"{failover.url}/0?prefix={prefix}")
        await begin_draft(store, FIRST)
        await write_release(store, FIRST, [ONE, TWO], seal=False)
        failover.promote()
        direct = opened(f"redis://127.0.0.1:{failover.primary.port}/0?prefix={prefix}")
        await direct.seal(draft_of(FIRST))
        change = update_catalogue(store, lambda catalogue: commit(catalogue, draft_of(FIRST)))
        committing = await failover.started(change, "eval")
        failover.sentinels[2].epoch = 2
        failover.sentinels[2].primary = failover.successor.port
        with pytest.raises(StoreUnavailable, match="lost the end of release"):
            await committing
        assert (await store.catalogue()).find(FIRST).state == "draft"


async def test_seal_on_a_replaced_primary_fails_until_repeated(
    deployment: SentinelDeployment, opened: OpenRedis
) -> None:
    async with failing_over(deployment) as failover:
        store = opened(f"{failover.url}/0?prefix={secrets.token_hex(4)}")
        await begin_draft(store, FIRST)
        await write_release(store, FIRST, [ONE, TWO], seal=False)
        failover.promote()
        sealing = await failover.started(store.seal(draft_of(FIRST)), "wait")
        failover.announce()
        with pytest.raises(StoreUnavailable, match="was replaced"):
            await sealing
        with pytest.raises(ReleaseNotFound):
            await store.prepare(draft_of(FIRST).release)
        await store.seal(draft_of(FIRST))
        await store.prepare(draft_of(FIRST).release)


async def test_erasure_on_a_replaced_primary_is_repeated_at_its_successor(
    deployment: SentinelDeployment, opened: OpenRedis
) -> None:
    async with failing_over(deployment) as failover:
        store = opened(f"{failover.url}/0?prefix={secrets.token_hex(4)}")
        await publish(store, [Row("popular:", b"{}"), ONE, TWO])
        failover.promote()
        erasing = await failover.started(erase_users(store, ["1"]), "wait")
        failover.announce()
        assert (await erasing).erased == ("1",)
        catalogue = await store.catalogue()
        assert (await read_erased(store, catalogue)).covers_user("1")
        found = await store.get_many(catalogue.releases[0].ref, BOTH)
        assert [value is None for value in found] == [True, False, True]


async def test_no_commit_and_no_erasure_while_most_sentinels_are_unreachable(
    deployment: SentinelDeployment, opened: OpenRedis
) -> None:
    sentinels = [ScriptedSentinel(1, deployment.primary.port) for _ in range(3)]
    async with asyncio.timeout(SOON_S), speaking(*sentinels) as url:
        store = opened(f"{url}/0?prefix={secrets.token_hex(4)}")
        release = await ref_of(store, await publish(store, [Row("popular:", b"{}"), ONE, TWO]))
        await begin_draft(store, FIRST)
        sentinels[0].up = sentinels[1].up = False
        for change in (
            erase_users(store, ["1"]),
            store.erase_rows(release, [ONE.key], allow_erasure),
            update_catalogue(store, lambda catalogue: commit(catalogue, draft_of(FIRST))),
        ):
            with pytest.raises(StoreUnavailable, match="it may be another"):
                await change
        assert await store.get_many(release, [ONE.key]) != [None]
        assert (await store.catalogue()).find(FIRST).state == "draft"


async def test_sentinel_with_the_highest_failover_epoch_wins_until_it_is_reset() -> None:
    late, knowing, away = ScriptedSentinel(1, 7001), ScriptedSentinel(2, 7002), ScriptedSentinel(1, 7001)
    away.up = False
    async with asyncio.timeout(SOON_S), scripted(late, knowing, away) as sentinels:
        await sentinels.load()
        assert [node.port for node in sentinels.primaries] == [7002]
        away.up = True
        await sentinels.ask()
        assert [node.port for node in sentinels.primaries] == [7002]
        knowing.epoch, knowing.primary = 1, 7001
        await sentinels.ask()
        assert [node.port for node in sentinels.primaries] == [7001]


async def test_changed_certificate_of_the_authority_of_sentinels_is_read_again(tmp_path: Path) -> None:
    sentinel = ScriptedSentinel(1, 7001)
    connections = list[asyncio.StreamWriter]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with suppress(OSError):
            await sentinel.serve(reader, writer)
        writer.close()

    certify(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    hosts = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    sentinels = Sentinels(parse(f"rediss+sentinel://{hosts}/{NAME}?ca={tmp_path / 'ca.pem'}"))
    await sentinels.ask()

    certify(tmp_path)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    connections[0].transport.abort()
    async with asyncio.timeout(SOON_S):
        while len(connections) < 2:
            with suppress(StoreUnavailable):  # the end of the connection
                await sentinels.ask()
    await sentinels.close()
    server.close()


async def test_disagreeing_and_too_few_sentinels_are_reported() -> None:
    away = ScriptedSentinel(1, 7001)
    away.up = False
    async with asyncio.timeout(SOON_S), scripted(ScriptedSentinel(1, 7001), ScriptedSentinel(2, 7002), away) as all_of:
        findings = await all_of.examine()
    assert [(finding.level, finding.subject) for finding in findings] == [
        (Level.ERROR, "sentinel"), (Level.ERROR, "sentinel"), (Level.WARNING, "sentinel"), (Level.ERROR, "sentinels"),
    ]  # fmt: skip
    assert "usable Sentinels" in findings[0].sentence
    assert "127.0.0.1:7001" in findings[3].sentence
    assert "127.0.0.1:7002" in findings[3].sentence


async def test_without_a_sentinel_the_error_names_each() -> None:
    with_nobody = Sentinels(parse("redis+sentinel://127.0.0.1:1,127.0.0.1:2/shop"))
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1 .*127\.0\.0\.1:2 "):
        await with_nobody.load()
    await with_nobody.close()
