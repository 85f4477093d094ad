"""A client for the Cosmos emulation that costs little: requests signed beforehand, one in flight per connection."""

import asyncio
import base64
import hmac
import http.client
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from functools import partial
from urllib.parse import quote

import orjson

from bench.cosmos_emulator.auth import WELL_KNOWN_KEY

CONTAINER = "dbs/d/colls/c"
AS_THE_SDK = {
    "Cache-Control": "no-cache",
    "x-ms-version": "2020-07-15",
    "x-ms-documentdb-query-iscontinuationexpected": "False",
    "x-ms-consistency-level": "Session",
    "x-ms-cosmos-sdk-supportedcapabilities": "1",
    "x-ms-activity-id": "2bd6b4c8-0000-4000-8000-000000000000",
    "x-ms-client-id": "2bd6b4c8-0000-4000-8000-000000000001",
    "x-ms-thinclient-proxy-resource-type": "docs",
    "x-ms-thinclient-proxy-operation-type": "Read",
    "Accept": "application/json",
    "Accept-Encoding": "gzip, deflate",
    "User-Agent": "azsdk-python-cosmos-async/4.17.1 Python/3.11",
}
"""Headers that azure-cosmos sends with a point read, so that the emulator parses what it will have to."""


@dataclass(slots=True)
class Tally:
    """What one load was answered."""

    answered: int = 0
    throttled: int = 0
    elapsed_s: float = 0.0


def signed(method: str, kind: str, link: str) -> dict[str, str]:
    """Return the headers that sign a request now."""
    date = formatdate(usegmt=True)
    text = f"{method.lower()}\n{kind}\n{link}\n{date.lower()}\n\n"
    signature = base64.b64encode(hmac.digest(base64.b64decode(WELL_KNOWN_KEY), text.encode(), "sha256")).decode()
    return {"authorization": quote(f"type=master&ver=1.0&sig={signature}", safe=""), "x-ms-date": date}


def set_up(port: int, ru: int) -> None:
    """Make the database and a container without indexes; partition key and id are one, as hotplate's stores have it."""
    call(port, "/dbs", "", {"id": "d"}, {})
    made = {
        "id": "c",
        "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2},
        "indexingPolicy": {"indexingMode": "none"},
    }
    call(port, "/dbs/d/colls/", "dbs/d", made, {"x-ms-offer-throughput": str(ru)})


def call(port: int, path: str, link: str, body: object, headers: Mapping[str, str]) -> None:
    """POST *body* to a feed; RuntimeError where it is refused."""
    kind = path.strip("/").rpartition("/")[2]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, orjson.dumps(body), {**signed("POST", kind, link), **headers})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{path}: {answer.status} {said.decode()[:300]}")
    finally:
        connection.close()


def reads(ids: Sequence[str]) -> list[bytes]:
    """Return a point read for each id, signed now: good for 15 minutes."""
    return [_request(f"/{CONTAINER}/docs/{name}/", f"{CONTAINER}/docs/{name}", name, b"", AS_THE_SDK) for name in ids]


def creates(ids: Sequence[str], pad_bytes: int) -> list[bytes]:
    """Return a create for each id, of an item with so many bytes besides its id."""
    pad = "x" * pad_bytes
    return [
        _request(f"/{CONTAINER}/docs/", CONTAINER, name, orjson.dumps({"id": name, "pad": pad}), {}) for name in ids
    ]


def _request(path: str, link: str, key: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    method = "POST" if body else "GET"
    told = {
        "Host": "127.0.0.1:8081",
        "x-ms-documentdb-partitionkey": f'["{key}"]',
        **signed(method, "docs", link),
        **headers,
        **({"Content-Length": str(len(body))} if body else {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def until_a_second_begins() -> None:
    """Wait for the next whole second of the clock by which the emulator counts its seconds."""
    time.sleep(1 - time.time() % 1)


def load(port: int, requests: Sequence[bytes], connections: int, seconds: float | None) -> Tally:
    """Send *requests* over and over for so many seconds, or each of them once; waits after a 429 as long as it says."""
    return asyncio.run(_load(port, requests, connections, seconds))


async def _load(port: int, requests: Sequence[bytes], connections: int, seconds: float | None) -> Tally:
    tally = Tally()
    loop = asyncio.get_running_loop()
    sending: Iterator[bytes] = iter(requests) if seconds is None else itertools.cycle(requests)
    until = float("inf") if seconds is None else loop.time() + seconds
    started = time.perf_counter()
    ended = [loop.create_future() for _ in range(connections)]
    for future in ended:
        await loop.create_connection(partial(_Lane, tally, sending, until, future), "127.0.0.1", port)
    await asyncio.gather(*ended)
    tally.elapsed_s = time.perf_counter() - started
    return tally


class _Lane(asyncio.Protocol):
    """One connection: the next request goes when the answer to the one before is whole."""

    def __init__(self, tally: Tally, sending: Iterator[bytes], until: float, ended: "asyncio.Future[None]") -> None:
        self._tally, self._sending, self._until, self._ended = tally, sending, until, ended
        self._heard = b""
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # asyncio gives TCP clients this kind
        self._loop = asyncio.get_running_loop()
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(exc or RuntimeError("the emulator closed the connection"))

    def _next(self) -> None:
        request = next(self._sending, None) if self._loop.time() < self._until else None
        if request is None:
            self._ended.set_result(None)
            self._transport.close()
        else:
            self._request = request
            self._transport.write(request)

    def _again(self) -> None:
        if self._loop.time() < self._until:
            self._transport.write(self._request)
        else:
            self._next()

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, separator, body = self._heard.partition(b"\r\n\r\n")
        if not separator or len(body) < _number(head, b"content-length: "):
            return
        self._heard = b""
        status = head[9:12]
        if status == b"429":
            self._tally.throttled += 1
            self._loop.call_later(_number(head, b"x-ms-retry-after-ms: ") / 1000, self._again)
        elif status in (b"200", b"201"):
            self._tally.answered += 1
            self._next()
        else:
            self._ended.set_exception(RuntimeError(head.decode("latin-1")[:300]))
            self._transport.close()


def _number(head: bytes, name: bytes) -> int:
    return int(head.partition(name)[2].partition(b"\r\n")[0] or 0)
