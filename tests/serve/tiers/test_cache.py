"""The cache of lists: no more bytes than it may hold, no other list than was read, and nothing from before a flip."""

import asyncio
from pathlib import Path

import pytest

from hotplate.serve.lists.baskets import compute_list
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.encoded_lists import EncodedList
from hotplate.serve.lists.options import Selection
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import CACHE, LOOKUPS
from hotplate.serve.releases.served import ServedRelease
from hotplate.serve.tiers.cache import ABSENT_S, NOT_CACHED, SHARD_BYTES, Cache
from hotplate.stores.catalogue import ReleaseId, ReleaseRef
from hotplate.stores.encoding import OFFSET_BYTES, USER
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.manifest import Manifest
from hotplate.stores.store import Reader
from tests.support import patience
from tests.support.clock import FakeClock
from tests.support.limited_service import counted, samples
from tests.support.memory_store import MemoryStore
from tests.support.redis_server import RedisServer
from tests.support.remote import RemoteStore, publish
from tests.support.service import a_list, published, serving, until
from tests.support.stores import allow_erasure, ref_of
from tests.support.virtual import virtual

MAX_BYTES = 1 << 20


def a_release() -> ServedRelease:
    release = ReleaseId("r")
    manifest = Manifest(release, "json", 0, {}, 0, "", (), (), {})
    return ServedRelease(ReleaseRef(release, "0"), "", manifest, {}, lambda _, value: value)


def test_cache_evicts_least_recently_used_within_its_bytes() -> None:
    cache = Cache(MAX_BYTES, FakeClock())
    release = a_release()
    cache.put(release, ["user:hot"], [b"hot"])
    for n in range(20_000):
        cache.put(release, [f"user:{n}"], [b"cold" * 100])
        assert cache.get(release, "user:hot") == b"hot"
        assert cache.get(release, f"user:{n}") == b"cold" * 100
    assert MAX_BYTES * 0.99 < cache.bytes <= MAX_BYTES
    assert cache.get(release, "user:0") is NOT_CACHED
    cache.put(release, ["user:huge"], [bytes(MAX_BYTES)])
    assert cache.get(release, "user:huge") is NOT_CACHED
    assert cache.get(release, "user:hot") == b"hot"


def test_large_cache_holds_no_more_than_its_bytes_in_all_shards() -> None:
    cache = Cache(4 * SHARD_BYTES, FakeClock())
    release = a_release()
    for n in range(20_000):
        cache.put(release, [f"user:{n}"], [b"cold" * 200])
        assert cache.get(release, f"user:{n}") == b"cold" * 200
    assert 4 * SHARD_BYTES * 0.99 < cache.bytes <= 4 * SHARD_BYTES
    assert cache.get(release, "user:0") is NOT_CACHED


def reads(store: RemoteStore) -> int:
    return sum(map(len, store.reads))


async def over(*, deny_list: DenyListFile | None = None, **stores: Reader) -> TieredReader:
    """Return a reader with a cache of stores, which it has read only to follow the live release."""
    reader = TieredReader(stores, cache_bytes=len(stores) * MAX_BYTES, deny_list=deny_list)
    await follow(reader, *stores.values())
    return reader


async def follow(reader: TieredReader, *stores: Reader) -> None:
    for tier in reader.tiers:
        await tier.follower.refresh()
    for store in stores:
        if isinstance(store, RemoteStore):
            store.reads.clear()


def remote_store(clock: FakeClock) -> RemoteStore:
    store = RemoteStore(MemoryStore(clock))
    store.batch = store.coalesce = 100
    return store


@pytest.fixture
def store(clock: FakeClock) -> RemoteStore:
    return remote_store(clock)


def text(answer: EncodedList) -> str:
    return answer.body[OFFSET_BYTES:].decode()


@virtual
async def test_a_hot_key_under_concurrent_load_costs_the_store_one_read(store: RemoteStore) -> None:
    await publish(store.inner, "first")
    reader = await over(remote=store)
    store.delay_s = 0.01
    for _ in range(20):
        answers = await asyncio.gather(*(reader.read(USER, "1") for _ in range(50)))
        assert {text(answer) for answer in answers} == {"first for 1"}
    assert reads(store) == 1
    cached = {labels[1]: reader.metrics.total(cell)[0] for labels, cell in reader.metrics.cells[CACHE].items()}
    assert cached == {"miss": 1, "shared": 49, "hit": 19 * 50}
    assert reader.metrics.total(LOOKUPS["personal", "hit"])[0] == 20 * 50


