"""Containers through Azure Resource Manager (ARM), because accounts let tokens of Entra ID access items only.

See https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac. A change takes up to half a minute.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from azure.core import AzureClouds, exceptions
from azure.core.polling import AsyncLROPoller
from azure.mgmt.cosmosdb import models
from azure.mgmt.cosmosdb.aio import CosmosDBManagementClient
from azure.mgmt.cosmosdb.aio.operations import SqlResourcesOperations

from hotplate.stores.concurrency import Lifetime
from hotplate.stores.cosmos import errors
from hotplate.stores.cosmos.azure_errors import code_of, translated_errors
from hotplate.stores.cosmos.errors import ContainerMissing, CosmosUnavailable
from hotplate.stores.cosmos.items import DEFINITION
from hotplate.stores.cosmos.requests import default_credential
from hotplate.stores.cosmos.url import Address, ArmAccount, Offer, Throughput
from hotplate.stores.errors import StoreMisused

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

T = TypeVar("T")
Sql = SqlResourcesOperations

# Time limits of a call, a change, and the acceptance of a change of throughput.
RESPONSE_S = 30.0
CHANGE_S = 300.0
ACCEPT_S = 60.0
# Polling interval of a change, unless ARM sends another.
POLL_S = 1.0
# By suffix of the account's host; default: the public cloud.
CLOUDS = {
    ".documents.azure.cn": AzureClouds.AZURE_CHINA_CLOUD,
    ".documents.azure.us": AzureClouds.AZURE_US_GOVERNMENT,
}

ROLE = "Cosmos DB Operator"
# In the message about a serverless account's throughput; codes vary.
SERVERLESS = "serverless"
# Code of a missing database or container; other codes of a 404 are about the account or its group.
MISSING = "NotFound"
NO_SUBSCRIPTION = "InvalidSubscriptionId"
# Where the service has another reason, or remedy, than an account.
SENTENCES = errors.SENTENCES | {
    "throttled": "takes no more requests for now",
    "unauthorized": "gets no token that it takes; sign in",
    "forbidden": f"refuses this identity; give it the role {ROLE}",
}


class ArmContainers:
    """`Containers` through ARM; for one event loop."""

    def __init__(self, address: Address, account: ArmAccount, credential: "AsyncTokenCredential | None" = None) -> None:
        """*credential* defaults to azure-identity's."""
        self._address = address
        self._account = account
        self._credential = credential
        self._lifetime = Lifetime(address.shown)
        self._opened: CosmosDBManagementClient | None = None
        self._path = (account.resource_group, account.account, address.database)
        """The first arguments of each call."""

    async def create_database(self) -> None:
        database = models.SqlDatabaseCreateUpdateParameters(_properties({"id": self._address.database}))
        await self._change(lambda sql: sql.begin_create_update_sql_database(*self._path, database))

    async def create_container(self, container: str, throughput: Throughput | None) -> None:
        definition = _properties({"id": container, **DEFINITION}, throughput)
        parameters = models.SqlContainerCreateUpdateParameters(definition)

        # ARM's operation would change an existing container, so it is looked for first.
        try:
            await self._call(lambda sql: sql.get_sql_container(*self._path, container))
        except ContainerMissing:
            await self._change(lambda sql: sql.begin_create_update_sql_container(*self._path, container, parameters))

    async def list_containers(self) -> list[str]:
        async def list_names(sql: Sql) -> list[str]:
            return [container.name or "" async for container in sql.list_sql_containers(*self._path)]

        return await self._call(list_names)

    async def delete_container(self, container: str) -> None:
        with suppress(ContainerMissing):
            await self._change(lambda sql: sql.begin_delete_sql_container(*self._path, container))

    async def offer(self, container: str) -> Offer | None:
        """Return the throughput of a container; None if serverless, which ARM says by an error."""

        async def read_offer(sql: Sql) -> Offer | None:
            try:
                throughput = await sql.get_sql_container_throughput(*self._path, container)
            except exceptions.HttpResponseError as error:
                if SERVERLESS in str(error.message) and code_of(error) != MISSING:
                    return None
                raise
            if throughput.properties is None or throughput.properties.resource is None:
                raise CosmosUnavailable(f"Azure Resource Manager returned no throughput of {container}", "malformed")
            return _offer_in(throughput.properties.resource)

        return await self._call(read_offer)

    async def scale(self, container: str, throughput: Throughput) -> None:
        """Start a change of throughput, and wait up to ACCEPT_S for its end, since ARM may refuse it meanwhile.

        A change that takes longer continues in the service: `offer` shows whether it is pending.
        """

        async def change_throughput(sql: Sql) -> None:
            update = models.ThroughputSettingsUpdateParameters({"properties": {"resource": _settings(throughput)}})
            change = await sql.begin_update_sql_container_throughput(*self._path, container, update)
            with suppress(TimeoutError):
                async with asyncio.timeout(ACCEPT_S):
                    await change.result()

        await self._call(change_throughput, RESPONSE_S + ACCEPT_S)

    async def close(self) -> None:
        self._lifetime.end()
        await self._lifetime.wait_unused()
        for opened in (self._opened, self._credential):
            if opened is not None:
                await opened.close()
        self._opened = self._credential = None

    async def _change(self, begin: Callable[[Sql], Awaitable[AsyncLROPoller[Any]]]) -> None:
        """Begin a change, and wait until it is done; raises StoreError."""

        async def change(sql: Sql) -> None:
            await (await begin(sql)).result()

        await self._call(change, CHANGE_S)

    async def _call(self, call: Callable[[Sql], Awaitable[T]], timeout_s: float = RESPONSE_S) -> T:
        """Return the result of *call*, a function of the SDK's operations on databases and containers.

        Errors become StoreErrors; a call that takes longer than *timeout_s* is CosmosUnavailable, and a missing account
        StoreMisused.
        """
        where = f"{self._address.shown}: Azure Resource Manager"
        async with self._lifetime.in_use():
            with translated_errors(where, SENTENCES):
                try:
                    async with asyncio.timeout(timeout_s):
                        return await call(self._client().sql_resources)
                except exceptions.HttpResponseError as error:
                    if _is_without_account(error):
                        raise _no_account(where, self._account) from error
                    raise

    def _client(self) -> CosmosDBManagementClient:
        """Return the SDK's client, which is opened by the first call."""
        if self._opened is None:
            if self._credential is None:
                self._credential = default_credential()
            host = urlsplit(self._address.endpoint).hostname or ""
            self._opened = CosmosDBManagementClient(
                self._credential,
                self._account.subscription,
                self._account.emulator,
                cloud_setting=next((cloud for suffix, cloud in CLOUDS.items() if host.endswith(suffix)), None),
                polling_interval=POLL_S,
                retry_total=0,  # callers retry
                connection_verify=self._address.ca if self._account.emulator and self._address.ca else True,
            )
        return self._opened


