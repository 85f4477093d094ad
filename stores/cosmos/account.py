"""Containers, through azure-cosmos.

Imported lazily, because the SDK takes half a second.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, cast
from urllib.request import getproxies_environment

from azure.core.exceptions import AzureError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.transport import AioHttpTransport, AsyncHttpResponse
from azure.cosmos import PartitionKey, ThroughputProperties
from azure.cosmos.aio import ContainerProxy, CosmosClient, DatabaseProxy
from azure.cosmos.exceptions import CosmosHttpResponseError, CosmosResourceExistsError
from azure.cosmos.http_constants import HttpHeaders, ResourceType

from hotplate.base.proxies import proxy_for
from hotplate.stores.concurrency import Lifetime, SharedCall
from hotplate.stores.cosmos.azure_errors import error_of
from hotplate.stores.cosmos.errors import DEADLINE_S, ContainerMissing, CosmosDenied, CosmosUnavailable, count
from hotplate.stores.cosmos.items import DEFINITION
from hotplate.stores.cosmos.requests import KeySigner, default_credential
from hotplate.stores.cosmos.url import Address, Offer, Throughput, minimum_ru
from hotplate.stores.errors import StoreClosed, StoreError
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
    """`Containers` by the account's key; for one event loop."""

    def __init__(self, address: Address, observer: Observer | None = None) -> None:
        self._address = address
        self._observer = observer
        self._stack = AsyncExitStack()
        self._lifetime = Lifetime(address.shown)
        self._opening = SharedCall(self._open, partial(StoreClosed, address.shown))
        self._client: CosmosClient | None = None
        self._signer = None if address.key is None else KeySigner(address)
        """Has the key in use; the SDK signs requests by itself."""

        self._client_version = 0
        """The signer's version of the key that the client was opened with."""

    async def create_database(self) -> None:
        async with self._attempt() as client:
            with suppress(CosmosResourceExistsError):
                await client.create_database(self._address.database)

    async def create_container(self, container: str, throughput: Throughput | None) -> None:
        async with self._attempt() as client:
            with suppress(CosmosResourceExistsError):
                await self._database(client).create_container(
                    container,
                    cast("PartitionKey", DEFINITION["partitionKey"]),  # a dict subclass
                    indexing_policy=DEFINITION["indexingPolicy"],
                    offer_throughput=None if throughput is None else _properties(throughput),
                )

    async def list_containers(self) -> list[str]:
        async with self._attempt() as client:
            return [container["id"] async for container in self._database(client).list_containers()]

    async def delete_container(self, container: str) -> None:
        with suppress(ContainerMissing):
            async with self._attempt() as client:
                await self._database(client).delete_container(container)

    async def offer(self, container: str) -> Offer | None:
        """Return the throughput of a container, its minimum, and whether a change is pending; None if serverless."""
        headers = dict[str, str]()
        async with self._attempt() as client:
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
        async with self._attempt() as client:
            await self._container(client, container).replace_throughput(_properties(throughput))

    async def close(self) -> None:
        self._lifetime.end()
        await self._lifetime.wait_unused()
        await self._opening.close()
        if self._signer is not None:
            await self._signer.close()
        await self._stack.aclose()

    def _database(self, client: CosmosClient) -> DatabaseProxy:
        return client.get_database_client(self._address.database)

    def _container(self, client: CosmosClient, container: str) -> ContainerProxy:
        return self._database(client).get_container_client(container)

    @asynccontextmanager
    async def _attempt(self, timeout_s: float = DEADLINE_S) -> AsyncIterator[CosmosClient]:
        """Yield the open client for calls of the SDK, which end within *timeout_s* seconds.

        Errors of the SDK become StoreErrors: ContainerMissing, CosmosThrottled or CosmosUnavailable. All are counted.
        A call that was refused for its key may be made again if the key was rotated.
        """
        async with self._lifetime.in_use():
            version = self._key_version
            try:
                async with asyncio.timeout(timeout_s):
                    client = self._client
                    if client is None or self._client_version != version:
                        client = await self._opening.result()
                        version = self._client_version
                    yield client
            except Exception as error:
                translated = self._translated(error)
                if translated is None:
                    raise
                if isinstance(translated, CosmosDenied) and await self._has_replaced_key(version):
                    sentence = f"{self._address.shown}: its key was rotated; the next request uses the new one"
                    translated = CosmosUnavailable(sentence, "unavailable", unprocessed=True)
                raise count(translated, self._observer) from error

    async def _open(self) -> CosmosClient:
        """Open and return the SDK's client, which reads the account; it never repeats a call.

        The credential is the account's key, or that of this machine for Entra ID. Both are closed if the client cannot
        be opened, and by `self._stack` otherwise: calls may still use the client of a key that was replaced.
        """
        address = self._address
        version = self._key_version
        key = None if self._signer is None else self._signer.key
        credential = key or default_credential()
        options = dict[str, Any]()
        if address.region is not None:
            options["preferred_locations"] = [address.region]
        if address.ca is not None:
            options["connection_verify"] = address.ca
        if getproxies_environment() and proxy_for(address.endpoint) is None:
            options["transport"] = AioHttpTransport(use_env_settings=False)  # which has a proxy for this machine, too

        async with AsyncExitStack() as stack:  # closed on failure
            if not isinstance(credential, str):
                await stack.enter_async_context(credential)
            client = CosmosClient(
                address.endpoint,
                credential,
                consistency_level=address.consistency,
                retry_total=0,
                retry_throttle_total=NO_RETRIES,
                logger=log,
                raw_response_hook=self._count_charge,
                **options,
            )
            stack.push_async_callback(client.close)
            await client.__aenter__()  # reads the account
            await self._stack.enter_async_context(stack.pop_all())
        self._client = client
        self._client_version = version
        return client

    @property
    def _key_version(self) -> int:
        return 0 if self._signer is None else self._signer.version

    async def _has_replaced_key(self, version: int) -> bool:
        """Return whether the key of a *version*, which was refused, is replaced by now; never for Entra ID."""
        return self._signer is not None and await self._signer.has_replaced(version)

    def _translated(self, error: Exception) -> StoreError | None:
        """Return the StoreError for an error of the SDK, or of our readers of its responses; None for any other."""
        shown = self._address.shown
        if isinstance(error, TimeoutError):
            return CosmosUnavailable(f"{shown} did not answer in time", "timeout")
        if isinstance(error, AzureError):
            return error_of(error, shown)
        if isinstance(error, KeyError | OSError | ValueError):
            return CosmosUnavailable(f"{shown} sent a malformed response", "malformed")
        return None

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

    The headers say whether a change is pending, and may have the minimum. Without a minimum, the one of an empty
    container is assumed. Raises KeyError if the offer has no throughput.
    """
    content = offer["content"]
    autoscale = content.get("offerAutopilotSettings") or {}
    ru = autoscale.get("maxThroughput") or content["offerThroughput"]
    throughput = Throughput(ru, autoscale=bool(autoscale))

    stated_minimum = content.get("offerMinimumThroughputParameters", {}).get("minThroughput")
    minimum = stated_minimum or headers.get(MIN_THROUGHPUT)
    if not minimum:
        minimum = minimum_ru(ru, 0, autoscale=throughput.autoscale)

    is_pending = headers.get(REPLACE_PENDING, "").lower() == "true"
    return Offer(throughput, int(minimum), is_pending)
