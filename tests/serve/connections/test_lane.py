"""The fast lane beside aiohttp: the same bytes get the same answer, whichever of the two has given it."""

import asyncio
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from serve.access.keys import create
from serve.connections.lane import Lane
from tests.support.lane import Pair, differ_by_socket, exchange
from tests.support.property import depths, explore
from tests.support.requests import GET, HOST, REAL, pieces
from tests.support.service import a_list, publish_lists
from tests.support.soak import SEED


def ignore(answer: bytes) -> None:
    """Take an answer for nothing."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lane") / "store"
    lists = {f"user:{n}": a_list(*(f"{n}-{m}" for m in range(20))) for n in range(5)}
    asyncio.run(publish_lists(folder, lists | {"user:..": a_list("dots"), "user:empty": b"", "user:a b": a_list("b")}))
    return folder


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def pair(runner: asyncio.Runner, store: Path) -> Iterator[Pair]:
    pair = Pair(store)
    runner.run(pair.__aenter__())
    yield pair
    runner.run(pair.__aexit__(None, None, None))


@pytest.fixture
def same(runner: asyncio.Runner, pair: Pair) -> Callable[..., None]:
    def check(*pieces: bytes) -> None:
        difference = runner.run(pair.differ(*pieces))
        assert difference is None, difference

    return check


def lane_of(pair: Pair) -> Lane:
    assert pair.lane.lane is not None
    return pair.lane.lane


@pytest.fixture(scope="module")
def known(runner: asyncio.Runner, pair: Pair) -> list[bytes]:
    """Requests of a caller who has the answer already."""
    answer = runner.run(exchange(pair.plain, [GET]))
    (etag,) = re.findall(rb"ETag: (.*)\r", answer)
    names = (b"If-None-Match: %b", b'If-None-Match: "x", W/%b', b"If-None-Match: *", b"If-None-Match: x%b")
    return [GET.replace(HOST, HOST + (name % etag if b"%b" in name else name) + b"\r\n") for name in names]


def test_whatever_comes_is_answered_as_aiohttp_answers_it(
    pair: Pair, same: Callable[..., None], known: list[bytes]
) -> None:
    taken = list[bool]()

    def check(drawn: random.Random) -> None:
        some = pieces(drawn, known)
        same(*some)
        taken.append(any(lane_of(pair).answer(piece, 0, "", ignore) is not None for piece in some))

    explore(check, 2_000, drawn=st.randoms(use_true_random=False))
    assert sum(taken) > len(taken) / 20, "most of what was drawn is not the lane's"


@depths(2_000, 100_000)
def test_requests_at_random_are_answered_as_aiohttp_answers_them(
    same: Callable[..., None], known: list[bytes], examples: int
) -> None:
    drawn = random.Random(SEED)
    for _ in range(examples):
        same(*pieces(drawn, known))


@depths(100, 2_000)
def test_over_sockets_it_is_the_same(runner: asyncio.Runner, pair: Pair, known: list[bytes], examples: int) -> None:
    async def test() -> None:
        drawn, ports = random.Random(SEED), (pair.listen(pair.lane), pair.listen(pair.plain))
        for _ in range(examples):
            difference = await differ_by_socket(*ports, *pieces(drawn, known))
            assert difference is None, difference

    runner.run(test())


@pytest.mark.parametrize("request_", [GET, REAL])
def test_a_request_that_is_cut_at_any_byte_is_answered_the_same(same: Callable[..., None], request_: bytes) -> None:
    for at in range(1, len(request_)):
        same(request_[:at], request_[at:])
    same(request_, request_, request_ + request_, GET + request_[:50], request_[50:])


def test_the_plainest_requests_are_the_lanes(pair: Pair) -> None:
    lane = lane_of(pair)
    for request in (GET, REAL, GET.replace(b"/1 ", b"/nobody ")):
        answer = lane.answer(request, 0, "", ignore)
        assert answer is not None
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    more = [
        "Content-Length: 0", "Transfer-Encoding: chunked", "Expect: 100-continue", "Upgrade: h2c", "TE: x", "X: y",
        "Connection: close", "Origin: null", "X-Request-Timeout-Ms: 5", "Range: bytes=0-1", "X-Other: a",
    ]  # fmt: skip
    for line in more:
        assert lane.answer(GET.replace(HOST, HOST + line.encode() + b"\r\n"), 0, "", ignore) is None


def test_keys_rates_the_deny_list_and_origins_hold_on_the_lane(store: Path, tmp_path: Path) -> None:
    keys, denied = tmp_path / "keys.json", tmp_path / "denied"
    good, slow = create(keys, "web", ["read"]).key, create(keys, "slow", ["read"], 1e-3).key
    other = create(keys, "operator", ["admin"]).key
    denied.write_text("item:1-0\nuser:2\n")

    def get(*lines: str, user: int = 1) -> bytes:
        return "\r\n".join((f"GET /v1/recommendations/{user} HTTP/1.1", "Host: x", *lines, "", "")).encode()

    key, origin = f"X-API-Key: {good}", "Origin: https://shop.example"
    bearer, operator = f"Authorization: Bearer {good}", f"X-API-Key: {other}"
    callers = [
        [], [key], [f"x-api-key: {good}"], ["X-API-Key: wrong"], [bearer], ["Authorization: Basic x"],
        [operator], [operator, bearer], [key, key], [key, bearer], [key, origin],
    ]  # fmt: skip

    async def test() -> None:
        async with Pair(store, keys=keys, deny_list=denied, origins=["https://shop.example"]) as pair:
            for first in (get(), get(key)):
                for lines in callers:
                    for user in (1, 2, 3):
                        difference = await pair.differ(first, get(*lines, user=user))
                        assert difference is None, difference
            answers = await exchange(pair.lane, [get(f"X-API-Key: {slow}")] * 3)
            assert [answers.count(b"HTTP/1.1 %d " % status) for status in (200, 429)] == [2, 2]  # the last is /livez

    asyncio.run(test())


def test_a_worker_that_drains_answers_as_aiohttp_does(store: Path) -> None:
    async def test() -> None:
        async with Pair(store) as pair:
            for dispatcher in pair.dispatchers:
                dispatcher.drain()
            difference = await pair.differ(GET, GET)
            assert difference is None, difference
            assert b"Connection: close" in await exchange(pair.lane, [GET])

    asyncio.run(test())
