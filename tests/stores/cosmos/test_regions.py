"""Where the client reads and writes when regions vanish, come back, change their roles, or were never there."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from math import inf

import orjson
import pytest

from hotplate.base.http1 import RequestFailed, Response
from hotplate.bench.process import free_port
from hotplate.stores.cosmos.errors import CosmosUnavailable
from hotplate.stores.cosmos.regions import MAX_FAILURES, REFRESH_INTERVAL_S
from hotplate.stores.cosmos.signed import CHARGE, REGIONS, SignedClient
from hotplate.stores.cosmos.url import parse
from hotplate.stores.store import ChargeCounter, TracedCall, traced_call
from tests.support.cosmos_account import PATIENCE_S, Account, container_in, kind_of
from tests.support.cosmos_raw import ScriptedServer, answer, refusal, scripted
from tests.support.virtual import VirtualLoop, in_virtual_time

NAME = "user.YQ"
ITEM = b'{"id":"user.YQ"}'
EAST, WEST = "Emulated East", "Emulated West"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let regions that were left be looked at soon."""
    monkeypatch.setattr("hotplate.stores.cosmos.regions.SKIP_S", 0.05)
    monkeypatch.setattr("hotplate.stores.cosmos.regions.MIN_REFRESH_INTERVAL_S", 0.0)


@pytest.fixture
async def client(two_regions: Account, observer: ChargeCounter) -> AsyncIterator[SignedClient]:
    """One that prefers the region that is not written, with an item in a container `c`."""
    two_regions.inject_faults()
    address = two_regions.address(f"d{secrets.token_hex(4)}", region=EAST)
    regional = SignedClient(address, observer)
    async with container_in(address):
        await regional.create("c", {"id": NAME})
    yield regional
    await regional.close()
    two_regions.inject_faults()


async def read_in(client: SignedClient) -> str:
    """Return the region that a read came from."""
    return WEST if (await client.read_nearest("c", NAME, PATIENCE_S))[1] else EAST


async def until_read_in(client: SignedClient, region: str) -> None:
    async with asyncio.timeout(60):
        while await read_in(client) != region:
            await asyncio.sleep(0.01)


def location(name: str, port: int) -> dict[str, str]:
    return {"name": name, "databaseAccountEndpoint": f"http://127.0.0.1:{port}/"}


