"""The driver `driver=sdk`: Cosmos DB through the unmodified azure-cosmos, for those who prefer it; needs its extra.

It spends some 300 µs of CPU on a read, as the SDK comes it would be 555; `driver=rest` spends 19.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.cosmos import CosmosDict, PartitionKey, ThroughputProperties
from azure.cosmos.aio import ContainerProxy
from azure.cosmos.exceptions import CosmosHttpResponseError, CosmosResourceExistsError, CosmosResourceNotFoundError

from stores.cosmos.answers import Malformed, charge_ru, date_of
from stores.cosmos.driver import DEADLINE_S, DEFINITION, Account, Item, Look, Offer, Wrote
from stores.cosmos.errors import PASSING, ContainerMissing, CosmosUnavailable
from stores.cosmos.offers import offer_of
from stores.cosmos.places import Place
from stores.cosmos.sdk.attempt import answer_of, meaning
from stores.cosmos.sdk.client import Clients, Way
from stores.cosmos.sdk.ways import Ways
from stores.cosmos.throughput import Throughput
from stores.cosmos.url import Address
from stores.store import Observer

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

T = TypeVar("T")

LEAST_S = 0.001
"""With less time left no other region is asked."""


class SdkDriver:
    """See `Driver`; lives as long as its store, on one event loop."""

    def __init__(self, address: Address, meter: Observer, credential: "AsyncTokenCredential | None" = None) -> None:
        """Take the database and who counts; *credential* is in the place of what azure-identity finds by itself."""
        self._address = address
        self._meter = meter
        self._clients = Clients(address, meter, credential)
        self._ways = Ways(self._clients)

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> Item | None:
        due_s = asyncio.get_running_loop().time() + timeout_s
        if fresh:
            return await self._read(self._ways.written, container, name, due_s)
        place = await self._ask(self._ways.nearest, due_s)
        try:
            return await self._lookup(place, container, name, due_s)
        except CosmosUnavailable as error:
            other = self._ways.instead(place, error.kind)
            if other is None or asyncio.get_running_loop().time() > due_s - LEAST_S:
                raise
        return await self._lookup(other, container, name, due_s)

    async def look(self, container: str, name: str) -> Look:
        async def call() -> CosmosDict:
            return await (await self._written(container)).read_item(name, name)

        try:
            item = await self._ask(call)
        except CosmosResourceNotFoundError as missing:
            return Look(None, "", self._now(missing.headers))
        return Look(self._checked(item, name), str(item["_etag"]), self._now(item.get_response_headers()))

    async def create(self, container: str, item: Item) -> Wrote:
        async def call() -> CosmosDict:
            return await (await self._written(container)).create_item(item, no_response=True)

        return await self._write(call)

    async def upsert(self, container: str, item: Item) -> Wrote:
        async def call() -> CosmosDict:
            return await (await self._written(container)).upsert_item(item, no_response=True)

        return await self._write(call)

    async def replace(self, container: str, item: Item, etag: str) -> Wrote:
        unless_changed = MatchConditions.IfNotModified

        async def call() -> CosmosDict:
            proxy = await self._written(container)
            return await proxy.replace_item(
                item["id"], item, etag=etag, match_condition=unless_changed, no_response=True
            )

        return await self._write(call)

    async def account(self) -> Account:
        return await self._ask(self._ways.account)

    async def create_database(self) -> bool:
        async def call() -> None:
            client = await (await self._ways.written()).client()
            await client.create_database(self._address.database)

        return await self._made(call)

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        async def call() -> None:
            client = await (await self._ways.written()).client()
            await client.get_database_client(self._address.database).create_container(
                container,
                cast("PartitionKey", DEFINITION["partitionKey"]),  # which is a dict of just that
                indexing_policy=DEFINITION["indexingPolicy"],
                offer_throughput=None if throughput is None else _asked(throughput),
            )

        return await self._made(call)

    async def delete_container(self, container: str) -> None:
        async def call() -> None:
            client = await (await self._ways.written()).client()
            await client.get_database_client(self._address.database).delete_container(container)

        try:
            await self._ask(call)
        except ContainerMissing:
            return

    async def offer(self, container: str) -> Offer | None:
        async def call() -> CosmosDict:
            proxy = await self._written(container)
            found: Mapping[str, Any] = (await proxy.get_throughput()).properties or {}
            name = str(found.get("id"))
            # The SDK only queries offers; whether a change is under way is told where one is read.
            return await proxy.client_connection.Read(f"/offers/{name}/", "offers", name.lower(), None)

        try:
            told = await self._ask(call)
        except CosmosHttpResponseError:
            return None  # the account is serverless: it has no offer, or refuses to tell of any
        try:
            return offer_of(told, answer_of(200, told.get_response_headers()))
        except Malformed as error:
            self._meter.failed("malformed")
            raise meaning(error, self._address.shown) from error

    async def scale(self, container: str, throughput: Throughput) -> None:
        async def call() -> None:
            await (await self._written(container)).replace_throughput(_asked(throughput))

        try:
            await self._ask(call)
        except CosmosHttpResponseError:
            return  # as above

    async def close(self) -> None:
        await self._ways.close()
        await self._clients.close()

    async def _written(self, container: str) -> ContainerProxy:
        return await (await self._ways.written()).container(container)

    async def _lookup(self, place: Place, container: str, name: str, due_s: float) -> Item | None:
        async def way() -> Way:
            return self._ways.lookups(place)

        found = await self._read(way, container, name, due_s)
        self._ways.answered(place)
        return found

    async def _read(self, way: Callable[[], Awaitable[Way]], container: str, name: str, due_s: float) -> Item | None:
        async def call() -> CosmosDict:
            return await (await (await way()).container(container)).read_item(name, name)

        try:
            return self._checked(await self._ask(call, due_s), name)
        except CosmosResourceNotFoundError:
            return None

    async def _ask(self, call: Callable[[], Awaitable[T]], due_s: float | None = None) -> T:
        """Make one call of the SDK in time; raises StoreError, and CosmosHttpResponseError for what was let through."""
        try:
            async with asyncio.timeout_at(due_s or asyncio.get_running_loop().time() + DEADLINE_S):
                return await call()
        except CosmosHttpResponseError:
            raise  # let through as an answer to what was asked
        except TimeoutError as late:
            self._meter.failed("timeout")  # any other failure was counted where it happened
            raise meaning(late, self._address.shown) from late
        except AzureError as foreign:
            error = meaning(foreign, self._address.shown)
            if isinstance(error, CosmosUnavailable) and error.kind in PASSING:
                self._ways.doubt()
            raise error from foreign

    async def _write(self, call: Callable[[], Awaitable[CosmosDict]]) -> Wrote:
        try:
            headers = (await self._ask(call)).get_response_headers()
        except CosmosHttpResponseError as refused:
            return Wrote(done=False, charge_ru=charge_ru(answer_of(409, refused.headers)))
        return Wrote(done=True, charge_ru=charge_ru(answer_of(200, headers)))

    async def _made(self, call: Callable[[], Awaitable[None]]) -> bool:
        try:
            await self._ask(call)
        except CosmosResourceExistsError:
            return False
        return True

    def _checked(self, item: CosmosDict, name: str) -> Item:
        if item.get("id") != name or "_etag" not in item:
            self._meter.failed("malformed")
            raise CosmosUnavailable(f"{self._address.shown} sent another item than {name}", "malformed")
        return item

    def _now(self, headers: Mapping[str, Any]) -> float:
        now = date_of(answer_of(200, headers))
        if now is None:
            self._meter.failed("malformed")
            raise CosmosUnavailable(f"{self._address.shown} sent no date", "malformed")
        return now


def _asked(throughput: Throughput) -> ThroughputProperties:
    if throughput.autoscale:
        return ThroughputProperties(auto_scale_max_throughput=throughput.ru)
    return ThroughputProperties(offer_throughput=throughput.ru)
