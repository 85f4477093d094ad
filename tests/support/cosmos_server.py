"""An emulator for tests: as a process, in a thread of this one, or as the service alone, without a network."""

import asyncio
import base64
import hmac
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from urllib.parse import quote, unquote

import orjson

from hotplate.bench.cosmos_emulator.messages import HttpHandler, HttpResponse, Request
from hotplate.bench.cosmos_emulator.resources import EmulatedAccount
from hotplate.bench.cosmos_emulator.server import EmulatorSettings, RunningEmulator, running
from hotplate.bench.cosmos_emulator.service import Authenticator, Service
from hotplate.stores.cosmos.charges import load
from hotplate.stores.cosmos.url import EMULATOR_KEY
from tests.support.forked import Forked


@dataclass(frozen=True, slots=True)
class Emulator:
    endpoint: str
    pid: int
    key: str = EMULATOR_KEY
    certificate: Path | None = None


@contextmanager
def emulator(*options: str) -> Iterator[Emulator]:
    """Start `hotplate cosmos-emulator` on a free port."""
    with TemporaryDirectory() as folder:
        output = Path(folder, "printed")
        output.touch()
        process = Forked("cosmos-emulator", "--port", "0", "--json", *options, output=output)
        try:
            while not (match := re.search(r"^\{.*\}$", output.read_text(), re.MULTILINE)):
                assert process.poll() is None, output.read_text()
                time.sleep(0.01)
            yield Emulator(orjson.loads(match[0])["endpoint"], process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextmanager
def emulator_thread(
    settings: EmulatorSettings, extend: Callable[[Service, HttpHandler], HttpHandler] = lambda _, handler: handler
) -> Iterator[tuple[Emulator, Service]]:
    """Run an emulator in a thread of this process; its service may be inspected, and *extend* may add to it."""
    started = SimpleQueue[tuple[asyncio.AbstractEventLoop, RunningEmulator] | BaseException]()
    stopped = asyncio.Event()

    async def serve() -> None:
        async with running(settings, extend=extend) as service:
            started.put((asyncio.get_running_loop(), service))
            await stopped.wait()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 -- raised again by the thread that waits for the start
            started.put(error)

    thread = threading.Thread(target=work)
    thread.start()
    result = started.get()
    if isinstance(result, BaseException):
        thread.join()
        raise result
    loop, made = result
    try:
        yield Emulator(made.endpoint, os.getpid(), settings.key, settings.certificate), made.service
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()


class Direct:
    """The service without a network, on a clock that the test holds, with one database `d` and one container `c`."""

    def __init__(self, clock: Callable[[], float], *, ru: int = 4000, regions: int = 1, **container: object) -> None:
        names = tuple((f"region {n}", 8081 + n) for n in range(regions))
        self.clock = clock
        self.service = Service(EmulatedAccount(load(), names, clock=clock), Authenticator(EMULATOR_KEY))
        assert self.request("POST", "/dbs", {"id": "d"}).status == 201
        resource = {"id": "c", "partitionKey": {"paths": ["/id"], "kind": "Hash", "version": 2}, **container}
        assert self.request("POST", "/dbs/d/colls/", resource, {"x-ms-offer-throughput": str(ru)}).status == 201
        self.container = self.service.account.databases["d"].containers["c"]

    def request(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None, *, region: int = 0
    ) -> HttpResponse:
        """Send a signed request; bytes are sent as they are, all else as JSON."""
        segments = unquote(path).strip("/").split("/")
        is_feed = len(segments) % 2 == 1
        link = "/".join(segments[:-1] if is_feed else segments)
        resource_type = segments[-1 if is_feed else -2]
        fields = signed(method, resource_type, link, now=self.clock()) | (headers or {})
        raw = b"" if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        named = {name.lower().encode(): value.encode("latin-1") for name, value in fields.items()}
        return self.service.answer(Request(method, path, named, raw, region))

    def item(self, method: str, name: str, body: object = None, **headers: str) -> HttpResponse:
        """Send a request for the item of one id, which is its partition key, too."""
        path = "/dbs/d/colls/c/docs/" + ("" if method == "POST" else f"{quote(name, safe='')}/")
        named = {"x-ms-documentdb-partitionkey": orjson.dumps([name]).decode("latin-1")}
        named |= {header.replace("_", "-"): value for header, value in headers.items()}
        return self.request(method, path, body, named)

    def query(self, text: str, parameters: object = (), **headers: str) -> HttpResponse:
        """Query the items of the container, across its partitions."""
        named = {"content-type": "application/query+json", "x-ms-documentdb-query-enablecrosspartition": "True"}
        named |= {header.replace("_", "-"): value for header, value in headers.items()}
        return self.request("POST", "/dbs/d/colls/c/docs/", {"query": text, "parameters": parameters}, named)

    def send(self, request: bytes) -> HttpResponse:
        """Send a request as it stands on the wire, with its own signature."""
        head, _, body = request.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, path, _ = first.split(" ")
        return self.request(method, path, body or None, dict(line.split(": ", 1) for line in lines))


def substatus(response: HttpResponse) -> tuple[int, int]:
    return response.status, int(response.headers["x-ms-substatus"])


def signed(
    method: str, resource_type: str, link: str, *, now: float | None = None, key: str = EMULATOR_KEY
) -> dict[str, str]:
    """Return the headers that sign a request, written from the documentation and not from the emulator's code."""
    date = formatdate(now, usegmt=True)
    text = f"{method.lower()}\n{resource_type.lower()}\n{link}\n{date.lower()}\n\n"
    signature = base64.b64encode(hmac.digest(base64.b64decode(key), text.encode(), "sha256")).decode()
    return {"authorization": quote(f"type=master&ver=1.0&sig={signature}", safe=""), "x-ms-date": date}
