"""What Azure Resource Manager says, as one of our errors; the one place where its statuses and codes end."""

import re
from typing import TYPE_CHECKING, cast

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseTimeoutError,
)

from stores.cosmos.errors import ContainerMissing, CosmosThrottled, CosmosUnavailable, Kind, shown
from stores.cosmos.url import Address, Managed
from stores.errors import StoreError, StoreMisused

if TYPE_CHECKING:
    from azure.core.rest import AsyncHttpResponse

ROLE = "Cosmos DB Operator"
SERVERLESS = "serverless"
"""What the refusal to tell or change the throughput of a serverless account has in its sentence, whatever its code."""

NO_ACCOUNT = (
    "SubscriptionNotFound",
    "InvalidSubscriptionId",
    "ResourceGroupNotFound",
    "ResourceNotFound",
    "ParentResourceNotFound",
)
"""Codes of a 404 (and one 400) that speak of what is above the database."""

PASSING = (408, 409, 412, 500, 502, 503, 504)
"""Another change is under way (409, 412), or ARM cannot answer for now."""

RETRY_S = 5.0
"""When a 429 does not say for how long."""

ACTION = re.compile(r"perform action '([A-Za-z./]{1,200})'")


def code_of(error: HttpResponseError) -> str:
    """Return the code in the body of a refusal, or of a change that failed; empty where there is none."""
    return str(getattr(error.error, "code", None) or "")


def is_missing(error: HttpResponseError) -> bool:
    """Tell whether the database or container is not there; an account that is not there is another matter."""
    code = code_of(error)
    return code == "NotFound" or (error.status_code == 404 and code not in NO_ACCOUNT)


def translated(error: AzureError, address: Address, managed: Managed) -> StoreError:
    """Return our error for what went wrong with one call."""
    where = f"{address.shown}: Azure Resource Manager"
    said = shown(str(error.message))
    if isinstance(error, HttpResponseError):
        if is_missing(error):
            return ContainerMissing(f"{where} has no such database or container: {said}")
        if code_of(error) in NO_ACCOUNT:
            return StoreMisused(
                f"{where} finds no account {managed.account} in the resource group {managed.resource_group} of the "
                f"subscription {managed.subscription}, or this identity may not see it; set subscription= and "
                f"resource_group= right, and give the identity the role {ROLE}"
            )
        return _refused(error, where, said)
    if isinstance(error, ServiceRequestError):
        return CosmosUnavailable(f"{where} cannot be reached ({said})", "connect")
    kind: Kind = "timeout" if isinstance(error, ServiceResponseTimeoutError) else "reset"
    return CosmosUnavailable(f"{where} did not answer ({said})", kind)


def _refused(error: HttpResponseError, where: str, said: str) -> StoreError:
    status, code = error.status_code, code_of(error)
    if isinstance(error, ClientAuthenticationError) or status == 401:
        why = "gets no token from Entra ID that it takes; sign in, or give this machine an identity"
        return CosmosUnavailable(f"{where} {why} ({said})", "unauthorized")
    if status == 403:
        action = ACTION.search(str(error.message))
        why = f"it may not do {action[1]}" if action else said
        return CosmosUnavailable(
            f"{where} refuses this identity; give it the role {ROLE} on the account ({why})", "forbidden"
        )
    if status == 429 or code == "TooManyRequests":
        return CosmosThrottled(f"{where} takes no more requests for now", _wait_s(error))
    kind: Kind = "unavailable" if status in PASSING else "refused"
    return CosmosUnavailable(f"{where} refused ({status} {code}): {said}", kind)


def _wait_s(error: HttpResponseError) -> float:
    response = cast("AsyncHttpResponse | None", error.response)  # typed as what old and new answers have in common
    told = "" if response is None else response.headers.get("retry-after", "")
    return float(told) if told.isdigit() else RETRY_S
