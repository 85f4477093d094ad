"""The fast lane beside aiohttp: the same bytes get the same answer, whichever of the two has given it."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from serve.access.keys import create
from serve.connections.lane import BITS, Lane
from tests.support.lane import Pair, exchange
from tests.support.property import depths, explore
from tests.support.service import a_list, publish_lists


def ignore(answer: bytes) -> None:
    """Take an answer for nothing."""


HOST = b"Host: shop\r\n"
GET = b"GET /v1/recommendations/1 HTTP/1.1\r\n" + HOST + b"\r\n"
REAL = (
    b"GET /v1/recommendations/2?n=3 HTTP/1.1\r\nHost: recommend.internal:8080\r\nUser-Agent: python-httpx/0.28\r\n"
    b"Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"X-Forwarded-For: 10.1.2.3, 10.1.2.4\r\n"
    b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nX-Request-Id: page-17/2\r\n\r\n"
)


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


# Lines that a request may have, and that make it another's: the lane's own, with all that is odd about a header.
NAMES = [name.decode() for name in BITS] + [
    "Content-Length", "Transfer-Encoding", "Expect", "Upgrade", "TE", "Trailer", "Range", "Origin", "If-None-Match",
    "X-Request-Timeout-Ms", "If-Modified-Since", "Keep-Alive", "HTTP2-Settings", "Content-Encoding", "X-Other", "",
]  # fmt: skip
VALUES = [
    "", " ", "x", "keep-alive", "close", "Keep-Alive", "upgrade", "keep-alive, upgrade", "0", "5", "+5", "0, 0",
    "chunked", "gzip, chunked", "100-continue", "h2c", "*/*", "application/json", "text/csv", "application/json;q=0",
    "text/html,*/*;q=0.8", "*", '"x"', "https://shop.example", "Bearer abc", "Basic abc",
    "bearer", "a-good-id", "a bad id", "ü", "a\tb", "a\x01b",
    "x" * 1023, "x" * 1025, "x" * 9000, "1000", "soon", "bytes=0-1",
]  # fmt: skip
HEADER = st.builds(
    lambda name, colon, value, end: name + colon + value + end,
    st.sampled_from(NAMES),
    st.sampled_from([": "] * 8 + [":", ":  ", " : ", ":\t", "", ": \t"]),
    st.sampled_from(VALUES) | st.text(st.characters(max_codepoint=255), max_size=8),
    st.sampled_from(["\r\n"] * 12 + ["\n", "\r", " \r\n", "\r\n ", "\r\n\t", "\x00\r\n"]),
)
USER = "/v1/recommendations/"
TARGETS = [
    f"{USER}1", f"{USER}1?n=5", f"{USER}nobody", f"{USER}empty", f"{USER}1?n=1000", f"{USER}1?n=1001", f"{USER}1?n=0",
    f"{USER}1?n=05", f"{USER}1?n=5&n=6", f"{USER}1?m=5", f"{USER}1?", f"{USER}1#x", f"{USER}..", f"{USER}.", USER,
    f"{USER}1/", f"{USER}/1", f"{USER}%31", f"{USER}a%20b", f"{USER}a b", f"{USER}ü", f"{USER}{'u' * 128}",
    f"{USER}{'u' * 257}", "http://shop/v1/recommendations/1", "*", "/v1/popular", "/livez", "/v1/similar/1",
    "//v1/recommendations/1", f"{USER}1?segment=fr",
]  # fmt: skip
LINE = st.builds(
    lambda method, space, target, version: method + space + target + " " + version,
    st.sampled_from(["GET"] * 8 + ["HEAD", "POST", "get", "GET ", "OPTIONS", "G"]),
    st.sampled_from([" "] * 8 + ["  ", "\t", ""]),
    st.sampled_from(TARGETS[:1] * 8 + TARGETS),
    st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/2.0", "HTTP/1.1 ", "http/1.1", "HTTP/1.10", ""]),
)
REQUEST = st.builds(
    lambda *parts: "".join((*parts[:3], *parts[3], "\r\n", parts[4])).encode("latin-1", "replace"),
    LINE,
    st.sampled_from(["\r\n"] * 12 + ["\n", "\r\n\r\n", "\r\n "]),
    st.sampled_from(["Host: shop\r\n"] * 8 + ["", "Host:\r\n", "host: a b\r\n", "Host: a/b\r\n", "HOST: x:y\r\n"]),
    st.lists(HEADER, max_size=5),
    st.sampled_from([""] * 8 + ["{}", "0\r\n\r\n", GET.decode()]),
)


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    """Draw some requests, as the pieces in which they come."""
    whole = draw(st.lists(REQUEST | st.sampled_from([GET, REAL]), min_size=1, max_size=3))
    if draw(st.booleans()):
        return whole
    joined = b"".join(whole)
    cuts = sorted(draw(st.lists(st.integers(0, len(joined)), max_size=3)))
    return [piece for start, end in zip([0, *cuts], [*cuts, len(joined)], strict=True) if (piece := joined[start:end])]


@depths(2_000, 20_000)
def test_whatever_comes_is_answered_as_aiohttp_answers_it(pair: Pair, same: Callable[..., None], examples: int) -> None:
    lane = Lane(pair.dispatchers[1])
    taken = list[bool]()

    def check(drawn: list[bytes]) -> None:
        same(*drawn)
        taken.append(any(lane.answer(piece, 0, "", ignore) is not None for piece in drawn))

    explore(check, examples, drawn=pieces())
    assert sum(taken) > examples / 20, "most of what was drawn is not the lane's"


@pytest.mark.parametrize("request_", [GET, REAL])
def test_a_request_that_is_cut_at_any_byte_is_answered_the_same(same: Callable[..., None], request_: bytes) -> None:
    for at in range(1, len(request_)):
        same(request_[:at], request_[at:])
    same(request_, request_, request_ + request_, GET + request_[:50], request_[50:])


def test_the_plainest_requests_are_the_lanes(pair: Pair) -> None:
    lane = Lane(pair.dispatchers[1])
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
            answers = await exchange(pair.lane_port, [get(f"X-API-Key: {slow}")] * 3)
            assert [answers.count(b"HTTP/1.1 %d " % status) for status in (200, 429)] == [2, 2]  # the last is /livez

    asyncio.run(test())


def test_a_worker_that_drains_answers_as_aiohttp_does(store: Path) -> None:
    async def test() -> None:
        async with Pair(store) as pair:
            for dispatcher in pair.dispatchers:
                dispatcher.drain()
            difference = await pair.differ(GET, GET)
            assert difference is None, difference
            assert b"Connection: close" in await exchange(pair.lane_port, [GET])

    asyncio.run(test())