@pytest.mark.usefixtures("hasty")
async def test_lost_region_is_left_and_rejoined_with_log_lines(
    two_regions: Account, client: SignedClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert await read_in(client) == EAST
    two_regions.inject_faults({"kind": "region-gone", "region": 1})
    for _ in range(10):
        assert all(await asyncio.gather(*(client.read("c", NAME, PATIENCE_S) for _ in range(16))))
    assert (await client.create("c", {"id": "user.Yg"})).applied
    assert (await client.read_fresh("c", NAME)).item is not None
    assert await read_in(client) == WEST
    two_regions.inject_faults()
    await until_read_in(client, EAST)
    left, returned = [record.message.partition(": ")[2] for record in caplog.records]
    assert left.startswith(f"{EAST} cannot be read (")
    assert returned == f"{EAST} can be read again"


async def test_second_read_goes_to_the_region_after_the_nearest(
    two_regions: Account, client: SignedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotplate.stores.cosmos.regions.SKIP_S", PATIENCE_S)
    assert client.has_second_region
    call = TracedCall()
    reset = traced_call.set(call)
    try:
        item = await client.read_elsewhere("c", NAME, PATIENCE_S)
    finally:
        traced_call.reset(reset)
    assert (item or {})["id"] == NAME
    assert call.attributes[REGIONS] == (WEST,)
    for _ in range(MAX_FAILURES):
        two_regions.inject_faults({"kind": "region-gone", "region": 1})
        await client.read("c", NAME, PATIENCE_S)
    with pytest.raises(CosmosUnavailable, match="no other region"):
        await client.read_elsewhere("c", NAME, PATIENCE_S)


class Silent:
    """A server that takes its time over each answer; one that takes for ever is not listed by the account."""

    def __init__(self, url: str, delays_s: dict[str, float]) -> None:
        self.port = url.rpartition(":")[2]
        self.delays_s = delays_s

    async def request(self, message: bytes, timeout_s: float) -> Response:
        delay_s = self.delays_s.get(self.port, 0.001)
        await asyncio.sleep(min(delay_s, timeout_s))
        if delay_s > timeout_s:
            raise RequestFailed("timeout", "here")
        locations = [{"name": f"at {port}", "databaseAccountEndpoint": f"http://x:{port}"} for port in (1, 2)]
        listed = [location for location, port in zip(locations, "12", strict=True) if self.delays_s.get(port) != inf]
        account = {"writableLocations": listed[-1:], "readableLocations": listed}
        body = orjson.dumps(account) if message.startswith(b"GET / ") else ITEM
        return Response(200, b"HTTP/1.1 200 OK\r\n\r\n", body)

    async def close(self) -> None:
        """Nothing is open."""


def in_two_regions(work: Callable[[SignedClient, dict[str, float]], Coroutine[None, None, None]]) -> None:
    """Run *work* in virtual time with a client of two regions, the first of which is nearest, and their delays."""

    async def whole(loop: VirtualLoop) -> None:
        delays_s = dict[str, float]()
        client = SignedClient(
            parse("cosmos+http://x:2/d", {}), clock=loop.time, make_transport=lambda url: Silent(url, delays_s)
        )
        await client.account()
        await work(client, delays_s)
        await client.close()

    in_virtual_time(whole)


@pytest.mark.parametrize(
    "act",
    [lambda client: client.replace("c", {"id": NAME}, "e"), lambda client: client.read_fresh("c", NAME)],
    ids=["write", "fresh read"],
)
def test_silent_write_region_is_replaced_by_the_listed_one(
    act: Callable[[SignedClient], Awaitable[object]],
) -> None:
    async def work(client: SignedClient, delays_s: dict[str, float]) -> None:
        loop = asyncio.get_running_loop()
        delays_s["2"] = inf
        began = loop.time()
        timed_out = True
        while timed_out:
            (outcome,) = await asyncio.gather(act(client), return_exceptions=True)
            timed_out = isinstance(outcome, CosmosUnavailable) and outcome.kind == "timeout"
            await asyncio.sleep(1)
            assert loop.time() - began < REFRESH_INTERVAL_S / 5

    in_two_regions(work)


def test_still_slow_region_is_probed_occasionally_until_it_is_fast() -> None:
    async def work(client: SignedClient, delays_s: dict[str, float]) -> None:
        delays_s["1"] = 1.0
        for _ in range(MAX_FAILURES):
            with pytest.raises(TimeoutError):  # of the caller, just before the one that it named
                async with asyncio.timeout(0.045):
                    await client.read("c", NAME, 0.05)
        lost = 0
        for _ in range(1000):
            await asyncio.sleep(1)
            outcomes = await asyncio.gather(client.read_nearest("c", NAME, 0.05), return_exceptions=True)
            lost += isinstance(outcomes[0], CosmosUnavailable)
        assert 100 < lost < 250, "one in SKIP_S"
        delays_s.clear()
        for _ in range(100):
            await asyncio.sleep(1)
            found_there = await client.read_nearest("c", NAME, 0.05)
        assert found_there == ({"id": NAME}, False, 0.0)

    in_two_regions(work)


def test_short_caller_deadlines_do_not_count_against_a_region() -> None:
    async def work(client: SignedClient, delays_s: dict[str, float]) -> None:
        delays_s["1"] = 0.1
        for _ in range(2 * MAX_FAILURES):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.read("c", NAME, 1.0)
        assert await client.read_nearest("c", NAME, 1.0) == ({"id": NAME}, False, 0.0)

    in_two_regions(work)


async def test_a_traced_read_names_all_regions_that_it_contacted(observer: ChargeCounter) -> None:
    async with scripted(refusal(503, 0)) as away, scripted(answer(200, ITEM)) as here:
        here.properties = {"readableLocations": [location("Away", away.port), location("Here", here.port)]}
        client = SignedClient(parse(f"cosmos+http://127.0.0.1:{here.port}/d", {}), observer)
        call = TracedCall()
        reset = traced_call.set(call)
        await client.read("c", NAME, PATIENCE_S)
        traced_call.reset(reset)
        assert (call.attributes[REGIONS], call.attributes[CHARGE]) == (("Away", "Here"), 2.0)
        await client.close()


async def test_unreachable_region_is_left_at_once(observer: ChargeCounter, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(answer(200, ITEM)) as raw:
        raw.properties = {"readableLocations": [location("Away", free_port()), location("Here", raw.port)]}
        client = SignedClient(parse(f"cosmos+http://127.0.0.1:{raw.port}/d", {}), observer)
        for _ in range(5):
            assert await client.read("c", NAME, PATIENCE_S) == {"id": NAME}
        assert observer.failures.count("connect") >= 1
        shown = f"cosmos+http://127.0.0.1:{raw.port}/d"
        messages = [record.message for record in caplog.records]
        assert messages == [f"{shown}: Away cannot be read (connect)"]
        await client.close()


async def test_regions_follow_what_the_account_lists(observer: ChargeCounter, caplog: pytest.LogCaptureFixture) -> None:
    async with scripted(answer(200, ITEM)) as here, scripted(answer(200, ITEM)) as there:
        client = SignedClient(parse(f"cosmos+http://127.0.0.1:{here.port}/d?region=There", {}), observer)
        await client.read("c", NAME, PATIENCE_S)
        assert len(here.heard) == 2
        here.properties = {"readableLocations": [location("Here", here.port), location("There", there.port)]}
        assert (await client.account()).regions == ["There", "Here"]
        await client.read("c", NAME, PATIENCE_S)
        assert len(there.heard) == 1
        here.properties = {}
        assert (await client.account()).regions == ["Here"]
        await client.read("c", NAME, PATIENCE_S)
        assert len(there.heard) == 1
        assert [record.message.partition(": ")[2] for record in caplog.records] == [
            "its regions are now There, Here",
            "its regions are now Here",
        ]
        await client.close()


@pytest.mark.usefixtures("hasty")
async def test_write_to_the_wrong_region_is_redirected_next_time(observer: ChargeCounter) -> None:
    async with scripted(refusal(403, 3)) as old, scripted(answer(201, ITEM)) as new:
        client = SignedClient(parse(f"cosmos+http://127.0.0.1:{old.port}/d", {}), observer)
        await client.account()
        old.properties = {"writableLocations": [location("New", new.port)]}
        assert await kind_of(client.create("c", {"id": NAME})) == "unavailable"
        async with asyncio.timeout(60):
            while not any(head.startswith(b"POST") for head in new.heard):
                await asyncio.gather(client.create("c", {"id": NAME}), return_exceptions=True)
                await asyncio.sleep(0.01)
        await client.close()


@pytest.mark.usefixtures("hasty")
async def test_account_is_read_through_its_regions_if_its_endpoint_is_down(
    observer: ChargeCounter, raw: ScriptedServer
) -> None:
    raw.responses = [answer(200, ITEM)]
    async with scripted(answer(200, ITEM)) as front:
        front.properties = {name: [location("Here", raw.port)] for name in ("writableLocations", "readableLocations")}
        client = SignedClient(parse(f"cosmos+http://127.0.0.1:{front.port}/d", {}), observer)
        await client.read("c", NAME, PATIENCE_S)
        front.properties = {"writableLocations": []}
        assert (await client.account()).regions == ["Here"]
        await client.close()


@pytest.mark.parametrize("url", ["http://a-west.documents.azure.com/", "https://", "file:///etc", ""])
def test_https_account_uses_no_plain_http_region(url: str) -> None:
    listed = [{"name": "Here", "databaseAccountEndpoint": url}]

    class Front:
        async def request(self, message: bytes, timeout_s: float) -> Response:
            del message, timeout_s
            body = orjson.dumps({"writableLocations": listed, "readableLocations": listed})
            return Response(200, b"HTTP/1.1 200 OK\r\n\r\n", body)

        async def close(self) -> None:
            """Nothing is open."""

    async def read() -> None:
        client = SignedClient(parse("cosmos://a/d", {"HOTPLATE_COSMOS_KEY": "eA=="}), make_transport=lambda _: Front())
        assert await kind_of(client.account()) == "malformed"
        await client.close()

    asyncio.run(read())
