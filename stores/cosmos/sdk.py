"""Lookups through azure-cosmos: `cosmos://…?client=sdk`.

It point-reads for lookups and the catalogue's followers; all else is as in `RestClient`. It costs many times the CPU of
a signed request, and follows the account as Microsoft's support expects it to.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from azure.core.exceptions import AzureError
from azure.cosmos.aio import ContainerProxy, CosmosClient, DatabaseProxy
from azure.cosmos.exceptions import CosmosHttpResponseError

from hotplate.stores.cosmos.errors import (
    ContainerMissing,
    CosmosThrottled,
    CosmosUnavailable,
    ErrorResponse,
    error_for,
)
from hotplate.stores.cosmos.items import CosmosItem
from hotplate.stores.cosmos.requests import default_credential
from hotplate.stores.cosmos.rest import RestClient
from hotplate.stores.cosmos.url import Address
from hotplate.stores.errors import StoreError
from hotplate.stores.store import Observer

CHARGE = "x-ms-request-charge"
RETRY_AFTER_MS = "x-ms-retry-after-ms"
ADVICE = "check the key, or the roles of the identity"


class SdkClient(RestClient):
    """Reads items by azure-cosmos where lookups read them. Lives as long as its store, on one event loop."""

    def __init__(self, address: Address, observer: Observer | None = None) -> None:
        super().__init__(address, observer)
        self._address = address
        self._counted_by = observer
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[DatabaseProxy] | None = None
        self._opened = dict[str, ContainerProxy]()

    async def read(self, container: str, name: str, timeout_s: float, *, fresh: bool = False) -> CosmosItem | None:
        """See `RestClient`; its own requests serve publishers."""
        if fresh:
            return await super().read(container, name, timeout_s, fresh=True)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(container, name)
        except TimeoutError:
            sentence = f"{self._address.shown} did not respond in time"
            raise self._failed(CosmosUnavailable(sentence, "timeout")) from None
        except CosmosHttpResponseError as error:
            raise self._failed(self._translated(error)) from error
        except (AzureError, OSError) as error:
            sentence = f"{self._address.shown} cannot be reached: {type(error).__name__}"
            raise self._failed(CosmosUnavailable(sentence, "connect")) from error

    async def read_nearest(self, container: str, name: str, timeout_s: float) -> tuple[CosmosItem | None, bool]:
        """Read as `read` does; which region responded is the SDK's business, so it counts as one behind."""
        return await self.read(container, name, timeout_s), False

    async def close(self) -> None:
        """Give back connections; closing twice does nothing."""
        if self._opening is not None:
            await asyncio.gather(self._opening, return_exceptions=True)
        await self._stack.aclose()
        await super().close()

    async def _read(self, container: str, name: str) -> CosmosItem | None:
        proxy = self._opened.get(container)
        if proxy is None:
            proxy = (await self._database()).get_container_client(container)
            await proxy.read()  # else a missing container would look like a missing item
            self._opened[container] = proxy
        try:
            item = await proxy.read_item(name, name)
        except CosmosHttpResponseError as error:
            if error.status_code != 404 or error.sub_status:
                raise
            self._charged(error.headers)
            return None
        self._charged(item.get_response_headers())
        return item

    async def _database(self) -> DatabaseProxy:
        """Connect once for all reads, also if the first of them is cancelled."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> DatabaseProxy:
        address, credential = self._address, self._address.key or default_credential()
        more: dict[str, Any] = {} if address.region is None else {"preferred_locations": [address.region]}
        more |= {} if address.ca is None else {"connection_verify": address.ca}
        async with AsyncExitStack() as stack:  # closes what was opened if the account does not answer
            if not isinstance(credential, str):
                await stack.enter_async_context(credential)
            client = CosmosClient(
                address.endpoint, credential, consistency_level=address.consistency, retry_total=0, **more
            )
            stack.push_async_callback(client.close)
            await client.__aenter__()
            self._stack = stack.pop_all()
        return client.get_database_client(address.database)

    def _translated(self, error: CosmosHttpResponseError) -> StoreError:
        headers = error.headers or {}
        self._charged(headers)
        substatus = error.sub_status or 0
        after_ms = float(headers[RETRY_AFTER_MS]) / 1000 if RETRY_AFTER_MS in headers else None
        answer = ErrorResponse(error.status_code or 0, substatus, error.message or "no reason given", after_ms)
        return error_for(answer, self._address.shown, ADVICE)

    def _charged(self, headers: Any) -> None:  # noqa: ANN401 -- a mapping of the SDK's, which has several kinds
        if self._counted_by is not None:
            self._counted_by.charged(float(headers.get(CHARGE, 0)))

    def _failed(self, error: StoreError) -> StoreError:
        if isinstance(error, ContainerMissing):
            self._opened.clear()
        elif self._counted_by is not None and isinstance(error, CosmosUnavailable | CosmosThrottled):
            self._counted_by.failed(error.kind)
        return error
