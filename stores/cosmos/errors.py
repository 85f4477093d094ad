"""Responses that are not successes, as errors of stores.

StoreError
├── ContainerMissing
├── StoreThrottled, PartUnavailable
│   └── CosmosThrottled
└── PartUnavailable
    └── CosmosUnavailable
"""

import re
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import orjson

from hotplate.stores.errors import PartUnavailable, StoreError, StoreFull, StoreThrottled
from hotplate.stores.http1 import RequestFailed, Response

# Labels of the metric of failures.
ErrorKind = Literal[
    "throttled", "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused"
]
# Only an operator can remedy these.
PERMANENT = ("unauthorized", "forbidden", "refused")
# A second attempt may avoid these, immediately or in another region.
TRANSIENT: frozenset[ErrorKind] = frozenset({"connect", "reset", "malformed", "unavailable"})

# Time limit of all operations but lookups, equal to the service's.
DEADLINE_S = 5.0

MAX_MESSAGE_CHARACTERS = 300
# For a 429 without a delay: budgets are by the second.
DEFAULT_RETRY_AFTER_S = 1.0
# Charges are summed up in counters, which an infinity would spoil.
MAX_CHARGE_RU = 1e6
CHARGE_HEADER = b"x-ms-request-charge"

SECRETS = re.compile(r"(?i)(sig(?:=|%3d)|type(?:=|%3d)(?:master|aad))\S*|[A-Za-z0-9+/_-]{40,}[=.A-Za-z0-9+/_-]*")
SESSION_NOT_AVAILABLE = 1002
OWNER_NOT_FOUND = 1003
CONTAINER_BEING_CREATED = 1013
STORAGE_FULL = 1014

# By status and substatus, or by status alone; otherwise `refused`. Source:
# https://learn.microsoft.com/rest/api/cosmos-db/http-status-codes-for-cosmosdb and the troubleshooting pages.
KINDS: dict[tuple[int, int | None], ErrorKind] = {
    (401, None): "unauthorized",
    (403, None): "forbidden",
    (403, 3): "unavailable",  # writes are in another region
    (403, 1008): "unavailable",
    (404, SESSION_NOT_AVAILABLE): "unavailable",
    (404, CONTAINER_BEING_CREATED): "unavailable",
    **{(status, None): "unavailable" for status in (408, 410, 449, 500, 502, 503, 504)},
}
SENTENCES: dict[ErrorKind, str] = {
    "connect": "cannot be reached",
    "reset": "closed the connection without a response",
    "malformed": "sent a malformed response",
    "timeout": "did not answer in time",
    "unauthorized": "does not accept our credentials; check HOTPLATE_COSMOS_KEY, or the identity, and the clock",
    "forbidden": (
        "forbids this; give the identity the role Cosmos DB Built-in Data Contributor (Data Reader, to serve), or add "
        "its address to the firewall; to change containers, add subscription= and resource_group= to the URL"
    ),
    "unavailable": "cannot answer for now",
    "refused": "refused",
}


class ContainerMissing(StoreError):
    """No such container or database."""


class CosmosUnavailable(PartUnavailable):
    """One attempt failed; `permanent` if another would, too."""

    def __init__(self, message: str, kind: ErrorKind, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.kind = kind
        self.permanent = kind in PERMANENT


class CosmosThrottled(StoreThrottled, PartUnavailable):
    """429: the request units of a partition or of metadata are spent for this second."""

    kind: ErrorKind = "throttled"


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response that is not a success."""

    status: int
    substatus: int
    message: str
    """As sent: not redacted."""

    retry_after_s: float | None = None


def error_for(response: ErrorResponse, where: str) -> StoreError:
    """Return the error for a response."""
    status, substatus, message = response.status, response.substatus, first_line(response.message)
    if status == 429:
        after_s = DEFAULT_RETRY_AFTER_S if response.retry_after_s is None else response.retry_after_s
        return CosmosThrottled(f"{where} has no request units left for now; raise its throughput", after_s)
    kind = KINDS.get((status, substatus)) or KINDS.get((status, None)) or "refused"
    if status == 404 and kind == "refused":
        return ContainerMissing(f"{where} has no such database or container: {message}")
    if status == 403 and substatus == STORAGE_FULL:
        return StoreFull(f"{where} has no room left: {message}")
    return CosmosUnavailable(f"{where} {SENTENCES[kind]} ({status}/{substatus}): {message}", kind)


def first_line(message: str) -> str:
    """Return the first line of a message, shortened and without secrets."""
    redacted = SECRETS.sub("…", message.strip().partition("\n")[0].strip())
    return redacted if len(redacted) <= MAX_MESSAGE_CHARACTERS else f"{redacted[:MAX_MESSAGE_CHARACTERS]}…"


def no_response(failure: RequestFailed, where: str) -> CosmosUnavailable:
    """Return the error for an attempt without a response."""
    cause, reason = failure.__cause__, ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = f": its certificate is not trusted ({cause.verify_message}); name its issuer's certificate with ca="
    elif isinstance(cause, OSError) and cause.strerror:
        reason = f": {cause.strerror}"
    sentence = f"{where} {SENTENCES[failure.kind]}{reason}"
    return CosmosUnavailable(sentence, failure.kind, retry_after_s=failure.retry_after_s)


def store_closed() -> CosmosUnavailable:
    """Return the error for calls that wait while the store is closed."""
    return CosmosUnavailable("the store was closed", "reset")


class MalformedResponse(ValueError):
    """A response violates the protocol; the text completes `… sent`."""


def object_in(response: Response) -> dict[str, Any]:
    """Return the JSON object in a response. Raises MalformedResponse."""
    try:
        value = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise MalformedResponse("a body that is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedResponse("JSON that is not an object")
    return value


def item_in(response: Response, name: str) -> dict[str, Any]:
    """Return the item in a response. Raises MalformedResponse."""
    item = object_in(response)
    if item.get("id") != name:
        raise MalformedResponse(f"another item than {name}")
    return item


def error_response(response: Response) -> ErrorResponse:
    """Parse a response that is not a success.

    Raises MalformedResponse for a 404, 409 or 412 without the service's body: a proxy may have sent it.
    """
    try:
        body = object_in(response)
    except MalformedResponse:
        body = {}
    message = body.get("message")
    if "code" not in body or not isinstance(message, str):
        if response.status in (404, 409, 412):
            raise MalformedResponse(f"status {response.status} without a reason")
        message = "no reason given"
    substatus = _integer(response.header(b"x-ms-substatus")) or 0
    if response.status == 404 and substatus == 0 and "Owner resource does not exist" in message:
        substatus = OWNER_NOT_FOUND
    retry_after_ms = _integer(response.header(b"x-ms-retry-after-ms"))
    retry_after_s = None if retry_after_ms is None else retry_after_ms / 1000
    return ErrorResponse(response.status, substatus, message, retry_after_s)


def date_in(response: Response) -> float:
    """Return the date of a response in seconds. Raises MalformedResponse."""
    try:
        return parsedate_to_datetime((response.header(b"date") or b"").decode("latin-1")).timestamp()
    except ValueError:
        raise MalformedResponse("no date") from None


def _integer(value: bytes | None) -> int | None:
    return int(value[:9]) if value is not None and value.isdigit() else None


def charge_in(response: Response) -> float:
    """Return the charge of a response, by default 0. Raises MalformedResponse."""
    try:
        ru = float(response.header(CHARGE_HEADER) or 0.0)
    except ValueError:
        ru = -1.0
    if not 0.0 <= ru <= MAX_CHARGE_RU:
        raise MalformedResponse("a charge that is not a number of request units")
    return ru
