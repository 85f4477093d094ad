"""A store that hotplate wrote before its keys had buckets: read as it is, and moved by the first change.

`tests/stores/format_1/redis.json` holds all keys of such a store, as it was written: a superseded release, a live one,
and the draft of a publisher that was killed; only the times are six years earlier, so that they are past on any clock.
Bytes are written as Latin-1; a list is a list, a hash an object.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pytest
import redis as redis_py

from stores.catalogue import Catalogue, ReleaseId, ReleaseRef, State
from stores.errors import CatalogueUnreadable, ReleaseConflict
from stores.lifecycle import prune, publish, rollback
from stores.redis.keys import MOVED
from stores.redis.store import RedisStore, open_url
from stores.store import Plan, Row
from stores.verification import verify
from tests.support.paths import ROOT
from tests.support.redis_server import RedisServer, running
from tests.support.stores import batches

WRITTEN = ROOT / "tests" / "stores" / "format_1" / "redis.json"
OLD, LIVE = ReleaseId("20261120T192115Z-6fa0"), ReleaseId("20261120T192115Z-c6ff")
LEFT_BEHIND = ReleaseId("20261120T000000Z-dead")
NEW_ROWS = [Row("popular:", b'{"id":"p","score":1}'), Row("user:000", b'{"id":"n","score":1}')]


@dataclass(frozen=True, slots=True)
class Deployment:
    """A store of format 1 under a prefix of its own."""

    client: redis_py.Redis
    prefix: str
    store: RedisStore

    def names(self) -> set[str]:
        """Return the names of its keys, without their prefix."""
        found = cast("list[bytes]", self.client.keys(f"*{self.prefix}*"))  # its type is that of every client
        return {name.decode().replace(self.prefix, "shop") for name in found}


def load(client: redis_py.Redis, prefix: str) -> None:
    """Write the store's keys under a prefix."""
    for name, value in json.loads(WRITTEN.read_text()).items():
        key = name.replace("shop", prefix, 1)
        if isinstance(value, str):
            client.set(key, value.encode("latin-1"))
        elif isinstance(value, list):
            client.rpush(key, *(item.encode("latin-1") for item in value))
        else:
            client.hset(key, mapping={field: text.encode("latin-1") for field, text in value.items()})


@pytest.fixture
async def deployment(redis_server: RedisServer) -> AsyncIterator[Deployment]:
    prefix = secrets.token_hex(4)
    with redis_py.Redis(port=redis_server.port) as client:
        load(client, prefix)
        store = open_url(redis_server.url(prefix=prefix))
        yield Deployment(client, prefix, store)
        await store.close()


# As its publishers sent it.
SWAP_OF_FORMAT_1 = """
local stored = redis.call('GET', KEYS[1])
local version = {store_id = '', generation = 0, token = ''}
if stored then version = cjson.decode(stored) end
if version.store_id ~= ARGV[1] or version.generation ~= tonumber(ARGV[2]) or version.token ~= ARGV[3] then
    return 0
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', KEYS[2], ARGV[2])
return 1
"""


async def test_a_store_of_format_1_is_read_and_verified(deployment: Deployment) -> None:
    store, names = deployment.store, deployment.names()
    found = await store.catalogue()
    assert (found.store_id, found.generation, found.live) == ("e38d1dcc569e1cd0", 7, LIVE)
    assert [(entry.ref, entry.state) for entry in found.releases] == [
        (ReleaseRef(OLD, OLD), State.SUPERSEDED),
        (ReleaseRef(LIVE, LIVE), State.LIVE),
        (ReleaseRef(LEFT_BEHIND, LEFT_BEHIND), State.DRAFT),
    ]
    for release, mark in ((OLD, "old"), (LIVE, "new")):
        ref = ReleaseRef(release, release)
        slots = await store.get_many(ref, ["user:000", "popular:é", "user:absent", "user:😀"])
        assert [json.loads(f"[{slot.decode()}]")[0]["id"] if isinstance(slot, bytes) else slot for slot in slots] == [
            f"i0{mark}", f"é{mark}", None, f"z{mark}",
        ]  # fmt: skip
        assert (await verify(store, ref)).counts == {"item": 1, "popular": 2, "user": 13}
        rows = [row async for row in store.scan(ref)]
        assert len(rows) == 17
        assert rows == sorted(rows, key=lambda row: row.key.encode())
    assert deployment.names() == names, "reading changed something"


