"""The fast lane compared with aiohttp: equal requests get equal answers."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from inspect import getsource
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import orjson
import pytest

from hotplate.serve.access.keys import create, revoke
from hotplate.serve.connections.connection import Connection, State
from hotplate.serve.connections.server import HttpServer
from hotplate.serve.generation import Policy
from hotplate.serve.lists.deny_list import DenyListFile
from hotplate.serve.lists.reader import TieredReader
from hotplate.serve.metrics import REQUEST_TIMES
from hotplate.serve.processes.readiness import WorkerReadiness
from hotplate.serve.processes.states import Reporter
from hotplate.serve.releases.erasures import KnownErasures
from hotplate.serve.releases.follower import Follower
from hotplate.serve.settings import Limits
from hotplate.serve.telemetry.access_log import AccessLog
from hotplate.serve.watched import WatchedFiles
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.errors import StoreUnavailable
from hotplate.stores.file.store import LmdbStore
from hotplate.stores.store import Reader, ReadResult, Row
from hotplate.stores.users import erase_users
from tests.support.lane import TURNS, MemoryTransport, Pair, connected, exchange, needs_lane
from tests.support.memory_store import MemoryStore
from tests.support.paths import ROOT
from tests.support.property import depths
from tests.support.remote import RemoteStore
from tests.support.requests import CORPUS, END, GET, HOST, REAL, pieces
from tests.support.service import a_list
from tests.support.soak import SEED, in_soak
from tests.support.stores import publish as publish_rows

if TYPE_CHECKING:
    from hotplate.serve.connections.lane import Lane

pytestmark = needs_lane
LISTS = {f"user:{n}": a_list(*(f"{n}-{m}" for m in range(20))) for n in range(5)} | {
    "user:..": a_list("dots"), "user:empty": b"", "user:a b": a_list("b"), "user:a.b@c:d~e_f-g": a_list("c"),
    "item:1": a_list("2", "3"), "popular:": a_list(*map(str, range(15))),
    "user@basket:2": a_list("basket"), "popular@basket:": a_list(*map(str, range(9))),
}  # fmt: skip


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", params=["at hand", "awaited", "files"])
def pair(
    request: pytest.FixtureRequest, runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    # That a header is too large in all is seen only between two requests, and the lane is done with the first sooner.
    limits = Limits(header_bytes=1 << 16)
    is_file = request.param == "files"
    store = LmdbStore(tmp_path_factory.mktemp("files")) if is_file else MemoryStore()
    pair = Pair(runner.run(reader_of(store, awaited=request.param == "awaited")), limits=limits)
    runner.run(pair.__aenter__())
    yield pair
    runner.run(pair.__aexit__(None, None, None))


async def reader_of(
    store: MemoryStore | LmdbStore, *, awaited: bool = False, denied: Path | None = None
) -> TieredReader:
    """Publish LISTS and return a reader of them, over memory or a simulated network."""

    rows = sorted(Row(key, value) for key, value in LISTS.items())
    await publish_rows(store, rows, about={"lists": {"basket": {}}})
    read: Reader = RemoteStore(store) if awaited and isinstance(store, MemoryStore) else store
    # With the usual budget, one of two servers might answer late on a busy machine, with the popular list.
    return TieredReader({"store": read}, budget_s=60.0, deny_list=DenyListFile(denied))


@pytest.fixture
def same(runner: asyncio.Runner, pair: Pair) -> Callable[..., None]:
    return lambda *pieces, turns=TURNS: runner.run(pair.check(*pieces, turns=turns))


def lane_of(pair: Pair) -> "Lane":
    assert pair.lane.lane is not None
    return pair.lane.lane


@pytest.fixture
def takes(runner: asyncio.Runner, pair: Pair) -> Callable[[bytes], bool]:
    """Tell whether bytes are the lane's."""

    async def answer(data: bytes) -> bytes | None:
        return lane_of(pair).answer(data, 0, lambda _: None)

    return lambda data: runner.run(answer(data)) is not None


@pytest.fixture(scope="module")
def known(runner: asyncio.Runner, pair: Pair) -> list[bytes]:
    """Return requests of a caller that has the answer already."""
    answer = runner.run(exchange(pair.plain, [GET]))
    (etag,) = re.findall(rb"ETag: (.*)\r", answer)
    names = (b"If-None-Match: %b", b'If-None-Match: "x", W/%b', b"If-None-Match: *", b"If-None-Match: x%b")
    return [GET.replace(HOST, HOST + (name % etag if b"%b" in name else name) + b"\r\n") for name in names]


