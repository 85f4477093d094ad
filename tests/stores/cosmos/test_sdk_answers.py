"""What `driver=sdk` makes of answers that no Cosmos DB gives, and of clocks that are wrong: an error, never data."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate

import pytest

from stores.cosmos.driver import Driver
from stores.cosmos.errors import CosmosUnavailable
from stores.cosmos.sdk.driver import SdkDriver
from stores.cosmos.url import parse
from tests.support.cosmos_drivers import Counted

ITEM = {"id": "a", "_etag": '"1"', "v": "x"}
CONTAINER = {"id": "c", "_rid": "r", "_self": "dbs/d/colls/r/", "partitionKey": {"paths": ["/id"], "kind": "Hash"}}


def answer(body: bytes, status: int = 200, *, length: int | None = None, **headers: str) -> bytes:
    told = {"content-length": str(len(body) if length is None else length), "x-ms-request-charge": "1"}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"HTTP/1.1 {status} Told\r\n{head}\r\n".encode() + body


@asynccontextmanager
async def scripted(item: bytes, account: Callable[[int], bytes] | None = None) -> AsyncIterator[tuple[Driver, Counted]]:
    """Open a driver of a server that answers every read of an item by *item*, and closes the connection then."""

    def told(path: str, port: int) -> bytes:
        if path == "/":
            place = [{"name": "Here", "databaseAccountEndpoint": f"http://127.0.0.1:{port}/"}]
            usual = {"writableLocations": place, "readableLocations": place, "userConsistencyPolicy": None}
            return account(port) if account else answer(json.dumps(usual).encode())
        return item if "/docs" in path else answer(json.dumps(CONTAINER).encode())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ", 2)[1].decode()
                writer.write(told(path, writer.get_extra_info("sockname")[1]))
                await writer.drain()
                if "/docs" in path:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    meter = Counted()
    driver = SdkDriver(parse(f"cosmos+http://127.0.0.1:{server.sockets[0].getsockname()[1]}/d", {}), meter)
    try:
        yield driver, meter
    finally:
        await driver.close()
        server.close()
        await server.wait_closed()


async def test_what_the_service_answers_is_data() -> None:
    async with scripted(answer(json.dumps(ITEM).encode())) as (driver, meter):
        assert await driver.read("c", "a", 5.0) == ITEM
        assert meter.kinds == []


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (answer(b"<html>"), "malformed"),
        (answer(b"[]"), "malformed"),
        (answer(b"null"), "malformed"),
        (answer(b""), "malformed"),
        (answer(json.dumps(ITEM | {"id": "b"}).encode()), "malformed"),
        (answer(json.dumps({"id": "a"}).encode()), "malformed"),
        (answer(json.dumps(ITEM).encode(), x_ms_request_charge="nan"), "malformed"),
        (answer(json.dumps(ITEM).encode()[:-5]), "malformed"),
        (answer(json.dumps(ITEM).encode()[:-5], length=len(json.dumps(ITEM))), "malformed"),
        (b"HTTP/1.1 200", "reset"),
        (b"SSH-2.0-nonsense\r\n\r\n", "malformed"),
        (b"", "reset"),
        (answer(b"\xff\xfe"), "malformed"),
        (answer(b"<html>", 404), "malformed"),
        (answer(b"<html>", 502), "unavailable"),
        (answer(b"", 503), "unavailable"),
        (answer(b'{"code":"x","message":"m"}', 301, location="http://127.0.0.1:9/"), "malformed"),
    ],
)
@pytest.mark.parametrize("fresh", [False, True])
async def test_what_no_service_answers_is_an_error(told: bytes, kind: str, *, fresh: bool) -> None:
    async with scripted(told) as (driver, meter):
        with pytest.raises(CosmosUnavailable) as error:
            await driver.read("c", "a", 5.0, fresh=fresh)
        assert error.value.kind == kind
        assert meter.kinds == [kind]


@pytest.mark.parametrize(("off_s", "way"), [(-3600, "60 minutes ahead of"), (3600, "60 minutes behind")])
async def test_a_clock_that_is_an_hour_off_is_told(off_s: int, way: str) -> None:
    body = b'{"code":"Unauthorized","message":"no"}'
    refused = answer(body, 401, date=formatdate(time.time() + off_s, usegmt=True))
    for item, account in ((refused, None), (b"", lambda _: refused)):
        async with scripted(item, account) as (driver, _):
            with pytest.raises(CosmosUnavailable, match=way) as error:
                await driver.read("c", "a", 5.0)
            assert error.value.kind == "unauthorized"


@pytest.mark.parametrize("told", [b"{}", b'{"writableLocations":[],"readableLocations":[]}', b"[]", b"<html>"])
async def test_an_account_without_regions_is_an_error(told: bytes) -> None:
    async with scripted(b"", lambda _: answer(told)) as (driver, meter):
        for ask in (driver.read("c", "a", 5.0), driver.account()):
            with pytest.raises(CosmosUnavailable) as error:
                await ask
            assert error.value.kind == "malformed"
        assert set(meter.kinds) == {"malformed"}


async def test_writes_go_where_the_account_says_after_one_could_not_be_made() -> None:
    def account_that_moved(port: int) -> bytes:
        nowhere = [{"name": "There", "databaseAccountEndpoint": "http://127.0.0.1:9/"}]
        here = [{"name": "Here", "databaseAccountEndpoint": f"http://127.0.0.1:{port}/"}]
        told = {"writableLocations": here if moved else nowhere, "readableLocations": [*here, *nowhere]}
        return answer(json.dumps(told).encode())

    moved = False
    async with scripted(answer(json.dumps(ITEM).encode(), 201), account_that_moved) as (driver, _):
        with pytest.raises(CosmosUnavailable) as error:
            await driver.upsert("c", {"id": "a"})
        assert error.value.kind == "connect"
        moved = True
        assert (await driver.upsert("c", {"id": "a"})).done
