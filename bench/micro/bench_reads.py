"""What reads cost inside of a process: lists out of files, key by key, and a thousand users in one request.

A round reads 1,000 lists: its time in µs is the ns of one of them. BENCH_USERS sets how many users the release has
whose lists are read key by key.
"""

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.payload import Payload
from aiohttp.test_utils import make_mocked_request
from pytest_benchmark.fixture import BenchmarkFixture

from hotplate.bench.lists import Shape, key_of
from hotplate.bench.micro.publishing import publish_to
from hotplate.bench.micro.servers import LIST_LENGTH, id_of
from hotplate.serve.api.handlers import Handler, Handlers
from hotplate.serve.api.parameters import BATCH_MEDIA, JSON
from hotplate.serve.api.scoring import Scoring
from hotplate.serve.lists import Lists, open_lists
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.file.store import LmdbStore

COUNT = 1_000
USERS = int(os.environ.get("BENCH_USERS", "100000"))
ROUNDS = 200
# What one user of a batch of a thousand may cost, in JSON.
BATCH_US = 4
BATCH = [id_of(user) for user in range(COUNT)]

Embedded = tuple[LmdbStore, ReleaseRef, dict[str, bytes]]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A store with a release of USERS lists, and a dict of the same; all of it was read once, which warms the map.

    The dict holds a value a key, as a real one would: shared values would stay in the processor's cache.
    """
    folder, shape = tmp_path_factory.mktemp("embedded"), Shape(USERS, LIST_LENGTH)
    release = publish_to(f"file://{folder}", shape, shape.values()).release
    store = LmdbStore(folder)
    copies = {key: value for key in map(key_of, range(USERS)) if (value := store.get(release, key)) is not None}
    assert len(copies) == USERS
    yield store, release, copies
    asyncio.run(store.close())


def one_by_one(benchmark: BenchmarkFixture, get: Callable[[str], bytes | None]) -> None:
    """Benchmark *get* on random keys: new strings, as requests make them, so a dict has to hash them."""
    benchmark.extra_info |= {"count": COUNT}

    def draw() -> tuple[tuple[list[str]], dict[str, object]]:
        return ([key_of(user) for user in random.choices(range(USERS), k=COUNT)],), {}  # noqa: S311 -- spreads reads

    def get_all(keys: Sequence[str]) -> None:
        for key in keys:
            get(key)

    pedantic = cast("Callable[..., object]", benchmark.pedantic)  # published without the types of its arguments
    pedantic(get_all, setup=draw, rounds=ROUNDS, warmup_rounds=5)


def bench_get(benchmark: BenchmarkFixture, embedded: Embedded) -> None:
    """Read lists from files, one by one."""
    store, release, _ = embedded
    one_by_one(benchmark, partial(store.get, release))


def bench_get_of_a_dict(benchmark: BenchmarkFixture, embedded: Embedded) -> None:
    """Read the same from a dict."""
    one_by_one(benchmark, embedded[2].get)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Give the loop that the lists are opened on."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=["json", "zstd"])
def lists(request: pytest.FixtureRequest, tmp_path: Path, runner: asyncio.Runner) -> Iterator[Lists]:
    """Open a small release in files, in either encoding."""
    shape = Shape(COUNT, LIST_LENGTH)
    publish_to(f"file://{tmp_path}", shape, shape.drawn(), request.param)
    opened = open_lists(f"file://{tmp_path}")
    runner.run(opened.__aenter__())
    yield opened
    runner.run(opened.__aexit__(None, None, None))


def for_batch(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, handler: Handler, batch: object, *, media: str = JSON
) -> None:
    """Benchmark all users in one request, from its body to its answer's bytes; neither parsing of HTTP nor sending."""
    benchmark.extra_info |= {"count": COUNT} | ({"goal": BATCH_US} if media == JSON else {})
    body = json.dumps(batch).encode()

    async def made() -> web.Request:
        loop = asyncio.get_running_loop()
        payload = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
        payload.feed_data(body)
        payload.feed_eof()
        return make_mocked_request("POST", "/", {"Accept": media}, payload=payload)

    request = runner.run(made())  # it keeps what is read of it, and is read again in every round

    async def serve_all() -> None:
        response = await handler(request, "", "")
        if isinstance(response.body, Payload):  # it is made while it is sent
            await response.body.as_bytes()

    benchmark(lambda: runner.run(serve_all()))


@pytest.mark.parametrize("media", BATCH_MEDIA)
def bench_batch(benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists, media: str) -> None:
    """The lists of many users, in each form."""
    for_batch(benchmark, runner, Handlers(lists.reader).recommend_many, {"users": BATCH, "n": 10}, media=media)


@pytest.mark.parametrize("form", ["records", "lists"])
def bench_score(benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists, form: str) -> None:
    """The same, as a Stream Analytics job requests them: every value is a string."""
    rows = [{"user": user, "n": "10"} if form == "records" else [user, "10"] for user in BATCH]
    for_batch(benchmark, runner, Scoring(lists.reader).score, {"data": rows})