@depths(300, 15_000)  # 100,500 with SOAK_MINUTES=67
@pytest.mark.timeout(3600)
def test_lane_and_aiohttp_answer_random_requests_equally(
    takes: Callable[[bytes], bool],
    same: Callable[..., None],
    known: list[bytes],
    *,
    examples: int,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    random_source = random.Random(f"{SEED} {request.node.name}")  # other requests of each store
    sent = 0
    taken = 0
    for _ in range(examples):
        connection = pieces(random_source, known)
        same(*connection, turns=random_source.randrange(TURNS + 1))
        sent += len(connection) - connection.count(b"")
        taken += any(map(takes, connection))
    assert taken > examples / 20, "most of what was drawn is not the lane's"
    record_property("connections", examples)
    record_property("pieces", sent)
    record_property("with a request for the lane", taken)


@pytest.mark.parametrize("number", range(len(CORPUS)))
@pytest.mark.parametrize("step", [pytest.param(13, id="quick"), in_soak(1)])
def test_lane_and_aiohttp_answer_ambiguous_requests_equally(same: Callable[..., None], number: int, step: int) -> None:
    whole = CORPUS[number]
    same(whole)
    same(whole, GET)
    same(GET, whole, REAL)
    for at in range(1, len(whole), step):
        same(whole[:at], whole[at:])


def test_request_body_is_never_parsed_as_a_request(same: Callable[..., None]) -> None:
    next_one = b"GET /livez HTTP/1.1\r\nX: "
    wait = [b""] * 12
    for at in range(8):
        body = b"x" * at + END + b"x" * 8
        head = b"POST /v1/recommendations/1 HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        begun = next_one[: at + len(END)]
        for cut in range(len(head) - len(END), len(head)):
            for turns in (0, 1, 2):
                same(head[:cut], head[cut:] + body, begun, *wait, GET, turns=turns)
                same(GET, head[:cut], head[cut:] + body, begun, *wait, GET, GET[:20], turns=turns)


def test_plain_requests_are_answered_by_the_lane(
    runner: asyncio.Runner, pair: Pair, takes: Callable[[bytes], bool], known: list[bytes]
) -> None:
    similar, popular = GET.replace(b"recommendations", b"similar"), GET.replace(b"recommendations/1", b"popular?n=2")
    java = GET.replace(
        HOST, HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    )
    for request in (GET, REAL, GET.replace(b"/1 ", b"/nobody "), similar, popular, java, *known):
        assert takes(request)
        status = b"HTTP/1.1 304 " if request in known[:3] else b"HTTP/1.1 200 "
        assert runner.run(exchange(pair.lane, [request])).startswith(status)
    more = [
        "Content-Length: 0", "Transfer-Encoding: chunked", "Expect: 100-continue", "TE: x", "X: y",
        "Connection: close", "Connection: upgrade, close", "Connection: other", "Origin: null",
        "X-Request-Timeout-Ms: 5", "Range: bytes=0-1", "X-Other: a",
    ]  # fmt: skip
    for line in more:
        assert not takes(GET.replace(HOST, HOST + line.encode() + b"\r\n"))


@pytest.mark.parametrize("awaited", [False, True])
async def test_lane_enforces_keys_rates_deny_list_and_origins(tmp_path: Path, *, awaited: bool) -> None:
    keys = tmp_path / "keys.json"
    denied = tmp_path / "denied"
    good = create(keys, "web", ["read"]).key
    other = create(keys, "operator", ["admin"]).key
    denied.write_text("item:1-0\nuser:2\n" + "".join(f"item:3-{number}\n" for number in range(15)))

    def get(*lines: str, user: int = 1) -> bytes:
        return "\r\n".join((f"GET /v1/recommendations/{user} HTTP/1.1", "Host: x", *lines, "", "")).encode()

    key = f"X-API-Key: {good}"
    origin = "Origin: https://shop.example"
    bearer = f"Authorization: Bearer {good}"
    operator = f"X-API-Key: {other}"
    callers = [
        [], [key], [f"x-api-key: {good}"], ["X-API-Key: wrong"], [bearer], ["Authorization: Basic x"],
        [operator], [operator, bearer], [key, key], [key, bearer], [key, origin],
    ]  # fmt: skip

    reader = await reader_of(MemoryStore(), awaited=awaited, denied=denied)
    async with Pair(reader, keys=keys, origins=["https://shop.example"]) as pair:
        for first in (get(), get(key)):
            for lines in callers:
                for user in (1, 2, 3):
                    await pair.check(first, get(*lines, user=user))


def requests_that_are_partly_rejected(keys: Path) -> list[bytes]:
    """Return GETs without a key, with wrong ones, and with those of a reader, an operator and two slow clients."""
    reader = create(keys, "web", ["read"]).key
    slow = create(keys, "slow", ["read"], 0.4).key
    operator = create(keys, "operator", ["admin"]).key
    once = create(keys, "once", ["read"], 0.4).key
    requests = list[bytes]()
    for key in (None, "wrong", "a.b.c", reader, slow, operator, reader, slow, slow):
        header = b"" if key is None else b"X-API-Key: %b\r\n" % key.encode()
        requests.append(GET[:-2] + header + b"X-Request-Id: page-17/2\r\n\r\n")
    unknown_list = requests[3].replace(b"/1 ", b"/1?list=nothing ").replace(reader.encode(), once.encode())
    return [*requests, unknown_list]


def count_requests(reader: TieredReader) -> Counter[tuple[str, ...]]:
    """Count the requests by the labels of their metrics."""
    histograms = reader.metrics.counted(REQUEST_TIMES)
    return Counter({labels: int(sum(cells[:-1])) for labels, cells in histograms.items()})


def assert_answered_without_aiohttp(server: HttpServer, request: bytes, status: int) -> None:
    connection, transport = connected(server)
    transport.feed(request)
    assert transport.written.startswith(b"HTTP/1.1 %d " % status)
    assert connection.state is State.IDLE, "aiohttp was needed"


def logged_requests(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """Return the lines of the access log without what differs between two equal requests."""
    lines = [orjson.loads(line) for line in capsys.readouterr().err.splitlines()]
    for line in lines:
        for varying in ("time", "duration_ms", "request_id"):
            del line[varying]
    return lines


@pytest.mark.parametrize("origins", [(), ("https://shop.example",)])
async def test_lane_rejections_match_aiohttp_in_bytes_metrics_and_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], origins: Sequence[str]
) -> None:
    keys = tmp_path / "keys.json"
    requests = requests_that_are_partly_rejected(keys)
    monkeypatch.setattr("hotplate.serve.access.auth.monotonic", lambda: 1000.0)  # Retry-After must be the same
    reader = await reader_of(MemoryStore())
    async with Pair(reader, keys=keys, origins=origins, access_log=AccessLog(1.0, users="hashed")) as pair:
        counts = list[Counter[tuple[str, ...]]]()
        for server in (pair.lane, pair.plain):
            before = count_requests(reader)
            answers = await exchange(server, requests)
            statuses = [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", answers)]
            assert statuses == [401, 401, 401, 200, 200, 403, 200, 429, 429, 404, 200]
            assert re.findall(rb"Retry-After: (\d+)", answers) == [b"3", b"3"]
            counts.append(count_requests(reader) - before)
        assert counts[0] == counts[1]
        assert await exchange(pair.lane, requests) == await exchange(pair.plain, requests)
        for request, status in zip(requests, (401, 401, 401, 200, 429, 403), strict=False):
            assert_answered_without_aiohttp(pair.lane, request, status)

    lines = logged_requests(capsys)
    rounds = len(requests) + 1
    assert lines[:rounds] == lines[rounds : 2 * rounds]
    assert lines[2 * rounds : 3 * rounds] == lines[3 * rounds :][:rounds]
    assert {len(str(line["user"])) for line in lines if line["status"] == 200 and "user" in line} == {32}


def test_lane_keeps_only_policies_and_constants() -> None:
    """What `Lane._renew` keeps must begin another generation when it changes, or never change."""
    source = (ROOT / "serve/connections/lane.pyx").read_text()
    body = source.partition("cdef int _renew(self)")[2].partition("    cdef object _answer(")[0]
    body += getsource(vars(TieredReader)["hides_users"].fget)
    attributes = set(re.findall(r"\.([a-z]\w*)", body))
    policies = {
        "draining": vars(WorkerReadiness)["draining"],
        "current": vars(DenyListFile)["current"],
        "live": vars(Follower)["live"],
        "canary": vars(Follower)["followed_canary"],  # which the property Follower.canary reads
        "erased": vars(KnownErasures)["erased"],
    }
    constants = {
        "tiers", "follower", "local_rows", "needs_io", "manifest", "encoding", "users", "items", "anonymous", "number",
        "template", "hides_users", "deny_list", "erasures", "releases", "filters", "has_expiries",
    }  # fmt: skip
    assert attributes == policies.keys() | constants
    for name, policy in policies.items():
        assert isinstance(policy, Policy), name


def write_watched(file: Path, watched: Sequence[WatchedFiles], text: str) -> None:
    """Write a watched file, and let the service see that it has changed and is complete."""
    file.write_text(text)
    for _ in range(2):
        for files in watched:
            files.poll()


async def test_policy_changes_apply_to_the_next_lane_request(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    denied = tmp_path / "denied"
    denied.write_text("")
    key = create(keys, "web", ["read"]).key
    get = GET.replace(HOST, HOST + b"X-API-Key: %b\r\n" % key.encode())
    store = MemoryStore()
    async with Pair(await reader_of(store, denied=denied), keys=keys) as pair:
        _, with_lane = pair.dispatchers
        (loaded,) = with_lane.guard.watched
        deny = partial(write_watched, denied, pair.reader.deny_list.watched)
        assert b'"1-0"' in await exchange(pair.lane, [get])
        deny("item:1-0\n")
        assert b'"1-0"' not in await exchange(pair.lane, [get])
        deny("user:1\n")
        assert b'"source":"popular"' in await exchange(pair.lane, [get])
        deny("")
        assert b'"1-0"' in await exchange(pair.lane, [get])
        await publish_rows(store, [Row("popular:", a_list("new")), Row("user:1", a_list("newest"))])
        await pair.reader.tiers[0].follower.refresh()
        assert b'"newest"' in await exchange(pair.lane, [get])
        revoke(keys, "web")
        for _ in range(2):
            loaded.poll()
        assert b"HTTP/1.1 401 " in await exchange(pair.lane, [get])


async def test_lane_follows_a_change_although_the_first_request_after_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denied = tmp_path / "denied"
    denied.write_text("")
    async with Pair(await reader_of(MemoryStore(), denied=denied)) as pair:
        assert b'"1-0"' in await exchange(pair.lane, [GET])
        write_watched(denied, pair.reader.deny_list.watched, "item:1-0\n")
        _, transport = connected(pair.lane)
        with monkeypatch.context() as patch:
            patch.setattr(DenyListFile, "current", property(Mock(side_effect=RuntimeError("a defect"))))
            with pytest.raises(RuntimeError, match="a defect"):
                transport.feed(GET)
        transport.close()
        assert b'"1-0"' not in await exchange(pair.lane, [GET])


async def waiting(pair: Pair, gate: asyncio.Event, *pieces: bytes) -> tuple[Connection, MemoryTransport]:
    """Send pieces on a new connection while its first request waits for a store that answers once the gate is open."""
    connection, transport = connected(pair.lane)
    for piece in pieces:
        transport.feed(piece)
        await asyncio.sleep(0)
    assert connection.idle_since == inf
    assert not transport.written
    assert not gate.is_set()
    return connection, transport


class GatedStore(RemoteStore):
    """Answers when it may."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.gate = asyncio.Event()
        self.gate.set()

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        if keys[0].startswith("user"):
            await self.gate.wait()
        return await super().get_many(release, keys, timeout_s=timeout_s)


@asynccontextmanager
async def gated(denied: Path | None = None) -> AsyncIterator[tuple[Pair, GatedStore]]:
    """Return two servers over a store with a closed gate."""
    memory = MemoryStore()
    await reader_of(memory)
    store = GatedStore(memory)
    async with Pair(TieredReader({"store": store}, budget_s=60, deny_list=DenyListFile(denied))) as pair:
        store.gate.clear()
        try:
            yield pair, store
        finally:
            store.gate.set()


async def test_requests_during_a_store_read_wait_in_a_bounded_queue() -> None:
    async with gated() as (pair, store):
        some = GET, GET.replace(b"/1 ", b"/2 "), REAL
        _, transport = await waiting(pair, store.gate, *some)
        assert transport.is_reading()
        _, full = await waiting(pair, store.gate, *some, *[REAL] * 250)
        assert not full.is_reading()
        held = pair.lane.bytes_in_flight
        assert held > 0
        _, cut = connected(pair.lane)
        cut.feed(GET)
        pair.lane.bytes_in_flight += pair.lane.limits.bytes_in_flight
        cut.feed(GET)
        assert not cut.is_closing(), "it may be the body of a request that is being refused"
        cut.feed(REAL * 250)
        pair.lane.bytes_in_flight -= pair.lane.limits.bytes_in_flight
        assert cut.is_closing()
        assert not store.gate.is_set()
        store.gate.set()
        for written_to, count in ((transport, 3), (full, 253)):
            while written_to.written.count(b"HTTP/1.1 200 ") < count:
                await asyncio.sleep(0)
        users = re.findall(rb'"user":"(\d)"', bytes(transport.written))
        assert users == [b"1", b"2", b"2"]
        assert full.is_reading()
        assert pair.lane.bytes_in_flight < held


async def test_client_that_hangs_up_during_a_read_disturbs_no_other() -> None:
    async with gated() as (pair, store):
        connection, transport = await waiting(pair, store.gate, GET)
        transport.close()
        store.gate.set()
        while connection.state is State.STORE:
            await asyncio.sleep(0)
        assert not transport.written


@pytest.mark.parametrize("hidden_by", ["deny-list", "erasure"])
async def test_user_hidden_during_a_store_read_gets_the_popular_list(tmp_path: Path, hidden_by: str) -> None:
    denied = tmp_path / "denied"
    denied.write_text("")
    async with gated(denied) as (pair, store):
        _, transport = await waiting(pair, store.gate, GET)
        if hidden_by == "deny-list":
            write_watched(denied, pair.reader.deny_list.watched, "user:1\n")
        else:
            await erase_users(store.inner, ["1"])
            await pair.reader.tiers[0].follower.refresh()
        store.gate.set()
        assert b'"source":"popular"' in await transport.answers()


async def test_defect_after_a_delivered_answer_closes_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with gated() as (pair, store):
        _, broken = await waiting(pair, store.gate, GET, GET)
        _, whole = await waiting(pair, store.gate, GET)
        monkeypatch.setattr(broken, "is_reading", Mock(side_effect=RuntimeError("a defect")))
        store.gate.set()
        assert (await broken.until_closed()).count(b"HTTP/1.1 ") == 1
        assert b"HTTP/1.1 200 " in await whole.answers()
        assert "a defect" in caplog.text


async def test_removed_named_list_is_counted_as_unknown() -> None:
    async with gated() as (pair, store):
        await exchange(pair.lane, [GET.replace(b"recommendations/1", b"popular?list=basket")])
        (lookups,) = Reporter(pair.reader.tiers).state().lookups.values()
        assert lookups["basket"] == [1, 0, 0]
        _, transport = await waiting(pair, store.gate, GET.replace(b"/1 ", b"/2?list=basket "))
        await publish_rows(store.inner, [Row("popular:", a_list("new"))])
        await pair.reader.tiers[0].follower.refresh()
        store.failure = StoreUnavailable("gone")
        store.gate.set()
        while not transport.written:
            await asyncio.sleep(0)
        assert b" 404 " in transport.written
        assert b"has no list 'basket'" in transport.written


async def test_error_while_delivering_a_list_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception was logged, and the request waited until its client gave up."""

    def fail(*_: object) -> None:
        raise ValueError("the offset of a list is not a number")

    async with Pair(await reader_of(MemoryStore(), awaited=True)) as pair:
        monkeypatch.setattr(TieredReader, "lists_of", fail)
        for server in (pair.lane, pair.plain):
            caplog.clear()
            answer = await exchange(server, [GET.replace(b"1 HTTP", b"2?list=basket HTTP", 1)])
            assert answer.startswith(b"HTTP/1.1 500 ")
            assert b"internal-error" in answer
            assert "the offset of a list is not a number" in caplog.text
