"""CPU time of look-ups and publishing in one process."""

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hotplate.bench.measure.lists import Shape, key_of
from hotplate.bench.options import VENDOR
from hotplate.serve.embedded import open_lists, open_sync
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.tiers.tier import tiers_of
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.connect import connect
from hotplate.stores.encoding import OFFSET_BYTES, USER, decode, encode
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Reader, Store
from tests.support.lane import MemoryTransport, Pair, connected
from tools.conftest import COUNT, Benchmark, FilledStore, publish_lists

IN_FLIGHT = 16
REMOTE_COUNT = 320
TIMEOUT_S = 5.0
PUBLISHES = 3
# Runs a coroutine on the loop that the benchmarks share, and returns its result.
Run = Callable[[Any], Any]
REDIS_BATCHES = (1, 8, 32)


class RemoteStore(NamedTuple):
    """A store's fixture, the beginning of its URL, and what a read of it is called in the figures."""

    fixture: str
    client: str
    what: str


REMOTE = {
    "redis": RemoteStore("redis", "", "a read from Redis, 16 in flight"),
    "redis-py": RemoteStore("redis", VENDOR, "the same through redis-py"),
    "cosmos": RemoteStore("cosmos", "", "a point read from Cosmos DB (emulated), 16 in flight"),
    "sdk": RemoteStore("cosmos", VENDOR, "the same through azure-cosmos"),
}
# Excludes other processes and a store's server.
pytestmark = pytest.mark.benchmark(group="look-ups", timer=time.process_time)


def random_keys(users: int, count: int = COUNT) -> list[str]:
    """Draw *count* keys of random users; they are new strings, whose hashes are not cached yet."""
    return [key_of(user) for user in random.Random(0).choices(range(users), k=count)]


def test_file_read(benchmark: Benchmark, files: FilledStore, run: Run) -> None:
    store = LmdbStore(Path(files.url.removeprefix("file://")))
    run(store.warm(files.release))
    keys = random_keys(files.shape.users)
    assert store.get(files.release, keys[0])
    benchmark.extra_info |= {"what": f"a read from a file of {files.shape.users:,} users", "count": COUNT}
    benchmark(lambda: [store.get(files.release, key) for key in keys])
    run(store.close())


def test_dict_read(benchmark: Benchmark, files: FilledStore, values: list[bytes]) -> None:
    copies = {key_of(user): bytes(bytearray(values[user % len(values)])) for user in range(files.shape.users)}
    keys = random_keys(files.shape.users)
    benchmark.extra_info |= {"what": "the same from a dict", "count": COUNT}
    benchmark(lambda: [copies.get(key) for key in keys])


def test_list_of_library(benchmark: Benchmark, files: FilledStore) -> None:
    users = [key.removeprefix(USER) for key in random_keys(files.shape.users)]
    with open_sync(files.url) as lists:
        assert lists.personal(users[0]).items
        benchmark.extra_info |= {"what": "a list from `hotplate.open_sync`, decoded", "count": COUNT}
        benchmark(lambda: [lists.personal(user) for user in users])


def test_list_by_way_of_a_loop(benchmark: Benchmark, files: FilledStore) -> None:
    """A program without a loop may also use `hotplate.open`, on one in another thread."""
    users = [key.removeprefix(USER) for key in random_keys(files.shape.users)]
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opened = open_lists(files.url)
    lists = asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
    benchmark.extra_info |= {"what": "the same from `hotplate.open` on a loop in another thread", "count": COUNT}
    benchmark(lambda: [asyncio.run_coroutine_threadsafe(lists.personal(user), loop).result() for user in users])
    asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def read_one_by_one(store: Reader, release: ReleaseRef, keys: Sequence[str]) -> None:
    """Read each key separately."""
    for key in keys:
        [value] = await store.get_many(release, [key], timeout_s=TIMEOUT_S)
        assert isinstance(value, bytes), f"{key}: {value!r}"


async def read_all(store: Reader, release: ReleaseRef, keys: Sequence[str]) -> None:
    """Read keys one by one, IN_FLIGHT at a time."""
    await asyncio.gather(*(read_one_by_one(store, release, keys[first::IN_FLIGHT]) for first in range(IN_FLIGHT)))


@contextmanager
def opened(run: Run, url: str) -> Iterator[Store]:
    """Open a store on the shared loop until the block ends."""

    async def connected_store() -> Store:
        return connect(url)

    store: Store = run(connected_store())
    yield store
    run(store.close())


