"""The store, its client and the emulated service in one process, where time passes only when all of them wait."""

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson

from hotplate.base.http1 import RequestFailed, Response
from hotplate.bench.cosmos_emulator.messages import Request, render
from hotplate.bench.cosmos_emulator.resources import Container, EmulatedAccount
from hotplate.bench.cosmos_emulator.service import Authenticator, Service
from hotplate.stores.catalogue import ReleaseId
from hotplate.stores.cosmos.account import offer_in
from hotplate.stores.cosmos.charges import load
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing, CosmosUnavailable, error_for, refusal_in
from hotplate.stores.cosmos.examination import NO_VERSION
from hotplate.stores.cosmos.items import CONTROL, DEFINITION, container_of
from hotplate.stores.cosmos.requests import KeySigner, RequestBuilder
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.cosmos.store import CosmosStore
from hotplate.stores.cosmos.url import EMULATOR_KEY, Address, Offer, Throughput, parse
from hotplate.stores.store import Observer, Row
from tests.support.stores import release_ref, write_release
from tests.support.virtual import in_virtual_time

T = TypeVar("T")
P = ParamSpec("P")

BEGAN = 1_790_000_000.0

# A release that takes a while, and several batches of keys.
ROWS = [Row("popular:", b'{"id":"p"}'), *(Row(f"user:{n:05}", b"%d" % n) for n in range(3000))]


class ProcessEndedError(Exception):
    """A process of a test was killed."""


@dataclass
class HeldItems:
    waiting: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)


async def _change_nothing() -> None:
    pass


