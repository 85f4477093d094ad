"""Responses that are not successes, as errors of stores.

StoreError
├── ContainerMissing
├── StoreThrottled
│   └── ContainerPending
├── StoreThrottled, PartUnavailable
│   └── CosmosThrottled
└── PartUnavailable
    └── CosmosUnavailable
        └── CosmosDenied, AccessDenied
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from hotplate.stores.errors import (
    AccessDenied,
    PartUnavailable,
    StoreError,
    StoreFull,
    StoreThrottled,
)
from hotplate.stores.http1 import RequestFailed, Response
from hotplate.stores.store import Observer

# Labels of the metric of failures.
ErrorKind = Literal[
    "throttled", "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused"
]
# The service does not accept our credentials, or their rights.
DENIED = ("unauthorized", "forbidden")
# Only an operator can remedy these.
PERMANENT = (*DENIED, "refused")
# A second attempt may avoid these, immediately or in another region.
TRANSIENT: frozenset[ErrorKind] = frozenset({"connect", "reset", "malformed", "unavailable"})

# Time limit of all operations but lookups, equal to the service's.
DEADLINE_S = 5.0

MAX_MESSAGE_CHARACTERS = 300
# For a 429 without a delay: budgets are by the second.
DEFAULT_RETRY_AFTER_S = 1.0
# Longer delays are cut, because time limits do not end a pause.
MAX_RETRY_AFTER_S = 30.0
# Pause before a new container is tried again.
PENDING_PAUSE_S = 0.25
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
# Responses to requests that were not processed: another region takes writes, or 449 (Retry With).
UNPROCESSED = {(403, 3), (403, 1008), (449, None)}
SENTENCES: dict[ErrorKind, str] = {
    "connect": "cannot be reached",
    "reset": "closed the connection without a response",
    "malformed": "sent a malformed response",
    "timeout": "did not answer in time",
    "unauthorized": "does not accept our credentials; check HOTPLATE_COSMOS_KEY, or the identity, and the clock",
    "forbidden": (
        "forbids this; give the identity the role Cosmos DB Built-in Data Contributor (Data Reader, to serve), or add "
        "its address to the firewall, and check the clock; to change containers, add subscription= and resource_group= "
        "to the URL"
    ),
    "unavailable": "cannot answer for now",
    "refused": "refused",
}
# Part of the message of a 403 for a date that is too far from the service's clock.
WRONG_TIME = "not valid at the current time"
CORRECT_CLOCK = "does not accept the time that this machine's clock shows; correct the clock"


class ContainerMissing(StoreError):
    """No such container or database."""


class ContainerPending(StoreThrottled):
    """A replica does not know a new container yet; as after a 429, the request may be sent again after a pause."""

    def __init__(self, message: str) -> None:
        super().__init__(message, PENDING_PAUSE_S)


class CosmosUnavailable(PartUnavailable):
    """One attempt failed, for a reason of the given kind; `permanent` if another would fail, too.

    If `unprocessed`, the service has not made the write; otherwise, it may have.
    """

    def __init__(self, message: str, kind: ErrorKind, *, unprocessed: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.permanent = kind in PERMANENT
        self.unprocessed = unprocessed


class CosmosDenied(AccessDenied, CosmosUnavailable):
    """One attempt failed, for a reason in DENIED."""


class CosmosThrottled(StoreThrottled, PartUnavailable):
    """429: the request units of this second are spent."""

    kind: ErrorKind = "throttled"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is not a success.

    The substatus, 0 if there is none, tells reasons of a status apart. The message may hold secrets.
    """

    status: int
    substatus: int
    message: str
    retry_after_s: float = DEFAULT_RETRY_AFTER_S