@pytest.mark.parametrize("case", REMOTE)
def test_remote_read(benchmark: Benchmark, request: pytest.FixtureRequest, run: Run, case: str) -> None:
    store = REMOTE[case]
    filled: FilledStore = request.getfixturevalue(store.fixture)
    keys = random_keys(filled.shape.users, REMOTE_COUNT)
    benchmark.extra_info |= {"what": store.what, "count": REMOTE_COUNT}
    with opened(run, store.client + filled.url) as reader:
        run(read_all(reader, filled.release, keys))
        benchmark(lambda: run(read_all(reader, filled.release, keys)))


@pytest.mark.parametrize("keys_at_once", REDIS_BATCHES)
@pytest.mark.parametrize("vendor", ["", VENDOR], ids=["multiplexed", "redis-py"])
def test_batch_from_redis(benchmark: Benchmark, redis: FilledStore, run: Run, vendor: str, keys_at_once: int) -> None:
    keys = random_keys(redis.shape.users, REMOTE_COUNT)
    batches = [keys[start : start + keys_at_once] for start in range(0, REMOTE_COUNT, keys_at_once)]

    async def read_batches(reader: Reader) -> None:
        for batch in batches:
            assert len(await reader.get_many(redis.release, batch, timeout_s=TIMEOUT_S)) == len(batch)

    client = "redis-py" if vendor else "our connection"
    what = f"a key from Redis through {client}, {keys_at_once} at once"
    benchmark.extra_info |= {"what": what, "count": REMOTE_COUNT}
    with opened(run, vendor + redis.url) as reader:
        run(read_batches(reader))
        benchmark(lambda: run(read_batches(reader)))


def test_encode(benchmark: Benchmark, values: list[bytes]) -> None:
    lists = [decode(body[OFFSET_BYTES:]) for body in values[:COUNT]]
    benchmark.extra_info |= {"what": "encoding a list of 20 items", "count": len(lists)}
    benchmark(lambda: [encode(items) for items in lists])


def test_decode(benchmark: Benchmark, values: list[bytes]) -> None:
    benchmark.extra_info |= {"what": "decoding a list of 20 items", "count": COUNT}
    benchmark(lambda: [decode(body[OFFSET_BYTES:]) for body in values[:COUNT]])


@pytest.fixture
def pair(files: FilledStore, run: Run) -> Iterator[Pair]:
    async def entered() -> Pair:
        return await Pair(TieredReader(tiers_of([files.url]))).__aenter__()

    servers = run(entered())
    yield servers
    run(servers.__aexit__(None, None, None))


@pytest.mark.parametrize("fast", [True, False], ids=["lane", "aiohttp"])
def test_answer(benchmark: Benchmark, files: FilledStore, pair: Pair, run: Run, *, fast: bool) -> None:
    requests = [
        f"GET /v1/recommendations/{key.removeprefix(USER)} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
        for key in random_keys(files.shape.users, REMOTE_COUNT)
    ]

    async def connect_in_memory() -> MemoryTransport:
        return connected(pair.lane if fast else pair.plain)[1]

    transport = run(connect_in_memory())

    async def answer_all() -> None:
        for request in requests:
            transport.written.clear()
            transport.feed(request)
            while not transport.written.endswith(b"}"):  # noqa: ASYNC110 -- the loop's turns are measured, too
                await asyncio.sleep(0)

    run(answer_all())
    assert transport.written.startswith(b"HTTP/1.1 200 OK")
    what = "a GET answered by the fast lane, without a socket" if fast else "the same by aiohttp's handler"
    benchmark.extra_info |= {"what": what, "count": REMOTE_COUNT}
    benchmark(lambda: run(answer_all()))


@pytest.mark.benchmark(group="publishing", timer=time.process_time)
@pytest.mark.parametrize("kind", ["files", "Redis"])
def test_publish(
    benchmark: Benchmark,
    request: pytest.FixtureRequest,
    shape: Shape,
    values: list[bytes],
    tmp_path: Path,
    *,
    kind: str,
) -> None:
    url = f"file://{tmp_path}/published-"
    if kind == "Redis":
        url = request.getfixturevalue("redis_server").url("published-")
    numbers = itertools.count()
    benchmark.extra_info |= {"what": f"publishing {shape.users:,} lists to {kind}", "count": shape.users}
    benchmark.pedantic(lambda: publish_lists(f"{url}{next(numbers)}", shape, values), rounds=PUBLISHES)
