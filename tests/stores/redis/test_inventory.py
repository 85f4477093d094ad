"""What lies in Redis is found and erased whatever has lost its name, and nothing is erased that is there again."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import redis

from hotplate.stores.catalogue import ReleaseRef, State
from hotplate.stores.connect import connect
from hotplate.stores.errors import ReleaseNotFound
from hotplate.stores.lifecycle import prune
from hotplate.stores.store import Row, Store
from tests.support.redis_server import SOON_S, RedisServer, copied, put_back
from tests.support.stores import (
    FIRST,
    SECOND,
    allow_erasure,
    draft_of,
    lists_of,
    publish,
    release_ref,
    scan_rows,
    write_release,
)

POPULAR = Row("popular:", b"{}")
USERS = lists_of(2500)


# A pause of an erase that a test ends.
PAUSE_S = 12_345.0


@dataclass(slots=True)
class Place:
    """Where releases lie, as its servers see it."""

    url: str
    prefix: str
    servers: list[redis.Redis]

    def names(self, pattern: str) -> list[bytes]:
        names_by_server = [cast("list[bytes]", server.keys(pattern)) for server in self.servers]
        return sorted(name for names in names_by_server for name in names)

    def of(self, release: ReleaseRef) -> list[bytes]:
        return self.names(f"{self.prefix}:{{{release.incarnation}.*")

    def execute(self, command: str, name: str, *args: str) -> None:
        """Send a command to whichever server has a key."""
        (server,) = (server for server in self.servers if server.keys(name.replace("[", "\\[")))
        server.execute_command(command, name, *args)  # type: ignore[no-untyped-call]  # redis-py types the rest

    def calls(self, command: str) -> int:
        stats = [cast("dict[str, dict[str, int]]", server.info("commandstats")) for server in self.servers]
        return sum(stats_of_server.get(f"cmdstat_{command}", {}).get("calls", 0) for stats_of_server in stats)

    def copied(self) -> list[dict[bytes, bytes]]:
        return [copied(server, self.prefix) for server in self.servers]

    def put_back(self, copies: list[dict[bytes, bytes]]) -> None:
        for server, copy in zip(self.servers, copies, strict=True):
            put_back(server, self.prefix, copy)


@pytest.fixture(params=["redis", "redis+cluster"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    prefix = secrets.token_hex(4)
    if request.param == "redis":
        single: RedisServer = request.getfixturevalue("redis_server")
        url = single.url(prefix=prefix)
        ports = [single.port]
    else:
        cluster = request.getfixturevalue("redis_cluster")
        url = cluster.url(prefix=prefix)
        ports = [node.port for node in cluster.primaries]
    servers = [redis.Redis(port=port) for port in ports]
    yield Place(url, prefix, servers)
    for server in servers:
        server.close()


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = connect(place.url)
    yield opened
    await opened.close()


@dataclass(slots=True)
class Pauses:
    """The pauses of an erase between its batches, which last until they are ended."""

    are_made: bool = False
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Pauses:
    gate = Pauses()
    sleep = asyncio.sleep

    async def paused(delay: float) -> None:
        if delay != PAUSE_S:
            await sleep(delay)
            return
        gate.reached.set()
        await gate.ended.wait()

    monkeypatch.setattr("hotplate.base.timing.Pacer.pause_s", lambda *_: PAUSE_S * gate.are_made)
    monkeypatch.setattr(asyncio, "sleep", paused)
    return gate


async def test_erase_spares_a_release_restored_during_it(place: Place, store: Store, pauses: Pauses) -> None:
    await write_release(store, FIRST, USERS)
    pauses.are_made = True
    copies = place.copied()
    async with asyncio.timeout(SOON_S):
        erasing = asyncio.create_task(store.erase(release_ref(FIRST), allow_erasure))
        await pauses.reached.wait()
        assert len(place.of(release_ref(FIRST))) < sum(map(len, copies))
        place.put_back(copies)
        pauses.ended.set()
        error = (await asyncio.gather(erasing, return_exceptions=True))[0]
        assert await scan_rows(store, FIRST) == USERS
    assert "restored from an older copy" in str(error)
    assert place.copied() == copies


@pytest.mark.parametrize("lost", [("@keys",), ("@keys", "@points", "@state")])
async def test_release_without_its_key_list_is_pruned_completely(
    place: Place, store: Store, lost: Sequence[str]
) -> None:
    for _ in range(2):
        await publish(store, [POPULAR, *USERS])
    old, live = (entry.ref for entry in (await store.catalogue()).releases)
    for name in lost:
        place.execute("DEL", f"{place.prefix}:{{{old.incarnation}.0}}:{name}")
    kept = place.of(live)
    assert await prune(store, keep=0, grace_s=0) == [old.id]
    assert place.of(old) == []
    assert place.of(live) == kept


async def test_a_sealed_release_is_erased_without_a_search(place: Place, store: Store) -> None:
    await write_release(store, FIRST, USERS)
    before = place.calls("scan")
    for release in (FIRST, FIRST, SECOND):
        await store.erase(release_ref(release), allow_erasure)
    assert place.names(f"*{place.prefix}*") == []
    assert place.calls("scan") == before


@pytest.mark.parametrize("lost", [(), ("@keys",)], ids=["nothing is lost", "the list of its keys is lost"])
async def test_interrupted_erase_is_finished_by_the_next(
    place: Place, store: Store, pauses: Pauses, lost: Sequence[str]
) -> None:
    await write_release(store, FIRST, USERS)
    pauses.are_made = True
    for name in lost:
        place.execute("DEL", f"{place.prefix}:{{{release_ref(FIRST).incarnation}.0}}:{name}")
    erasing = asyncio.create_task(store.erase(release_ref(FIRST), allow_erasure))
    async with asyncio.timeout(SOON_S):
        await pauses.reached.wait()
        erasing.cancel()
        await asyncio.gather(erasing, return_exceptions=True)
        pauses.ended.set()
        assert place.of(release_ref(FIRST))
        assert await store.incarnations() == [release_ref(FIRST).incarnation]
        for call in (store.get_many(release_ref(FIRST), ["user:absent"]), store.put(draft_of(FIRST), USERS[:1])):
            with pytest.raises(ReleaseNotFound):
                await call
        await asyncio.gather(
            store.erase(release_ref(FIRST), allow_erasure), store.erase(release_ref(FIRST), allow_erasure)
        )
    assert place.of(release_ref(FIRST)) == []
    assert await store.incarnations() == []


@pytest.mark.parametrize("lost", [("incarnations",), ("incarnations", "catalogue"), ("catalogue",)])
async def test_stored_data_is_found_without_any_one_record(place: Place, store: Store, lost: Sequence[str]) -> None:
    for _ in range(2):
        await publish(store, [POPULAR, *USERS[:20]])
    await write_release(store, FIRST, USERS[:3], seal=False)
    known = {entry.incarnation for entry in (await store.catalogue()).releases}
    for name in lost:
        place.execute("DEL", f"{{{place.prefix}}}:{name}")
    other = connect(place.url.replace(place.prefix, place.prefix + "-other"))
    await write_release(other, SECOND, USERS[:3])
    assert await store.incarnations() == sorted(known | {release_ref(FIRST).incarnation})
    await other.close()


async def test_incarnations_are_recorded_before_the_server_counts_as_searched(redis_server: RedisServer) -> None:
    prefix = secrets.token_hex(4)
    with redis.Redis(port=redis_server.port) as server, server.monitor() as monitor:
        for number in range(10):
            server.set(f"{prefix}:{{unrecorded-{number}.0}}:row", b"")
        store = connect(redis_server.url(prefix=prefix))
        assert len(await store.incarnations()) == 10
        await store.close()
        server.echo("end")
        commands = list(iter(lambda: monitor.next_command()["command"], "ECHO end"))
    recorded = [command for command in commands if command.startswith(f"SADD {{{prefix}}}:incarnations")]
    assert ["unrecorded-" in command for command in recorded] == [True] * 10 + [False]


async def test_unreferenced_data_is_pruned(place: Place, store: Store) -> None:
    await publish(store, [POPULAR, *USERS[:20]])
    await write_release(store, FIRST, USERS[:3], seal=False)
    place.execute("DEL", f"{{{place.prefix}}}:incarnations")
    await prune(store)
    assert place.of(release_ref(FIRST)) == []
    assert [entry.state for entry in (await store.catalogue()).releases] == [State.LIVE]
    before = place.calls("scan")
    await prune(store)  # what the search found is named again
    assert place.calls("scan") == before
