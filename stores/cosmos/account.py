"""Containers, through azure-cosmos.

Imported lazily, because the SDK takes half a second.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, cast
from urllib.request import getproxies_environment

from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.transport import AioHttpTransport, AsyncHttpResponse
from azure.cosmos import PartitionKey, ThroughputProperties
from azure.cosmos.aio import ContainerProxy, CosmosClient, DatabaseProxy
from azure.cosmos.exceptions import CosmosHttpResponseError, CosmosResourceExistsError
from azure.cosmos.http_constants import HttpHeaders, ResourceType

from hotplate.base.proxies import proxy_for
from hotplate.stores.concurrency import Lifetime
from hotplate.stores.cosmos.azure_errors import translated_errors
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing, count
from hotplate.stores.cosmos.items import DEFINITION
from hotplate.stores.cosmos.url import Address, Offer, Throughput
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Observer

log = logging.getLogger(f"{__name__}.requests")
log.setLevel(logging.WARNING)  # the SDK logs every request at INFO

# The SDK takes 0 for unset, and retries a 429 nine times.
NO_RETRIES = -1

MIN_THROUGHPUT = "x-ms-cosmos-min-throughput"
REPLACE_PENDING = "x-ms-offer-replace-pending"
# In the message about a serverless account's throughput.
SERVERLESS = "serverless"


class CosmosAccount:
    """`Containers` by the account's key.

    Each call opens a client of the SDK, with the key that its file has then, which a rotation may have replaced.
    """

    def __init__(self, address: Address, observer: Observer | None = None) -> None:
        self._address = address
        self._observer = observer
        self._lifetime = Lifetime(address.shown)

    async def create_database(self) -> None:
        async with self._opened() as client:
            with suppress(CosmosResourceExistsError):
                await client.create_database(self._address.database)

    async def create_container(self, container: str, throughput: Throughput | None) -> None:
        async with self._opened() as client:
            with suppress(CosmosResourceExistsError):
                await self._database(client).create_container(
                    container,
                    cast("PartitionKey", DEFINITION["partitionKey"]),  # a dict subclass
                    indexing_policy=DEFINITION["indexingPolicy"],
                    offer_throughput=None if throughput is None else _properties(throughput),
                )

    async def list_containers(self) -> list[str]:
        async with self._opened() as client:
            return [container["id"] async for container in self._database(client).list_containers()]

    async def delete_container(self, container: str) -> None:
        with suppress(ContainerMissing):
            async with self._opened() as client:
                await self._database(client).delete_container(container)

    async def offer(self, container: str) -> Offer | None:
        """Return the throughput of a container, its minimum, and whether a change is pending; None if serverless."""
        headers = dict[str, str]()
        async with self._opened() as client:
            try:
                throughput = await self._container(client, container).get_throughput()
            except CosmosHttpResponseError as error:
                if SERVERLESS in str(error.message):
                    return None
                raise

            # get_throughput lacks the minimum and pending changes, so read its resource, an offer, once more.
            name: str = (throughput.properties or dict[str, Any]())["id"]
            offer = await client.client_connection.Read(
                f"/offers/{name}/",
                ResourceType.Offer,
                name.lower(),
                None,
                response_hook=lambda received, _: headers.update(received),
            )
            return offer_in(offer, headers)

    async def scale(self, container: str, throughput: Throughput) -> None:
        async with self._opened() as client:
            await self._container(client, container).replace_throughput(_properties(throughput))

    async def close(self) -> None:
        self._lifetime.end()
        await self._lifetime.wait_unused()

    def _database(self, client: CosmosClient) -> DatabaseProxy:
        return client.get_database_client(self._address.database)

    def _container(self, client: CosmosClient, container: str) -> ContainerProxy:
        return self._database(client).get_container_client(container)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[CosmosClient]:
        """Open the SDK's client, which reads the account, for calls that end within DEADLINE_S.

        It never repeats a call. Errors become StoreErrors: ContainerMissing, CosmosThrottled or CosmosUnavailable. All
        are counted.
        """
        address = self._address
        async with self._lifetime.in_use(), AsyncExitStack() as stack:
            try:
                with translated_errors(address.shown):
                    async with asyncio.timeout(DEADLINE_S):
                        client = self._client(await asyncio.to_thread(address.read_key))
                        stack.push_async_callback(client.close)
                        await client.__aenter__()  # reads the account
                        yield client
            except StoreError as error:
                count(error, self._observer)
                raise

    def _client(self, key: str | None) -> CosmosClient:
        address = self._address
        options = dict[str, Any]()
        if address.region is not None:
            options["preferred_locations"] = [address.region]
        if address.ca is not None:
            options["connection_verify"] = address.ca
        if getproxies_environment() and proxy_for(address.endpoint) is None:
            options["transport"] = AioHttpTransport(use_env_settings=False)  # which has a proxy for this machine, too
        return CosmosClient(
            address.endpoint,
            key or "",
            consistency_level=address.consistency,
            retry_total=0,
            retry_throttle_total=NO_RETRIES,
            logger=log,
            raw_response_hook=self._count_charge,
            **options,
        )

    def _count_charge(self, response: PipelineResponse[object, AsyncHttpResponse]) -> None:
        """Count the charge of a response; the SDK calls this for each one, of any status, page or attempt."""
        if self._observer is not None:
            self._observer.charged(_charge_in(response.http_response.headers))


def _charge_in(headers: Mapping[str, Any] | None) -> float:
    """Return the charge in the headers of a response, by default 0."""
    charge = str((headers or {}).get(HttpHeaders.RequestCharge, ""))
    return float(charge) if charge.replace(".", "", 1).isdigit() else 0.0


def _properties(throughput: Throughput) -> ThroughputProperties:
    if throughput.autoscale:
        return ThroughputProperties(auto_scale_max_throughput=throughput.ru)
    return ThroughputProperties(offer_throughput=throughput.ru)


def offer_in(offer: Mapping[str, Any], headers: Mapping[str, str]) -> Offer:
    """Parse an offer, the service's resource for the throughput of a container, and the headers of its response.

    The headers say whether a change is pending, and may have the minimum. Raises KeyError if the offer has no
    throughput.
    """
    content = offer["content"]
    autoscale_ru = (content.get("offerAutopilotSettings") or {}).get("maxThroughput")
    stated_minimum = content.get("offerMinimumThroughputParameters", {}).get("minThroughput")
    return Offer.of(
        autoscale_ru or content["offerThroughput"],
        autoscale=bool(autoscale_ru),
        minimum=stated_minimum or headers.get(MIN_THROUGHPUT),
        pending=headers.get(REPLACE_PENDING),
    )