def _offer_in(settings: models.ThroughputSettingsGetPropertiesResource) -> Offer:
    """Return the throughput of a container in ARM's response."""
    autoscale = settings.autoscale_settings
    ru = settings.throughput if autoscale is None else autoscale.max_throughput
    return Offer.of(
        ru or 0,
        autoscale=autoscale is not None,
        minimum=settings.minimum_throughput,
        pending=settings.offer_replace_pending,
    )


def _properties(resource: dict[str, Any], throughput: Throughput | None = None) -> dict[str, Any]:
    """Return the body that creates a *resource*."""
    return {"properties": {"resource": resource, "options": {} if throughput is None else _settings(throughput)}}


def _settings(throughput: Throughput) -> dict[str, object]:
    if throughput.autoscale:
        return {"autoscaleSettings": {"maxThroughput": throughput.ru}}
    return {"throughput": throughput.ru}


def _no_account(where: str, account: ArmAccount) -> StoreMisused:
    return StoreMisused(
        f"{where} finds no account {account.account} in the resource group {account.resource_group} of the "
        f"subscription {account.subscription}; set subscription= and resource_group= right, and give the identity "
        f"the role {ROLE}"
    )


def _is_without_account(error: exceptions.HttpResponseError) -> bool:
    code = code_of(error)
    return code == NO_SUBSCRIPTION or (error.status_code == 404 and code != MISSING)
