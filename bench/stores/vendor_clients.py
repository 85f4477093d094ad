"""Stores whose lists are read by the vendors' clients, redis-py and azure-cosmos, for comparison with ours.

`vendor+URL` is the store at a URL of one Redis server or of Cosmos DB; the rest of it is the store itself. Entry points
of `hotplate.stores` announce these schemes, so that `hotplate serve` reads them like the stores of other packages.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import cast

from azure.core.exceptions import AzureError, ResourceNotFoundError
from azure.cosmos.aio import ContainerProxy, CosmosClient
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from hotplate.bench.options import store_url
from hotplate.stores.catalogue import ReleaseRef
from hotplate.stores.concurrency import SharedCall
from hotplate.stores.cosmos import store as cosmos_store
from hotplate.stores.cosmos import url as cosmos_url
from hotplate.stores.cosmos.azure_errors import error_of
from hotplate.stores.cosmos.containers import open_containers
from hotplate.stores.cosmos.items import container_of, name_of, value_of
from hotplate.stores.cosmos.requests import default_credential
from hotplate.stores.cosmos.signed import SignedClient
from hotplate.stores.errors import StoreClosed, StoreUnavailable
from hotplate.stores.redis import store as redis_store
from hotplate.stores.redis import url as redis_url
from hotplate.stores.redis.client import ServerConnection, settings_of
from hotplate.stores.redis.deployment import Deployment
from hotplate.stores.redis.errors import translated
from hotplate.stores.redis.keys import SEALED, Keys
from hotplate.stores.store import ReadResult, not_found

log = logging.getLogger(f"{__name__}.requests")
log.setLevel(logging.WARNING)  # azure-cosmos logs every request at INFO

READ_TIMEOUT_S = 1.0
MAX_CONNECTIONS = 64
# azure-cosmos takes 0 for unset, and retries a 429 nine times.
NO_RETRIES = -1


class ReadByRedisPy(redis_store.RedisStore):
    """A Redis server; one MGET of redis-py reads the state and the rows."""

    def __init__(self, address: redis_url.RedisAddress) -> None:
        super().__init__(Deployment(address))
        pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            timeout=READ_TIMEOUT_S,
            connection_class=ServerConnection,
            **settings_of(address),
        )
        self._redis = Redis.from_pool(pool)  # which closes it
        self._where = address.shown
        self._names = Keys(address.prefix)

    async def get_many(
        self,
        release: ReleaseRef,
        keys: Sequence[str],
        *,
        timeout_s: float | None = None,  # noqa: ARG002 -- the caller applies it
    ) -> list[ReadResult]:
        """See `Reader.get_many`."""
        names = self._names.release(release)
        try:
            state, *rows = await self._redis.mget([names.state, *names.located(keys).names])
        except RedisError as error:
            raise translated(error, self._where) from error
        if state is None or (state != SEALED and None in rows):
            raise not_found(release)
        return cast("list[ReadResult]", rows)

    async def close(self) -> None:
        """See `Reader.close`."""
        with suppress(RedisError):  # over TLS, the server may not answer
            await self._redis.aclose()
        await super().close()


class ReadByAzureCosmos(cosmos_store.CosmosStore):
    """A database of Cosmos DB; azure-cosmos reads the item of each key."""

    def __init__(self, address: cosmos_url.Address) -> None:
        super().__init__(address, SignedClient(address), partial(open_containers, address))
        self._address = address
        self._opened = AsyncExitStack()
        self._sdk: CosmosClient | None = None
        self._opening = SharedCall(self._open, partial(StoreClosed, address.shown))

    async def get_many(
        self, release: ReleaseRef, keys: Sequence[str], *, timeout_s: float | None = None
    ) -> list[ReadResult]:
        """See `Reader.get_many`."""
        try:
            async with asyncio.timeout(timeout_s):
                sdk = self._sdk or await self._opening.result()
                database = sdk.get_database_client(self._address.database)
                container = database.get_container_client(container_of(release))
                return list(await asyncio.gather(*(self._read(container, name_of(key)) for key in keys)))
        except AzureError as error:
            raise error_of(error, self._address.shown) from error
        except TimeoutError as error:
            raise StoreUnavailable(f"{self._address.shown} did not answer in time") from error

    async def close(self) -> None:
        """See `Reader.close`."""
        await self._opening.close()
        await self._opened.aclose()
        await super().close()

    async def _read(self, container: ContainerProxy, name: str) -> bytes | None:
        try:
            return value_of(await container.read_item(name, name))
        except ResourceNotFoundError:
            return None

    async def _open(self) -> CosmosClient:
        """Open the client, which reads the account. It repeats no call."""
        address = self._address
        credential = address.key or default_credential()
        if not isinstance(credential, str):
            await self._opened.enter_async_context(credential)
        client = CosmosClient(
            address.endpoint,
            credential,
            consistency_level=address.consistency,
            retry_total=0,
            retry_throttle_total=NO_RETRIES,
            connection_verify=address.ca or True,
            logger=log,
        )
        self._opened.push_async_callback(client.close)
        await client.__aenter__()  # which leaves its connection open if it fails
        self._sdk = client
        return client


def open_redis(url: str) -> ReadByRedisPy:
    """Open `vendor+redis://…`."""
    return ReadByRedisPy(redis_url.parse(store_url(url)))


def open_cosmos(url: str) -> ReadByAzureCosmos:
    """Open `vendor+cosmos://…`, or the same of an emulator."""
    return ReadByAzureCosmos(cosmos_url.parse(store_url(url)))