def error_for(refusal: Refusal, where: str) -> StoreError:
    """Return the StoreError for a response that is not a success; *where* names the account's database.

    A 429 is CosmosThrottled, a missing container or database ContainerMissing, a full one StoreFull. All others are
    CosmosUnavailable, of the kind that KINDS has for the status and the substatus; CosmosDenied for those in DENIED.
    """
    status = refusal.status
    substatus = refusal.substatus
    message = first_line(refusal.message)

    if status == 429:
        sentence = f"{where} has no request units left for now; raise its throughput"
        return CosmosThrottled(sentence, min(refusal.retry_after_s, MAX_RETRY_AFTER_S))

    kind = KINDS.get((status, substatus)) or KINDS.get((status, None)) or "refused"
    if status == 404 and kind == "refused":
        return ContainerMissing(f"{where} has no such database or container: {message}")
    if status == 403 and substatus == STORAGE_FULL:
        return StoreFull(f"{where} has no room left: {message}")
    unprocessed = (status, substatus) in UNPROCESSED or (status, None) in UNPROCESSED
    reason = CORRECT_CLOCK if status == 403 and WRONG_TIME in message else SENTENCES[kind]
    sentence = f"{where} {reason} ({status}/{substatus}): {message}"
    return failed(sentence, kind, unprocessed=unprocessed)


def failed(sentence: str, kind: ErrorKind, *, unprocessed: bool = False) -> CosmosUnavailable:
    """Return the error for an attempt that failed for a reason of the given kind."""
    error = CosmosDenied if kind in DENIED else CosmosUnavailable
    return error(sentence, kind, unprocessed=unprocessed)


def first_line(message: str) -> str:
    """Return the first line of a message, shortened and without secrets."""
    redacted = SECRETS.sub("…", message.strip().partition("\n")[0].strip())
    return redacted if len(redacted) <= MAX_MESSAGE_CHARACTERS else f"{redacted[:MAX_MESSAGE_CHARACTERS]}…"


def no_response(failure: RequestFailed, where: str) -> CosmosUnavailable:
    """Return the error for an attempt without a response."""
    cause = failure.__cause__
    reason = f": {cause.strerror}" if isinstance(cause, OSError) and cause.strerror else ""
    sentence = f"{where} {SENTENCES[failure.kind]}{reason}"
    return CosmosUnavailable(sentence, failure.kind, unprocessed=failure.kind == "connect")


def count(error: StoreError, observer: Observer | None) -> StoreError:
    """Count a failed attempt by the kind of its error, and return the error."""
    if observer is not None and isinstance(error, CosmosUnavailable | CosmosThrottled):
        observer.failed(error.kind)
    return error


def object_in(response: Response) -> dict[str, Any]:
    """Return the JSON object in a response. Raises ValueError."""
    value = orjson.loads(response.body)
    if not isinstance(value, dict):
        raise ValueError("JSON that is not an object")  # noqa: TRY004 -- malformed, like invalid JSON
    return value


def item_in(response: Response, name: str) -> dict[str, Any]:
    """Return the item in a response; ValueError unless its id is *name*."""
    item = object_in(response)
    if item.get("id") != name:
        raise ValueError(f"another item than {name}")
    return item


def refusal_in(response: Response) -> Refusal:
    """Parse a response that is not a success.

    Statuses 404, 409 and 412 mean that an item is absent, exists or has changed, so that they decide what a caller does
    next. Cosmos DB sends a JSON body with them. Raises ValueError without one, because a proxy may have sent the
    response.
    """
    try:
        body = object_in(response)
        message = str(body["message"]) if body["code"] else ""
    except (ValueError, KeyError):
        if response.status in (404, 409, 412):
            raise ValueError(f"status {response.status} without a reason") from None
        message = "no reason given"

    # The substatus tells reasons of a status apart; 0 if there is none.
    substatus = int(_digits(response, b"x-ms-substatus") or 0)
    if response.status == 404 and substatus == 0 and "Owner resource does not exist" in message:
        substatus = OWNER_NOT_FOUND  # the container is missing, not the item

    wait_ms = _digits(response, b"x-ms-retry-after-ms")
    return Refusal(response.status, substatus, message, int(wait_ms) / 1000 if wait_ms else DEFAULT_RETRY_AFTER_S)


def _digits(response: Response, name: bytes) -> bytes:
    """Return a header that is a number, at most nine digits of it; empty for anything else."""
    value = response.header(name) or b""
    return value[:9] if value.isdigit() else b""


def charge_in(response: Response) -> float:
    """Return the charge of a response, by default 0. Raises ValueError."""
    ru = float(response.header(CHARGE_HEADER) or 0.0)
    if not 0.0 <= ru <= MAX_CHARGE_RU:
        raise ValueError(f"a charge of {ru} request units")
    return ru