class SimulatedAccount:
    """The emulated account on the loop's clock: it responds after `latency_s`, and counts requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.latency_s = 0.005
        self.now: Callable[[], float] = lambda: BEGAN + loop.time()
        account = EmulatedAccount(load(), (("Here", 1),), clock=self.now)
        self.service = Service(account, Authenticator(EMULATOR_KEY))
        self.stores = list[CosmosStore]()
        self.held: HeldItems | None = None
        """What new items wait for on their way to the service."""
        self.many_writers = False
        self.scales_for_ever = False
        self.ignores_scaling = False
        self.loses_races = False
        """Whether another process changes each item before it is replaced."""

        self.ignores_versions = False
        """Whether the service replaces any version of an item."""

        self.write_port = 1
        """The port of the server that takes writes; the service refuses those to another one."""

        self.refused_connects = 0
        """How many replacements of the catalogue are to fail before they are sent."""

        self.lose_answers = 0
        """How many writes of the catalogue are to be done, and their responses lost."""

        self.overtake: Callable[[], Awaitable[object]] = _change_nothing
        """What another process does before the client misses such a response."""

        self.ends_at_write: int | None = None
        """The number of the next write of an item at which the client's process ends."""

        self.ends_after = False
        """Whether the service has done that write."""

        self.deletes_before: tuple[str, int] | None = None
        """A container that another process deletes, and before which request about it."""

        self.observer: Observer | None = None
        self.forgets = 0.0
        """The share of reads that go to a replica which does not have the item yet."""

        self._random = random.Random(1)
        self._loop = loop

    async def with_draft(self, release: ReleaseId, rows: Sequence[Row] = (), **options: object) -> CosmosStore:
        """Return a store in which a draft of *release* has *rows*."""
        store = self.store(**options)
        await write_release(store, release, rows, seal=False)
        return store

    def store(self, **options: object) -> CosmosStore:
        parameters = "&".join(f"{name}={value}" for name, value in options.items())
        address = parse(f"cosmos+http://here:1/d?{parameters}", {})
        client = SignedClient(address, self.observer, clock=self.now, make_transport=lambda _: self)
        self.stores.append(CosmosStore(address, client, lambda: SimulatedContainers(self), self._loop.time))
        return self.stores[-1]

    def inject_faults(self, *faults: dict[str, object]) -> None:
        self.service.faults.replace(list(faults), self.now())

    def answers(self, status: int, operation: str = "") -> int:
        counted = self.service.requests.items()
        return sum(
            number
            for (counted_operation, counted_status), number in counted
            if counted_status == status and operation in counted_operation
        )

    def spent_ru(self, operation: str = "") -> float:
        return sum(
            ru for (counted_operation, _), ru in self.service.charges_ru.items() if operation in counted_operation
        )

    def throughput(self, release: ReleaseId) -> Throughput:
        throughput = self._container(release).offer.throughput
        return Throughput(throughput.ru, throughput.autoscale)

    def admitted_ru(self, release: ReleaseId) -> float:
        """Return what a release's container has spent, by the service's own count."""
        return sum(partition.admitted_ru for partition in self._container(release).partitions.all)

    def _container(self, release: ReleaseId) -> Container:
        """Return the container of a release by the catalogue, or of a draft of tests that stands in none."""
        containers = self.service.account.databases["d"].containers
        known = (
            [document.parsed() for document in containers[CONTROL].documents.after()] if CONTROL in containers else []
        )
        catalogues = [item["catalogue"] for item in known if "catalogue" in item]
        entries = [entry for content in catalogues for entry in content["entries"] if entry["id"] == release]
        incarnations = [entry["incarnation"] for entry in entries]
        written = release_ref(release)
        if incarnations:
            written = written._replace(incarnation=incarnations[-1])
        return containers[container_of(written)]

    async def request(self, message: bytes, timeout_s: float) -> Response:
        head, _, body = message.partition(b"\r\n\r\n")
        (method, path, _), *lines = (line.split(b" ", 2) for line in head.split(b"\r\n"))
        if (held := self.held) is not None and method == b"POST" and path.endswith(b"/docs/"):
            held.waiting += 1
            await held.go.wait()
        self._delete_container(path)
        is_last = self._counts_last(method, path)
        if is_last and not self.ends_after:
            raise ProcessEndedError
        headers = {name.lower().rstrip(b":"): b" ".join(value) for name, *value in lines}
        self._change_condition(headers)
        if self.refused_connects and method == b"PUT" and b"/colls/hotplate/docs" in path:
            self.refused_connects -= 1
            raise RequestFailed("connect", "here")
        is_misdirected = method != b"GET" and headers[b"host"] != b"here:%d" % self.write_port
        answer = self.service.answer(
            Request(method.decode(), path.decode(), headers, body, region=int(is_misdirected and b"/docs/" in path))
        )
        if is_last:
            raise ProcessEndedError
        if method == b"GET" and b"/docs/" in path and self._random.random() < self.forgets:
            answer.status = 404
            answer.body = orjson.dumps({"code": "NotFound", "message": "not replicated yet"})
        if path == b"/" and answer.status == 200:
            answer.body = self._change_account(answer.body)
        if self.scales_for_ever and path.startswith(b"/offers/"):
            answer.headers["x-ms-offer-replace-pending"] = "True"
        if self.lose_answers and answer.status in (200, 201) and method != b"GET" and b'"catalogue":{' in body:
            self.lose_answers -= 1
            answer.reset = True
            await self.overtake()
        delay_s = self.latency_s + answer.delay_s
        await asyncio.sleep(min(delay_s, timeout_s))
        if answer.reset or delay_s > timeout_s:
            raise RequestFailed("reset" if answer.reset else "timeout", "here")
        head, _, body = render(answer).partition(b"\r\n\r\n")
        return Response(answer.status, head + b"\r\n\r\n", body)

    def _change_condition(self, headers: dict[bytes, bytes]) -> None:
        """Change the version that a request is to replace as tests ask for."""
        if self.loses_races and b"if-match" in headers:
            headers[b"if-match"] = NO_VERSION.encode()
        if self.ignores_versions:
            headers.pop(b"if-match", None)

    def _change_account(self, body: bytes) -> bytes:
        """Return the properties of the account as tests ask for."""
        properties = orjson.loads(body)
        if self.many_writers:
            properties["enableMultipleWriteLocations"] = True
        (location,) = properties["writableLocations"]
        location["databaseAccountEndpoint"] = f"http://here:{self.write_port}/"
        return orjson.dumps(properties)

    def _delete_container(self, path: bytes) -> None:
        """Delete a container as tests ask for."""
        if self.deletes_before is None or f"/colls/{self.deletes_before[0]}/".encode() not in path:
            return
        container, requests = self.deletes_before
        self.deletes_before = (container, requests - 1)
        if requests == 1:
            self.deletes_before = None
            del self.service.account.databases["d"].containers[container]

    def _counts_last(self, method: bytes, path: bytes) -> bool:
        if self.ends_at_write is None or method == b"GET" or b"/docs" not in path:
            return False
        self.ends_at_write -= 1
        return self.ends_at_write == 0

    async def close(self) -> None:
        """Nothing to give back."""


