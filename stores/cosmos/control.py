"""The control plane by azure-cosmos: databases, containers and throughput, with the account's key.

Each call opens a client of the write region and closes it again: calls are few, and a client that lives on may remember
containers that are gone. Imported only to make, scale or drop.
"""

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

from aiohttp import ClientConnectorError, ClientResponseError, ClientSession, TCPConnector
from azure.core.exceptions import (
    AzureError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline import PipelineRequest, PipelineResponse
from azure.core.pipeline.policies import AsyncHTTPPolicy
from azure.core.pipeline.transport import AioHttpTransport, AsyncHttpResponse, HttpRequest
from azure.cosmos import PartitionKey, ThroughputProperties
from azure.cosmos._retry_options import RetryOptions  # private, and the only way to turn retries of 429s off
from azure.cosmos.aio import CosmosClient, DatabaseProxy
from azure.cosmos.documents import ConnectionPolicy
from azure.cosmos.exceptions import CosmosHttpResponseError, CosmosResourceExistsError

from hotplate.stores.cosmos.errors import ContainerMissing, ResponseTranslator, object_in
from hotplate.stores.cosmos.items import DEFINITION
from hotplate.stores.cosmos.requests import DEADLINE_S
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import Address, Offer, Throughput
from hotplate.stores.errors import StoreError
from hotplate.stores.http1 import RequestFailed, Response

log = logging.getLogger(f"{__name__}.requests")
log.setLevel(logging.WARNING)  # the SDK logs every request at INFO, with what it holds

# Options meant for the step of the SDK that ours replaces; the transport does not know them.
SDK_OPTIONS = ("request_params", "global_endpoint_manager", "timeout")


class AccountContainers:
    """See `Containers`; lives as long as its store, and keeps nothing open."""

    def __init__(self, address: Address, client: RestClient) -> None:
        """Take the database, and the client that knows the account's regions."""
        self._address = address
        self._client = client
        self._key = address.key or ""  # `open_containers` comes here only if there is one

    async def create_database(self) -> bool:
        return await self._create(lambda client: client.create_database(self._address.database))

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        async def create(client: CosmosClient) -> None:
            await self._database(client).create_container(
                container,
                cast("PartitionKey", DEFINITION["partitionKey"]),  # which is a dict of just that
                indexing_policy=DEFINITION["indexingPolicy"],
                offer_throughput=None if throughput is None else _properties(throughput),
            )

        return await self._create(create)

    async def list_containers(self) -> list[str]:
        return await self._client.containers()

    async def delete_container(self, container: str) -> None:
        try:
            async with self._open() as client:
                await self._database(client).delete_container(container)
        except ContainerMissing:
            return
        finally:
            self._client.forget_session(container)

    async def offer(self, container: str) -> Offer | None:
        return await self._client.offer(container)

    async def scale(self, container: str, throughput: Throughput) -> None:
        async with self._open() as client:
            proxy = self._database(client).get_container_client(container)
            await proxy.replace_throughput(_properties(throughput))

    async def close(self) -> None:
        """See `Containers`."""

    async def _create(self, create: Callable[[CosmosClient], Awaitable[object]]) -> bool:
        """Create something; False if it was there."""
        try:
            async with self._open() as client:
                await create(client)
        except CosmosResourceExistsError:
            return False
        return True

    def _database(self, client: CosmosClient) -> DatabaseProxy:
        return client.get_database_client(self._address.database)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[CosmosClient]:
        """Open a client for one call: one attempt, a verified server, no retries; its errors are raised as ours."""
        url = await self._client.write_region()
        policy = ConnectionPolicy()
        policy.RetryOptions = RetryOptions(max_retry_attempt_count=0)
        # Any policy is taken in this place; its declared type lags behind.
        policy.ConnectionRetryConfiguration = _SingleAttempt(self._client.translator)  # type: ignore[assignment]
        tls = ssl.create_default_context(cafile=self._address.ca) if url.startswith("https:") else True
        try:
            async with ClientSession(connector=TCPConnector(ssl=tls), auto_decompress=False) as session:
                # Else a PUT whose response was lost is sent twice.
                session._retry_connection = False  # noqa: SLF001 -- aiohttp's own test client has no other way
                client = CosmosClient(
                    url,
                    self._key,
                    connection_policy=policy,
                    enable_endpoint_discovery=False,
                    logger=log,
                    connection_timeout=DEADLINE_S,
                    read_timeout=DEADLINE_S,
                    transport=AioHttpTransport(session=session, session_owner=False, use_env_settings=False),
                )
                # Else each client looks at the health of its one region in the background. To cancel that while it
                # connects leaves a socket open in Python 3.11. There is no option for it.
                endpoints = client.client_connection._global_endpoint_manager.location_cache  # noqa: SLF001 -- as above
                endpoints.endpoints_to_health_check = set  # type: ignore[method-assign]
                async with client:
                    yield client
        except _Translated as translated:
            raise translated.error from translated
        except CosmosHttpResponseError:
            raise  # let through as an answer: it is there already
        except AzureError as foreign:
            raise self._client.translator.no_response(_failure(foreign)) from foreign


class _Translated(AzureError):
    """Carries one of our errors through the SDK, which does not retry what it cannot name."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(str(error))
        self.error = error


class _SingleAttempt(AsyncHTTPPolicy[HttpRequest, AsyncHttpResponse]):
    """Stands where the SDK's own retries would: one attempt, a verified server, every response counted and translated.

    Arguments do not turn those retries off: a 503, a 408 and a lost connection are retried whatever is set.
    """

    def __init__(self, translator: ResponseTranslator) -> None:
        super().__init__()
        self._translator = translator

    async def send(self, request: PipelineRequest[HttpRequest]) -> PipelineResponse[HttpRequest, AsyncHttpResponse]:
        """Send a request on; raises _Translated for a response that is neither a success nor a conflict."""
        options = request.context.options
        for name in SDK_OPTIONS:
            options.pop(name, None)
        options["connection_verify"] = True  # the SDK sets False for localhost and 127.0.0.1
        try:
            received: PipelineResponse[HttpRequest, AsyncHttpResponse] = await self.next.send(request)
        except AzureError as foreign:
            raise _Translated(self._translator.no_response(_failure(foreign))) from foreign
        response = _response(received.http_response)
        if response.status >= 400 and response.status != 409:
            raise _Translated(self._translator.error(response))
        try:
            self._translator.parse(lambda: self._translator.charge(response))
            if response.body:
                self._translator.parse(lambda: object_in(response))
        except StoreError as error:
            raise _Translated(error) from error
        return received


def _response(received: AsyncHttpResponse) -> Response:
    """Return a response of the SDK as one of ours."""
    head = "".join(f"\r\n{name}:{value}" for name, value in received.headers.items()) + "\r\n\r\n"
    return Response(received.status_code, head.encode("latin-1", "replace"), received.body())


def _failure(error: AzureError) -> RequestFailed:
    """Return how a request came to have no response that can be read."""
    match error:
        case ServiceRequestTimeoutError() | ServiceResponseTimeoutError():
            return RequestFailed("timeout", "")
        case AzureError(inner_exception=ClientConnectorError()):
            return RequestFailed("connect", "")
        case AzureError(inner_exception=ClientResponseError()):
            return RequestFailed("malformed", "")
        case ServiceRequestError() | ServiceResponseError():
            return RequestFailed("reset", "")
    return RequestFailed("malformed", "")


def _properties(throughput: Throughput) -> ThroughputProperties:
    if throughput.autoscale:
        return ThroughputProperties(auto_scale_max_throughput=throughput.ru)
    return ThroughputProperties(offer_throughput=throughput.ru)