async def test_the_first_publish_moves_the_catalogue_and_the_rest_goes_as_it_is_pruned(deployment: Deployment) -> None:
    store = deployment.store
    published = await publish(store, batches(NEW_ROWS), plan=Plan(2, 100), about={})
    assert (await store.catalogue()).live == published.manifest.release
    assert deployment.client.get(f"{deployment.prefix}:catalogue") == MOVED
    assert await rollback(store) == LIVE
    live = (await store.catalogue()).live_ref
    assert live == ReleaseRef(LIVE, LIVE)
    assert await store.get_many(live, ["user:000"]) == [b'{"id":"i0new","score":9.5},\n{"id":"j","score":8.5}']
    last = await publish(store, batches(NEW_ROWS), plan=Plan(2, 100), about={})
    dropped = await prune(store, keep=0, grace_s=0)
    assert set(dropped) == {OLD, LIVE, LEFT_BEHIND, published.manifest.release}
    found = await store.catalogue()
    assert found.releases == (found.find(last.manifest.release),)
    left = {name for name in deployment.names() if not name.startswith(f"shop:{{{found.releases[0].incarnation}.")}
    assert left == {"{shop}:catalogue", "{shop}:incarnations", "shop:catalogue"}


async def test_on_a_full_server_the_catalogue_can_be_moved(tmp_path: Path) -> None:
    with running(tmp_path) as server, redis_py.Redis(port=server.port) as client:
        load(client, "test")
        client.config_set("maxmemory", "1")
        store = open_url(server.url())
        assert await rollback(store) == OLD
        assert (await store.catalogue()).live == OLD
        await store.close()


async def test_of_those_who_move_the_catalogue_at_once_one_wins(deployment: Deployment) -> None:
    store = deployment.store
    seen = await store.catalogue()
    outcomes = await asyncio.gather(
        *(store.swap(seen, replace(seen, generation=8, token=f"t{n}")) for n in range(8)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType"] + ["ReleaseConflict"] * 7
    found = await store.catalogue()
    assert (found.generation, found.live, len(found.releases)) == (8, LIVE, 3)


async def test_a_swap_that_loses_moves_nothing(deployment: Deployment) -> None:
    names, seen = deployment.names(), await deployment.store.catalogue()
    with pytest.raises(ReleaseConflict):
        await deployment.store.swap(replace(seen, token="another"), replace(seen, generation=8))
    assert deployment.names() == names


async def test_once_it_is_moved_what_reads_format_1_finds_no_empty_store_and_cannot_swap(
    deployment: Deployment,
) -> None:
    store, old_place = deployment.store, f"{deployment.prefix}:catalogue"
    seen = await store.catalogue()
    await store.swap(seen, replace(seen, generation=8, token="moved"))
    left = json.loads(cast("bytes", deployment.client.get(old_place)))  # as above
    assert isinstance(left, dict)
    assert not {"store_id", "generation", "token", "live", "releases"} & set(left)
    for version in (seen.version, ("", 0, "")):
        arguments = (*version, "a record", deployment.prefix)
        assert deployment.client.eval(SWAP_OF_FORMAT_1, 2, old_place, f"{deployment.prefix}:changes", *arguments) == 0
    assert (await store.catalogue()).token == "moved"


async def test_a_moved_catalogue_that_is_lost_is_not_taken_for_a_store_made_anew(deployment: Deployment) -> None:
    store = deployment.store
    seen = await store.catalogue()
    await store.swap(seen, replace(seen, generation=8, token="moved"))
    deployment.client.delete(f"{{{deployment.prefix}}}:catalogue")
    with pytest.raises(CatalogueUnreadable):
        await store.catalogue()
    with pytest.raises(ReleaseConflict):
        await store.swap(Catalogue(), replace(seen, generation=1, token="anew"))
