"""Containers through Azure Resource Manager (ARM): for Entra ID, whose tokens the account lets do nothing but items.

https://learn.microsoft.com/azure/cosmos-db/how-to-setup-rbac says so. azure-mgmt-cosmosdb sends the requests; what
takes the account itself a second may take half a minute here.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from azure.core import AzureClouds
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)
from azure.mgmt.core.tools import get_arm_endpoints
from azure.mgmt.cosmosdb.aio import CosmosDBManagementClient
from azure.mgmt.cosmosdb.aio.operations import SqlResourcesOperations
from azure.mgmt.cosmosdb.models import (
    SqlContainerCreateUpdateParameters,
    SqlDatabaseCreateUpdateParameters,
    ThroughputSettingsUpdateParameters,
)

from hotplate.stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable, ErrorKind, first_line
from hotplate.stores.cosmos.requests import default_credential
from hotplate.stores.cosmos.rows import DEFINITION
from hotplate.stores.cosmos.url import Address, ArmAccount, Offer, Throughput, minimum_ru
from hotplate.stores.errors import StoreError, StoreMisused

if TYPE_CHECKING:
    from azure.core.credentials_async import AsyncTokenCredential
    from azure.core.rest import AsyncHttpResponse

T = TypeVar("T")

# When one response is given up.
RESPONSE_S = 30.0

# When the end of a change is no longer waited for; making a container takes well under a minute as a rule.
CHANGE_S = 300.0

# How long a change of throughput is watched for a refusal; it may go on for hours, which `offer` shows.
ACCEPT_S = 60.0

# How often a change is polled, where ARM does not say.
POLL_S = 1.0

# By the ends of accounts' hosts; all others are of the public cloud.
CLOUDS = {
    ".documents.azure.cn": AzureClouds.AZURE_CHINA_CLOUD,
    ".documents.azure.us": AzureClouds.AZURE_US_GOVERNMENT,
}


class ArmContainers:
    """See `Containers`; lives as long as its store, on one event loop, and opens its client at the first call."""

    def __init__(self, address: Address, account: ArmAccount, credential: "AsyncTokenCredential | None" = None) -> None:
        """Take the database and the account that has it; *credential* is in the place of what azure-identity finds."""
        self._address = address
        self._account = account
        self._credential = credential
        self._opened: CosmosDBManagementClient | None = None
        self._path = account.resource_group, account.account, address.database

    async def create_database(self) -> bool:
        async def read(sql: SqlResourcesOperations) -> object:
            return await sql.get_sql_database(*self._path)

        async def create(sql: SqlResourcesOperations) -> None:
            body: dict[str, Any] = {"resource": {"id": self._address.database}, "options": {}}
            made = SqlDatabaseCreateUpdateParameters({"properties": body})
            await (await sql.begin_create_update_sql_database(*self._path, made)).result()

        return await self._create_unless_there(read, create)

    async def create_container(self, container: str, throughput: Throughput | None) -> bool:
        async def read(sql: SqlResourcesOperations) -> object:
            return await sql.get_sql_container(*self._path, container)

        async def create(sql: SqlResourcesOperations) -> None:
            options = {} if throughput is None else _settings(throughput)
            body: dict[str, Any] = {"resource": {"id": container, **DEFINITION}, "options": options}
            made = SqlContainerCreateUpdateParameters({"properties": body})
            await (await sql.begin_create_update_sql_container(*self._path, container, made)).result()

        return await self._create_unless_there(read, create)

    async def _create_unless_there(
        self,
        read: Callable[[SqlResourcesOperations], Awaitable[object]],
        create: Callable[[SqlResourcesOperations], Awaitable[None]],
    ) -> bool:
        """Read before creating: ARM changes what is there already."""
        try:
            await self._call(read)
        except ContainerMissing:
            await self._call(create, CHANGE_S)
            return True
        return False

    async def list_containers(self) -> list[str]:
        async def call(sql: SqlResourcesOperations) -> list[str]:
            return [found.name or "" async for found in sql.list_sql_containers(*self._path)]

        return await self._call(call)

    async def delete_container(self, container: str) -> None:
        async def call(sql: SqlResourcesOperations) -> None:
            await (await sql.begin_delete_sql_container(*self._path, container)).result()

        try:
            await self._call(call, CHANGE_S)
        except ContainerMissing:
            return

    async def offer(self, container: str) -> Offer | None:
        async def call(sql: SqlResourcesOperations) -> Offer | None:
            try:
                found = await sql.get_sql_container_throughput(*self._path, container)
            except HttpResponseError as error:
                if SERVERLESS in str(error.message) and not is_missing(error):
                    return None
                raise
            body = found.properties.resource if found.properties is not None else None
            if body is None:
                raise CosmosUnavailable(f"Azure Resource Manager did not say what {container} may spend", "malformed")
            scaling = body.autoscale_settings
            ru = body.throughput if scaling is None else scaling.max_throughput
            throughput = Throughput(int(ru or 0), autoscale=scaling is not None)
            least = int(body.minimum_throughput or minimum_ru(throughput.ru, 0, autoscale=throughput.autoscale))
            return Offer(throughput, least, str(body.offer_replace_pending).lower() == "true")

        return await self._call(call)

    async def scale(self, container: str, throughput: Throughput) -> None:
        async def call(sql: SqlResourcesOperations) -> None:
            update = ThroughputSettingsUpdateParameters({"properties": {"resource": _settings(throughput)}})
            change = await sql.begin_update_sql_container_throughput(*self._path, container, update)
            try:
                async with asyncio.timeout(ACCEPT_S):
                    await change.result()
            except TimeoutError:
                return

        await self._call(call, RESPONSE_S + ACCEPT_S)

    async def close(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.close()
        credential, self._credential = self._credential, None
        if credential is not None:
            await credential.close()

    async def _call(self, call: Callable[[SqlResourcesOperations], Awaitable[T]], timeout_s: float = RESPONSE_S) -> T:
        """Make one call in time; raises StoreError."""
        try:
            async with asyncio.timeout(timeout_s):
                return await call(self._client().sql_resources)
        except TimeoutError as late:
            where = f"{self._address.shown}: Azure Resource Manager"
            raise CosmosUnavailable(f"{where} was not done after {timeout_s:.0f} s", "timeout") from late
        except AzureError as foreign:
            raise error_for(foreign, self._address, self._account) from foreign

    def _client(self) -> CosmosDBManagementClient:
        """Return the client: without retries of its own, which callers do, and with the deadlines above."""
        if self._opened is None:
            if self._credential is None:
                self._credential = default_credential()
            host = urlsplit(self._address.endpoint).hostname or ""
            cloud = next((cloud for end, cloud in CLOUDS.items() if host.endswith(end)), AzureClouds.AZURE_PUBLIC_CLOUD)
            arm = get_arm_endpoints(cloud)
            self._opened = CosmosDBManagementClient(
                self._credential,
                self._account.subscription,
                self._account.emulator or arm["resource_manager"],
                credential_scopes=arm["credential_scopes"],
                polling_interval=POLL_S,
                retry_total=0,
                connection_verify=self._address.ca if self._account.emulator and self._address.ca else True,
            )
        return self._opened


def _settings(throughput: Throughput) -> dict[str, object]:
    """Return it as ARM takes it, for a new container and for an old one."""
    if throughput.autoscale:
        return {"autoscaleSettings": {"maxThroughput": throughput.ru}}
    return {"throughput": throughput.ru}


ROLE = "Cosmos DB Operator"
# What the refusal to read or change the throughput of a serverless account has in its sentence, whatever its code.
SERVERLESS = "serverless"

# Codes of a 404 (and one 400) that speak of what is above the database.
NO_ACCOUNT = (
    "SubscriptionNotFound",
    "InvalidSubscriptionId",
    "ResourceGroupNotFound",
    "ResourceNotFound",
    "ParentResourceNotFound",
)

# Another change is under way (409, 412), or ARM cannot answer for now.
TEMPORARY_STATUSES = (408, 409, 412, 500, 502, 503, 504)

# When a 429 does not say for how long.
DEFAULT_RETRY_AFTER_S = 5.0

ACTION = re.compile(r"perform action '([A-Za-z./]{1,200})'")


def code_of(error: HttpResponseError) -> str:
    """Return the code in the body of a refusal, or of a change that failed; empty if there is none."""
    return str(getattr(error.error, "code", None) or "")


def is_missing(error: HttpResponseError) -> bool:
    """Return whether the database or container does not exist; an account that does not is another matter."""
    code = code_of(error)
    return code == "NotFound" or (error.status_code == 404 and code not in NO_ACCOUNT)


def error_for(error: AzureError, address: Address, account: ArmAccount) -> StoreError:
    """Return our error for what went wrong with one call."""
    where = f"{address.shown}: Azure Resource Manager"
    message = first_line(str(error.message))
    if isinstance(error, HttpResponseError):
        if is_missing(error):
            return ContainerMissing(f"{where} has no such database or container: {message}")
        if code_of(error) in NO_ACCOUNT:
            return StoreMisused(
                f"{where} finds no account {account.account} in the resource group {account.resource_group} of the "
                f"subscription {account.subscription}, or this identity may not see it; set subscription= and "
                f"resource_group= right, and give the identity the role {ROLE}"
            )
        return _refused(error, where, message)
    if isinstance(error, ServiceRequestError):
        return CosmosUnavailable(f"{where} cannot be reached ({message})", "connect")
    kind: ErrorKind = "timeout" if isinstance(error, ServiceResponseTimeoutError) else "reset"
    return CosmosUnavailable(f"{where} did not answer ({message})", kind)


def _refused(error: HttpResponseError, where: str, message: str) -> StoreError:
    status, code = error.status_code, code_of(error)
    if isinstance(error, ClientAuthenticationError) or status == 401:
        why = "gets no token from Entra ID that it takes; sign in, or give this machine an identity"
        return CosmosUnavailable(f"{where} {why} ({message})", "unauthorized")
    if status == 403:
        action = ACTION.search(str(error.message))
        why = f"it may not do {action[1]}" if action else message
        return CosmosUnavailable(
            f"{where} refuses this identity; give it the role {ROLE} on the account ({why})", "forbidden"
        )
    if status == 429 or code == "TooManyRequests":
        return CosmosThrottled(f"{where} takes no more requests for now", _wait_s(error))
    kind: ErrorKind = "unavailable" if status in TEMPORARY_STATUSES else "refused"
    return CosmosUnavailable(f"{where} refused ({status} {code}): {message}", kind)


def _wait_s(error: HttpResponseError) -> float:
    response = cast("AsyncHttpResponse | None", error.response)  # typed as what old and new answers have in common
    body = "" if response is None else response.headers.get("retry-after", "")
    return float(body) if body.isdigit() else DEFAULT_RETRY_AFTER_S
