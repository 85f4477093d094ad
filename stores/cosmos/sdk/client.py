"""Clients of azure-cosmos, made as they cost least: one pool of connections, no look at the environment, no retries.

As it comes, the SDK looks for a proxy and a password in the environment, in two threads, for every request, and has
100 connections at most, for which requests queue without an end.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos.aio import ContainerProxy, CosmosClient
from azure.cosmos.documents import ConnectionPolicy

from stores.cosmos.driver import DEADLINE_S
from stores.cosmos.sdk.attempt import OneAttempt
from stores.cosmos.signing import KeySigner
from stores.cosmos.url import Address
from stores.store import Observer

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

KEPT_S = 75.0
"""How long a connection that nothing needs is kept."""

log = logging.getLogger(f"{__name__}.requests")
log.setLevel(logging.WARNING)  # the SDK tells of every request at INFO, with what it asked for

ENTRA_ADVICE = "Entra ID gave no token that this account takes; sign in, or give this machine an identity"


class Clients:
    """What the clients of one driver share: connections, TLS, and who they are; lives as long as the driver."""

    def __init__(self, address: Address, meter: Observer, credential: "AsyncTokenCredential | None") -> None:
        """Take the account; *credential* is in the place of the one that azure-identity finds by itself."""
        self.address = address
        self.meter = meter
        self.advice = ENTRA_ADVICE if address.key is None else KeySigner(address.key, address.shown).advice
        self._credential = credential
        self._session: ClientSession | None = None

    def make(self, url: str, consistency: str | None, attempt: OneAttempt) -> CosmosClient:
        """Make a client that asks *url* and no other; of the account's own consistency where none is given."""
        policy = ConnectionPolicy()
        policy.ConnectionRetryConfiguration = attempt  # type: ignore[assignment]  # any policy is taken; its type lags
        return CosmosClient(
            url,
            self.address.key or self._identity(),
            consistency_level=consistency,
            connection_policy=policy,
            enable_endpoint_discovery=False,
            logger=log,
            connection_timeout=DEADLINE_S,
            read_timeout=DEADLINE_S,
            transport=AioHttpTransport(session=self._connections(), session_owner=False, use_env_settings=False),
        )

    async def close(self) -> None:
        """Close connections, and what gets tokens."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        credential, self._credential = self._credential, None
        if credential is not None:
            await credential.close()

    def _identity(self) -> "AsyncTokenCredential":
        if self._credential is None:
            from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 -- accounts with a key do without

            self._credential = DefaultAzureCredential()
        return self._credential

    def _connections(self) -> ClientSession:
        """Return the session; its TLS settings count for loopback, too, where the SDK by itself verifies nobody."""
        if self._session is None:
            tls = ssl.create_default_context()
            if self.address.ca is not None:
                tls.load_verify_locations(self.address.ca)
            connector = TCPConnector(limit=0, keepalive_timeout=KEPT_S, ssl=tls)
            self._session = ClientSession(connector=connector, auto_decompress=False, cookie_jar=DummyCookieJar())
            # Else a PUT whose answer was lost is sent twice, and the second is told that the version has changed.
            self._session._retry_connection = False  # noqa: SLF001 -- aiohttp's own test client has no other way
        return self._session


class Way:
    """A client of one endpoint, opened at its first use and again where that failed; lives as long as its driver."""

    def __init__(
        self, clients: Clients, url: str, consistency: str | None, learnt: Callable[[dict[str, Any]], None]
    ) -> None:
        self._clients = clients
        self._url = url
        self._consistency = consistency
        self._opening: asyncio.Task[CosmosClient] | None = None
        self._containers = dict[str, ContainerProxy]()
        self._attempt = OneAttempt(clients.address.shown, clients.advice, clients.meter, learnt)

    async def client(self) -> CosmosClient:
        """Return the client, which has asked the account about itself; callers at the same time share one opening."""
        if self._attempt.stale:
            self._attempt.stale = False
            await self.close()
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def container(self, name: str) -> ContainerProxy:
        """Return a container."""
        client = await self.client()
        found = self._containers.get(name)
        if found is None:
            database = client.get_database_client(self._clients.address.database)
            found = self._containers[name] = database.get_container_client(name)
        return found

    async def close(self) -> None:
        """Close the client, or stop opening it; what is asked by it meanwhile is answered."""
        opening, self._opening = self._opening, None
        self._containers.clear()
        if opening is not None:
            opening.cancel()
            (client,) = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(client, CosmosClient):
                await client.close()

    async def _open(self) -> CosmosClient:
        client = self._clients.make(self._url, self._consistency, self._attempt)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await client.__aenter__()
        except BaseException:
            await client.close()
            raise
        return client

    def _opened(self, opening: asyncio.Task[CosmosClient]) -> None:
        failed = opening.cancelled() or opening.exception() is not None  # seen, even where every caller has gone
        if failed and self._opening is opening:
            self._opening = None
