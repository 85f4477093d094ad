"""Containers through Azure Resource Manager: the way for Entra ID, whose tokens the account lets do nothing but items.

https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac says so. azure-mgmt-cosmosdb does the asking; what it is
asked for may take half a minute where the account itself takes a second.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from azure.core import AzureClouds
from azure.core.exceptions import AzureError, HttpResponseError
from azure.mgmt.core.tools import get_arm_endpoints
from azure.mgmt.cosmosdb.aio import CosmosDBManagementClient
from azure.mgmt.cosmosdb.aio.operations import SqlResourcesOperations
from azure.mgmt.cosmosdb.models import (
    SqlContainerCreateUpdateParameters,
    SqlDatabaseCreateUpdateParameters,
    ThroughputSettingsUpdateParameters,
)

from stores.cosmos.arm_errors import SERVERLESS, is_missing, translated
from stores.cosmos.driver import DEFINITION, Offer
from stores.cosmos.errors import ContainerMissing, CosmosUnavailable
from stores.cosmos.throughput import Throughput, minimum_ru
from stores.cosmos.url import Address, Managed

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential

T = TypeVar("T")

ANSWER_S = 30.0
"""When one answer is given up."""

CHANGE_S = 300.0
"""When the end of a change is no longer waited for; making a container takes well under a minute as a rule."""

ACCEPT_S = 60.0
"""How long a change of throughput is watched for a refusal; it may go on for hours, which `offer` tells."""

POLL_S = 1.0
"""How often a change is asked after, where ARM does not say."""

CLOUDS = {
    ".documents.azure.cn": AzureClouds.AZURE_CHINA_CLOUD,
    ".documents.azure.us": AzureClouds.AZURE_US_GOVERNMENT,
}
"""By the ends of accounts' hosts; all others are of the public cloud."""


class ArmContainers:
    """See `Containers`; lives as long as its store, on one event loop, and opens its client at the first call."""

    def __init__(self, address: Address, managed: Managed, credential: "AsyncTokenCredential | None" = None) -> None:
        """Take the database and where it is managed; *credential* is in the place of what azure-identity finds."""
        self._address = address
        self._managed = managed
        self._credential = credential
        self._opened: CosmosDBManagementClient | None = None
        self._place = managed.resource_group, managed.account, address.database

    async def create_database(self) -> bool:
        """See `Containers`."""

        async def look(sql: SqlResourcesOperations) -> object:
            return await sql.get_sql_database(*self._place)

        async def make(sql: SqlResourcesOperations) -> None:
            told: dict[str, Any] = {"resource": {"id": self._address.database}, "options": {}}
            made = SqlDatabaseCreateUpdateParameters({"properties": told})
            await (await sql.begin_create_update_sql_database(*self._place, made)).result()

        return await self._made(look, make)

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        """See `Containers`."""

        async def look(sql: SqlResourcesOperations) -> object:
            return await sql.get_sql_container(*self._place, container)

        async def make(sql: SqlResourcesOperations) -> None:
            options = {} if throughput is None else _asked(throughput)
            told: dict[str, Any] = {"resource": {"id": container, **DEFINITION}, "options": options}
            made = SqlContainerCreateUpdateParameters({"properties": told})
            await (await sql.begin_create_update_sql_container(*self._place, container, made)).result()

        return await self._made(look, make)

    async def _made(
        self,
        look: Callable[[SqlResourcesOperations], Awaitable[object]],
        make: Callable[[SqlResourcesOperations], Awaitable[None]],
    ) -> bool:
        """Look before making: what ARM is asked to make is changed where it is there."""
        try:
            await self._ask(look)
        except ContainerMissing:
            await self._ask(make, CHANGE_S)
            return True
        return False

    async def delete_container(self, container: str) -> None:
        """See `Containers`."""

        async def call(sql: SqlResourcesOperations) -> None:
            await (await sql.begin_delete_sql_container(*self._place, container)).result()

        try:
            await self._ask(call, CHANGE_S)
        except ContainerMissing:
            return

    async def offer(self, container: str) -> Offer | None:
        """See `Containers`."""

        async def call(sql: SqlResourcesOperations) -> Offer | None:
            try:
                found = await sql.get_sql_container_throughput(*self._place, container)
            except HttpResponseError as error:
                if SERVERLESS in str(error.message) and not is_missing(error):
                    return None
                raise
            told = found.properties.resource if found.properties is not None else None
            if told is None:
                raise CosmosUnavailable(f"Azure Resource Manager did not say what {container} may spend", "malformed")
            scaling = told.autoscale_settings
            ru = told.throughput if scaling is None else scaling.max_throughput
            throughput = Throughput(int(ru or 0), autoscale=scaling is not None)
            least = int(told.minimum_throughput or minimum_ru(throughput.ru, 0, autoscale=throughput.autoscale))
            return Offer(throughput, least, str(told.offer_replace_pending).lower() == "true")

        return await self._ask(call)

    async def scale(self, container: str, throughput: Throughput) -> None:
        """See `Containers`."""

        async def call(sql: SqlResourcesOperations) -> None:
            asked = ThroughputSettingsUpdateParameters({"properties": {"resource": _asked(throughput)}})
            change = await sql.begin_update_sql_container_throughput(*self._place, container, asked)
            try:
                async with asyncio.timeout(ACCEPT_S):
                    await change.result()
            except TimeoutError:
                return

        await self._ask(call, ANSWER_S + ACCEPT_S)

    async def close(self) -> None:
        """See `Containers`."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()
        credential, self._credential = self._credential, None
        if credential is not None:
            await credential.close()

    async def _ask(self, call: Callable[[SqlResourcesOperations], Awaitable[T]], timeout_s: float = ANSWER_S) -> T:
        """Make one call in time; raises StoreError."""
        try:
            async with asyncio.timeout(timeout_s):
                return await call(self._client().sql_resources)
        except TimeoutError as late:
            where = f"{self._address.shown}: Azure Resource Manager"
            raise CosmosUnavailable(f"{where} was not done after {timeout_s:.0f} s", "timeout") from late
        except AzureError as foreign:
            raise translated(foreign, self._address, self._managed) from foreign

    def _client(self) -> CosmosDBManagementClient:
        """Return the client: without retries of its own, which callers do, and with the deadlines above."""
        if self._opened is None:
            if self._credential is None:
                from azure.identity.aio import DefaultAzureCredential  # noqa: PLC0415 -- none is looked for if given

                self._credential = DefaultAzureCredential()
            arm = get_arm_endpoints(_cloud_of(self._address))
            self._opened = CosmosDBManagementClient(
                self._credential,
                self._managed.subscription,
                self._managed.emulator or arm["resource_manager"],
                credential_scopes=arm["credential_scopes"],
                polling_interval=POLL_S,
                retry_total=0,
                connection_verify=self._address.ca if self._managed.emulator and self._address.ca else True,
            )
        return self._opened


def _cloud_of(address: Address) -> AzureClouds:
    host = urlsplit(address.endpoint).hostname or ""
    return next((cloud for end, cloud in CLOUDS.items() if host.endswith(end)), AzureClouds.AZURE_PUBLIC_CLOUD)


def _asked(throughput: Throughput) -> dict[str, object]:
    """Return it as ARM takes it, both at birth and later."""
    if throughput.autoscale:
        return {"autoscaleSettings": {"maxThroughput": throughput.ru}}
    return {"throughput": throughput.ru}
