"""What one request costs the service apart from HTTP: the read, the rendering of its response, and a library's call.

A round serves 1,000 users: its time in µs is the ns of one request.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.payload import Payload
from aiohttp.test_utils import make_mocked_request
from pytest_benchmark.fixture import BenchmarkFixture

from bench.lists import Shape, key_of
from bench.micro.publishing import publish_to
from bench.micro.servers import path_of
from serve.access.auth import Guard
from serve.access.keys import READ, create
from serve.api.handlers import Handler, Handlers
from serve.api.parameters import BATCH_MEDIA, JSON
from serve.api.scoring import Scoring
from serve.deny_list import DenyListFile
from serve.lists import Lists, open_lists
from stores.keys import USER

COUNT = 1_000
LIST_LENGTH = 20
# What one user of a batch of a thousand may cost, in JSON.
BATCH_US = 4
USERS = [key_of(user).removeprefix(USER) for user in range(COUNT)]


@pytest.fixture(scope="module")
def drawn() -> list[bytes]:
    """Draw lists as a model gives them."""
    return Shape(1, LIST_LENGTH).drawn()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    """Give the loop that the lists are opened on."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=["json", "zstd"])
def lists(
    request: pytest.FixtureRequest, tmp_path: Path, drawn: list[bytes], runner: asyncio.Runner
) -> Iterator[Lists]:
    """Open a small release in files, in either encoding."""
    url = f"file://{tmp_path}"
    publish_to(url, Shape(COUNT, LIST_LENGTH), drawn, request.param)
    opened = open_lists(url)
    runner.run(opened.__aenter__())
    yield opened
    runner.run(opened.__aexit__(None, None, None))


def for_each_user(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, work: Callable[[str], Coroutine[Any, Any, object]]
) -> None:
    """Benchmark *work* on one user after the other."""
    benchmark.extra_info |= {"count": COUNT, "each": "request"}

    async def serve_all() -> None:
        for user in USERS:
            await work(user)

    benchmark(lambda: runner.run(serve_all()))


def bench_lookup(benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists) -> None:
    """A user's list out of files, decompressed."""
    for_each_user(benchmark, runner, lists.reader.personal)


def bench_render(benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists) -> None:
    """The lookup, and the response with the first 10 items; neither parsing nor sending."""
    handlers, request = Handlers(lists.reader), make_mocked_request("GET", path_of(0))
    for_each_user(benchmark, runner, lambda user: handlers.recommend(request, user, "n=10"))


@pytest.mark.parametrize("denied", [1, 10_000])
def bench_render_with_deny_list(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists, denied: int, tmp_path: Path
) -> None:
    """The same, beside a deny-list with nothing on it that a list has."""
    file = tmp_path / "denied"
    file.write_text("".join(f"item:x{number}\nuser:x{number}\n" for number in range(denied)))
    lists.reader.deny_list = DenyListFile(file)
    bench_render(benchmark, runner, lists)


def for_batch(
    benchmark: BenchmarkFixture, runner: asyncio.Runner, handler: Handler, batch: object, *, media: str = JSON
) -> None:
    """Benchmark all users in one request, from its body to its answer's bytes; neither parsing of HTTP nor sending."""
    benchmark.extra_info |= {"count": COUNT, "each": "user"} | ({"goal": BATCH_US} if media == JSON else {})
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
    for_batch(benchmark, runner, Handlers(lists.reader).recommend_many, {"users": USERS, "n": 10}, media=media)


@pytest.mark.parametrize("form", ["records", "lists"])
def bench_score(benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists, form: str) -> None:
    """The same, as a Stream Analytics job requests them: every value is a string."""
    rows = [{"user": user, "n": "10"} if form == "records" else [user, "10"] for user in USERS]
    for_batch(benchmark, runner, Scoring(lists.reader).score, {"data": rows})


def bench_library(benchmark: BenchmarkFixture, runner: asyncio.Runner, lists: Lists) -> None:
    """The lookup as a library gives it: the first 10 items as objects."""
    for_each_user(benchmark, runner, lambda user: lists.personal(user, n=10))


@pytest.mark.parametrize("with_a", ["loopback", "key", "rate"])
def bench_admit(benchmark: BenchmarkFixture, runner: asyncio.Runner, tmp_path: Path, with_a: str) -> None:
    """Who may call: on loopback without keys, with a key, and with a key of a rate that four workers share."""
    rate = 1e8 if with_a == "rate" else None
    key = create(tmp_path / "keys.json", "web", ["read"], rate).key
    guard = Guard(None if with_a == "loopback" else tmp_path / "keys.json", workers=4)
    headers = make_mocked_request("GET", path_of(0), {"Host": "x", "Accept": "*/*", "X-API-Key": key}).headers
    for_each_user(benchmark, runner, lambda _: guard.admit(headers, READ))