@virtual
async def test_cached_lists_are_served_during_store_outage_and_others_fall_through(
    store: RemoteStore, clock: FakeClock
) -> None:
    await publish(store.inner, "first", users=range(3))
    local = MemoryStore(clock)
    await publish(local, "second", users=range(5))
    reader = await over(remote=store, local=local)
    alone = await over(remote=store)
    for cached in (reader, alone):
        assert text(await cached.read(USER, "1")) == "first for 1"
    store.failure = StoreUnavailable("gone")
    many = await alone.personal_many(["1", "2"])
    assert [(answer.source, answer.status) for answer in many] == [("personal", "ok"), ("popular", "error")]
    with pytest.raises(StoreUnavailable):
        await alone.personal_many(["1", "2"], must_read=True)
    assert (await compute_list(alone, [("a", None)], Selection(1))).encoded.status == "error"
    answers = await asyncio.gather(*(reader.read(USER, user) for user in ("1", "2")))
    assert [(answer.tier, text(answer)) for answer in answers] == [("remote", "first for 1"), ("local", "second for 2")]


@virtual
async def test_absent_key_is_reread_after_a_delay_and_falls_through_meanwhile(
    store: RemoteStore, clock: FakeClock
) -> None:
    await publish(store.inner, "first")
    other = remote_store(clock)
    await publish(other.inner, "second", users=range(9))
    reader = await over(one=store, other=other)
    for _ in range(3):
        assert text(await reader.read(USER, "8")) == "second for 8"
        assert (await reader.read(USER, "nobody")).status == "unknown"
    assert (reads(store), reads(other)) == (2, 2)
    await asyncio.sleep(ABSENT_S)
    await reader.read(USER, "nobody")
    assert (reads(store), reads(other)) == (3, 3)


@virtual
async def test_a_batch_reads_only_what_the_cache_lacks_and_is_of_one_release(store: RemoteStore) -> None:
    first = await publish(store.inner, "first")
    reader = await over(remote=store)
    await reader.personal_many(["0", "1"])
    store.broken_keys = {"user:4"}
    many = await reader.personal_many(["0", "1", "2", "nobody", "4"])
    assert [answer.status for answer in many] == ["ok", "ok", "ok", "unknown", "error"]
    assert reads(store) == 5
    await reader.personal_many(["1", "0", "nobody"])
    assert reads(store) == 5
    await reader.personal_many(["4"])
    assert reads(store) == 6, "an error is kept"
    store.broken_keys = set()
    second = await publish(store.inner, "second")
    await store.inner.erase(await ref_of(store.inner, first), allow_erasure)
    many = await reader.personal_many(["0", "3"])
    assert [(answer.release.id, text(answer)) for answer in many] == [
        (second, "second for 0"),
        (second, "second for 3"),
    ]


@virtual
async def test_deny_list_applies_before_the_cache_and_item_filters_after_it(store: RemoteStore, tmp_path: Path) -> None:
    await publish(store.inner, "first")
    denied = tmp_path / "denied.txt"
    denied.write_text("")
    deny_list = DenyListFile(denied)
    reader = await over(deny_list=deny_list, remote=store)
    assert (await reader.read(USER, "1")).source == "personal"
    denied.write_text("user:1\n")
    for _ in range(2):  # content counts when it was the same twice
        deny_list.watched[0].poll()
    assert (await reader.read(USER, "1")).source == "popular"
    assert [answer.status for answer in await reader.personal_many(["1", "2", "1"])] == ["unknown", "ok", "unknown"]


@pytest.mark.usefixtures("patience")
def test_service_shows_reads_saved_by_its_cache(tmp_path: Path, redis_server: RedisServer) -> None:
    url = redis_server.url(prefix="cached")
    published(url, {"user:1": a_list("a", "b"), "popular:": a_list("p")})
    with serving(tmp_path, "--store", url, "--cache-mb", "1", "--budget", "60", before=patience.INSTALL) as service:
        for _ in range(10):
            assert service.get("/v1/recommendations/1").json["source"] == "personal"
        until(lambda: samples(service, "hotplate_cache_bytes"), "the cache is not in the metrics")
        assert counted(service, "hotplate_cache_requests_total", outcome="miss", store="redis") == 1
        assert counted(service, "hotplate_cache_requests_total", outcome="hit", store="redis") == 9
