"""Clients of azure-cosmos, made as they cost least: one pool of connections, no look at the environment, no retries.

As it comes, the SDK looks for a proxy and a password in the environment, in two threads, for every request, and has
100 connections at most, for which requests queue without an end.
"""

import asyncio
import ssl
from typing import TYPE_CHECKING

from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from azure.core.pipeline.transport import AioHttpTransport
from azure.cosmos.aio import ContainerProxy, CosmosClient
from azure.cosmos.documents import ConnectionPolicy

from stores.cosmos_driver import DEADLINE_S
from stores.cosmos_sdk_attempt import OneAttempt
from stores.cosmos_signing import KeySigner
from stores.cosmos_url import Address
from stores.store import Meter

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

KEPT_S = 75.0
"""How long a connection that nothing needs is kept."""

ENTRA_ADVICE = "Entra ID gave no token that this account takes; sign in, or give this machine an identity"


class Clients:
    """What the clients of one driver share: connections, TLS, and who they are; lives as long as the driver."""

    def __init__(self, address: Address, meter: Meter, credential: "AsyncTokenCredential | None") -> None:
        """Take the account; *credential* is in the place of the one that azure-identity finds by itself."""
        self.address = address
        self.meter = meter
        self.advice = ENTRA_ADVICE if address.key is None else KeySigner(address.key, address.shown).advice
        self._credential = credential
        self._session: ClientSession | None = None

    def make(self, consistency: str | None, attempt: OneAttempt) -> CosmosClient:
        """Make a client; of the account's own consistency where none is given."""
        policy = ConnectionPolicy()
        policy.ConnectionRetryConfiguration = attempt  # type: ignore[assignment]  # any policy is taken; its type lags
        return CosmosClient(
            self.address.endpoint,
            self.address.key or self._identity(),
            consistency_level=consistency,
            connection_policy=policy,
            preferred_locations=[self.address.region] if consistency and self.address.region else [],
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
            tls = ssl.create_default_context(cafile=self.address.ca)
            connector = TCPConnector(limit=0, keepalive_timeout=KEPT_S, ssl=tls)
            self._session = ClientSession(connector=connector, auto_decompress=False, cookie_jar=DummyCookieJar())
        return self._session


class Way:
    """One client, opened at its first use and again where that failed; lives as long as its driver."""

    def __init__(self, clients: Clients, consistency: str | None) -> None:
        self._clients = clients
        self._consistency = consistency
        self._opening: asyncio.Task[CosmosClient] | None = None
        self._containers = dict[str, ContainerProxy]()
        self.attempt = OneAttempt(clients.address, clients.advice, clients.meter)

    async def client(self) -> CosmosClient:
        """Return the client, which knows the account's regions; callers at the same time share one opening."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    async def container(self, name: str) -> ContainerProxy:
        """Return a container, whose properties are read again where it was made anew."""
        found = self._containers.get(name)
        if found is None:
            database = (await self.client()).get_database_client(self._clients.address.database)
            found = self._containers[name] = database.get_container_client(name)
        if name in self.attempt.outdated:
            await found.read()
            self.attempt.outdated.discard(name)
        return found

    async def close(self) -> None:
        """Close the client, or stop opening it."""
        opening, self._opening = self._opening, None
        self._containers.clear()
        if opening is not None:
            opening.cancel()
            (client,) = await asyncio.gather(opening, return_exceptions=True)
            if isinstance(client, CosmosClient):
                await client.close()

    async def _open(self) -> CosmosClient:
        client = self._clients.make(self._consistency, self.attempt)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await client.__aenter__()
        except BaseException:
            await client.close()
            raise
        return client

    def _opened(self, opening: asyncio.Task[CosmosClient]) -> None:
        if opening.cancelled() or opening.exception() is not None:  # seen, even where every caller has gone
            self._opening = None