class SimulatedContainers:
    """The control plane without azure-cosmos, which needs a network: its requests, one attempt each."""

    def __init__(self, account: SimulatedAccount) -> None:
        self._account = account
        address = Address("here", "https://here:1", "d", key=EMULATOR_KEY)
        self._requests = RequestBuilder("here:1", "d", KeySigner(address), account.now)

    async def create_database(self) -> None:
        await self._send("POST", "dbs", "", "dbs", {"id": "d"})

    async def create_container(self, container: str, throughput: Throughput | None) -> None:
        headers = b"content-type: application/json\r\n"
        if throughput is not None and throughput.autoscale:
            headers += b'x-ms-cosmos-offer-autopilot-settings: {"maxThroughput": %d}\r\n' % throughput.ru
        elif throughput is not None:
            headers += b"x-ms-offer-throughput: %d\r\n" % throughput.ru
        body = {"id": container, **DEFINITION}
        await self._send("POST", "colls", "dbs/d", "dbs/d/colls/", body, headers=headers)

    async def list_containers(self) -> list[str]:
        document = orjson.loads((await self._send("GET", "colls", "dbs/d", "dbs/d/colls/")).body)
        return [collection["id"] for collection in document["DocumentCollections"]]

    async def delete_container(self, container: str) -> None:
        link = f"dbs/d/colls/{container}"
        with suppress(ContainerMissing):
            await self._send("DELETE", "colls", link, f"{link}/")

    async def offer(self, container: str) -> Offer | None:
        name = (await self._offer(container))["id"]
        response = await self._send("GET", "offers", name.lower(), f"offers/{name}/")
        headers = dict(line.partition(": ")[::2] for line in response.head.decode().lower().splitlines())
        return offer_in(orjson.loads(response.body), headers)

    async def scale(self, container: str, throughput: Throughput) -> None:
        if self._account.ignores_scaling:
            return
        offer = await self._offer(container)
        name = offer["id"]
        content = dict[str, Any]()
        if throughput.autoscale:
            content["offerThroughput"] = throughput.ru // 10
            content["offerAutopilotSettings"] = {"maxThroughput": throughput.ru}
        else:
            content["offerThroughput"] = throughput.ru
            content["offerIsRUPerMinuteThroughputEnabled"] = False
        await self._send("PUT", "offers", name.lower(), f"offers/{name}/", {**offer, "content": content})

    async def close(self) -> None:
        """Nothing to give back."""

    async def _offer(self, container: str) -> dict[str, Any]:
        link = f"dbs/d/colls/{container}"
        response = await self._send("GET", "colls", link, f"{link}/")
        query = {
            "query": "SELECT * FROM root r WHERE r.resource=@link",
            "parameters": [{"name": "@link", "value": orjson.loads(response.body)["_self"]}],
        }
        headers = b"content-type: application/query+json\r\nx-ms-documentdb-isquery: True\r\n"
        offers: dict[str, list[dict[str, Any]]] = orjson.loads(
            (await self._send("POST", "offers", "", "offers", query, headers=headers)).body
        )
        return offers["Offers"][0]

    async def _send(
        self, verb: str, kind: str, link: str, path: str, body: object = None, *, headers: bytes = b""
    ) -> Response:
        sent = b"" if body is None else orjson.dumps(body)
        message = self._requests.build(
            verb.encode(), kind.encode(), link.encode(), path.encode(), headers=headers, body=sent
        )
        try:
            response = await self._account.request(message, DEADLINE_S)
        except RequestFailed as failure:
            raise CosmosUnavailable(f"here: {failure.kind}", failure.kind) from failure
        if self._account.observer is not None:
            self._account.observer.charged(float(response.header(b"x-ms-request-charge") or 0))
        if response.status not in (200, 201, 204, 409):
            raise error_for(refusal_in(response), "here")
        return response


def with_simulation(work: Callable[[SimulatedAccount], Coroutine[Any, Any, T]]) -> T:
    async def whole(loop: asyncio.AbstractEventLoop) -> T:
        account = SimulatedAccount(loop)
        try:
            return await work(account)
        finally:
            for store in account.stores:
                await store.close()

    return in_virtual_time(whole)


def simulated(test: Callable[Concatenate[SimulatedAccount, P], Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test in virtual time with a simulated account, which is its first argument and not a fixture."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with_simulation(lambda account: test(account, *args, **kwargs))

    signature = inspect.signature(test)
    run.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # type: ignore[attr-defined]  # pytest reads it
    return run
