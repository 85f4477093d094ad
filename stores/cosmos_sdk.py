"""The driver `driver=sdk`: Cosmos DB through the unmodified azure-cosmos, for those who prefer it; needs its extra.

It spends a good 400 µs of CPU on a read, `driver=rest` a twentieth of that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.cosmos import CosmosDict, PartitionKey, ThroughputProperties
from azure.cosmos.exceptions import CosmosHttpResponseError, CosmosResourceExistsError, CosmosResourceNotFoundError

from stores.cosmos_answers import charge_ru, date_of
from stores.cosmos_driver import DEADLINE_S, DEFINITION, Account, Item, Look, Offer, Wrote
from stores.cosmos_errors import ContainerMissing, CosmosUnavailable
from stores.cosmos_sdk_attempt import answer_of
from stores.cosmos_sdk_client import Clients, Way
from stores.cosmos_throughput import Throughput, minimum_ru
from stores.cosmos_url import Address
from stores.store import Meter

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

T = TypeVar("T")


class SdkDriver:
    """See `Driver`. Lookups have a client of their consistency, all else one of the account's, opened when needed."""

    def __init__(self, address: Address, meter: Meter, credential: "AsyncTokenCredential | None" = None) -> None:
        """Take the database and who counts; *credential* is in the place of what azure-identity finds by itself."""
        self._address = address
        self._meter = meter
        self._clients = Clients(address, meter, credential)
        self._lookups = Way(self._clients, address.consistency)
        self._control = Way(self._clients, None)

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> Item | None:
        """See `Driver`."""
        way = self._control if fresh else self._lookups

        async def call() -> Item:
            return await (await way.container(container)).read_item(name, name)

        try:
            return await self._ask(way, call, timeout_s)
        except CosmosResourceNotFoundError:
            return None

    async def look(self, container: str, name: str) -> Look:
        """See `Driver`."""

        async def call() -> CosmosDict:
            return await (await self._control.container(container)).read_item(name, name)

        try:
            item = await self._ask(self._control, call)
        except CosmosResourceNotFoundError as missing:
            return Look(None, "", self._now(missing.headers))
        return Look(item, str(item.get("_etag", "")), self._now(item.get_response_headers()))

    async def create(self, container: str, item: Item) -> Wrote:
        """See `Driver`."""

        async def call() -> CosmosDict:
            return await (await self._control.container(container)).create_item(item, no_response=True)

        return await self._write(call)

    async def upsert(self, container: str, item: Item) -> Wrote:
        """See `Driver`."""

        async def call() -> CosmosDict:
            return await (await self._control.container(container)).upsert_item(item, no_response=True)

        return await self._write(call)

    async def replace(self, container: str, item: Item, etag: str) -> Wrote:
        """See `Driver`."""
        unless_changed = MatchConditions.IfNotModified

        async def call() -> CosmosDict:
            proxy = await self._control.container(container)
            return await proxy.replace_item(
                item["id"], item, etag=etag, match_condition=unless_changed, no_response=True
            )

        return await self._write(call)

    async def account(self) -> Account:
        """See `Driver`."""

        async def call() -> None:
            await (await self._control.client()).client_connection.GetDatabaseAccount()

        await self._ask(self._control, call)
        places = self._control.attempt.places
        if places is None:
            raise CosmosUnavailable(f"{self._address.shown} did not say where it is", "malformed")
        names = [place.name for place in places.readable]
        return Account(places.many_writers, tuple(sorted(names, key=lambda name: name != self._address.region)))

    async def create_database(self) -> bool:
        """See `Driver`."""

        async def call() -> None:
            await (await self._control.client()).create_database(self._address.database)

        return await self._made(call)

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        """See `Driver`."""

        async def call() -> None:
            client = await self._control.client()
            await client.get_database_client(self._address.database).create_container(
                container,
                cast("PartitionKey", DEFINITION["partitionKey"]),  # which is a dict of just that
                indexing_policy=DEFINITION["indexingPolicy"],
                offer_throughput=None if throughput is None else _asked(throughput),
            )

        return await self._made(call)

    async def delete_container(self, container: str) -> None:
        """See `Driver`."""

        async def call() -> None:
            client = await self._control.client()
            await client.get_database_client(self._address.database).delete_container(container)

        try:
            await self._ask(self._control, call)
        except ContainerMissing:
            return

    async def offer(self, container: str) -> Offer | None:
        """See `Driver`."""

        async def call() -> CosmosDict:
            proxy = await self._control.container(container)
            found: Mapping[str, Any] = (await proxy.get_throughput()).properties or {}
            name = str(found.get("id"))
            # The SDK only queries offers; whether a change is under way is told where one is read.
            return await proxy.client_connection.Read(f"/offers/{name}/", "offers", name.lower(), None)

        try:
            told = await self._ask(self._control, call)
        except CosmosHttpResponseError:
            return None  # the account is serverless: it has no offer, or refuses to tell of any
        return _offer(told, told.get_response_headers())

    async def scale(self, container: str, throughput: Throughput) -> None:
        """See `Driver`."""

        async def call() -> None:
            await (await self._control.container(container)).replace_throughput(_asked(throughput))

        try:
            await self._ask(self._control, call)
        except CosmosHttpResponseError:
            return  # as above

    async def close(self) -> None:
        """See `Driver`."""
        for way in (self._lookups, self._control):
            await way.close()
        await self._clients.close()

    async def _ask(self, way: Way, call: Callable[[], Awaitable[T]], timeout_s: float = DEADLINE_S) -> T:
        """Make one call of the SDK in time; raises StoreError, and CosmosHttpResponseError for what was let through."""
        try:
            async with asyncio.timeout(timeout_s):
                return await call()
        except CosmosHttpResponseError:
            raise  # let through as an answer to what was asked
        except TimeoutError as late:
            self._meter.failed("timeout")  # any other failure was counted where it happened
            raise way.attempt.translated(late) from late
        except AzureError as foreign:
            raise way.attempt.translated(foreign) from foreign

    async def _write(self, call: Callable[[], Awaitable[CosmosDict]]) -> Wrote:
        try:
            headers = (await self._ask(self._control, call)).get_response_headers()
        except CosmosHttpResponseError as refused:
            return Wrote(done=False, charge_ru=charge_ru(answer_of(409, refused.headers)))
        return Wrote(done=True, charge_ru=charge_ru(answer_of(200, headers)))

    async def _made(self, call: Callable[[], Awaitable[None]]) -> bool:
        try:
            await self._ask(self._control, call)
        except CosmosResourceExistsError:
            return False
        return True

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


def _offer(told: Mapping[str, Any], headers: Mapping[str, str]) -> Offer:
    """Read an offer; where it does not say how low it may go, that is worked out from what it is now."""
    content = told["content"]
    scaling = content.get("offerAutopilotSettings")
    throughput = Throughput(int(scaling["maxThroughput"] if scaling else content["offerThroughput"]), bool(scaling))
    least = content.get("offerMinimumThroughputParameters", {}).get("minThroughput")
    least = headers.get("x-ms-cosmos-min-throughput", least)
    pending = str(headers.get("x-ms-offer-replace-pending", "")).lower() == "true"
    return Offer(throughput, int(least or minimum_ru(throughput.ru, 0, autoscale=throughput.autoscale)), pending)
