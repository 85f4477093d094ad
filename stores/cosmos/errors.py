"""Responses that are not successes, as errors of stores.

StoreError
├── ReleaseNotFound
│   └── ContainerMissing
├── StoreThrottled, PartUnavailable
│   └── CosmosThrottled
└── PartUnavailable
    └── CosmosUnavailable
        ├── CosmosDenied, AccessDenied
        └── CosmosNotSent, NotSent
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from hotplate.base.http1 import RequestFailed, Response
from hotplate.stores.errors import (
    AccessDenied,
    NotSent,
    PartUnavailable,
    ReleaseNotFound,
    StoreError,
    StoreFull,
    StoreThrottled,
)
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
    # 409 and 412 of a change to a container: another change is in progress.
    **{(status, None): "unavailable" for status in (408, 409, 410, 412, 449, 500, 502, 503, 504)},
}
# Responses to requests that were not processed: another region takes writes, or 449 (Retry With).
UNPROCESSED = {(403, 3), (403, 1008), (449, None)}
# Statuses that decide what a caller does next: an item is absent, exists or has changed.
DECISIVE_STATUSES = (404, 409, 412)
SENTENCES: dict[ErrorKind, str] = {
    "throttled": "has no request units left for now; raise its throughput",
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


class ContainerMissing(ReleaseNotFound):
    """No such container or database, as after a prune of the release."""


class CosmosUnavailable(PartUnavailable):
    """One attempt failed, for a reason of the given kind; `permanent` if another would fail, too.

    The service may have made the write of the attempt, unless it is CosmosNotSent.
    """

    def __init__(self, message: str, kind: ErrorKind) -> None:
        super().__init__(message)
        self.kind = kind
        self.permanent = kind in PERMANENT


class CosmosDenied(AccessDenied, CosmosUnavailable):
    """One attempt failed, for a reason in DENIED."""


class CosmosNotSent(CosmosUnavailable, NotSent):
    """One attempt failed, and the service has not processed it."""


class CosmosThrottled(StoreThrottled, PartUnavailable):
    """429: the request units of this second are spent."""

    kind: ErrorKind = "throttled"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that is not a success."""

    status: int
    substatus: int
    """Tells reasons of a status apart; 0 if there is none."""

    message: str | None
    """May hold secrets; None if the body is not that of an error of the service, as a proxy may have sent it."""

    retry_after_s: float = 0.0
    """Of a 429."""

    @classmethod
    def of(cls, status: int, message: str | None, header: Callable[[str], str | None]) -> "Refusal":
        """Return the refusal by a response; *header* returns one of its headers by a lower-case name."""
        substatus = _number(header("x-ms-substatus")) or 0
        if status == 404 and not substatus and "Owner resource does not exist" in (message or ""):
            substatus = OWNER_NOT_FOUND  # the container is missing, not the item
        return cls(status, substatus, message, _retry_after_s(header) if status == 429 else 0.0)

    @property
    def is_absent_item(self) -> bool:
        """Whether the service says that an item is absent, and not its container or something else."""
        return self.status == 404 and not self.substatus and self.message is not None


def error_for(refusal: Refusal, where: str, sentences: Mapping[ErrorKind, str] = SENTENCES) -> StoreError:
    """Return the StoreError for a response that is not a success.

    A 429 is CosmosThrottled, a missing container or database ContainerMissing, a full one StoreFull. All others are
    CosmosUnavailable, of the kind that KINDS has for the status and the substatus; CosmosDenied for those in DENIED.

    where      the service in messages: the account's database, or Azure Resource Manager
    sentences  what messages say about it, by kind
    """
    status = refusal.status
    substatus = refusal.substatus
    if status in DECISIVE_STATUSES and refusal.message is None:
        return failed(f"{where} {sentences['malformed']}: status {status} without a reason", "malformed")
    if status == 429:
        return CosmosThrottled(f"{where} {sentences['throttled']}", min(refusal.retry_after_s, MAX_RETRY_AFTER_S))

    message = first_line(refusal.message or "no reason given")
    kind = KINDS.get((status, substatus)) or KINDS.get((status, None)) or "refused"
    if status == 404 and kind == "refused":
        return ContainerMissing(f"{where} has no such database or container: {message}")
    if status == 403 and substatus == STORAGE_FULL:
        return StoreFull(f"{where} has no room left: {message}")
    unprocessed = (status, substatus) in UNPROCESSED or (status, None) in UNPROCESSED
    reason = CORRECT_CLOCK if status == 403 and WRONG_TIME in message else sentences[kind]
    sentence = f"{where} {reason} ({status}/{substatus}): {message}"
    return CosmosNotSent(sentence, kind) if unprocessed else failed(sentence, kind)


def failed(sentence: str, kind: ErrorKind) -> CosmosUnavailable:
    """Return the error for an attempt that failed for a reason of the given kind."""
    if kind == "connect":
        return CosmosNotSent(sentence, kind)
    return CosmosDenied(sentence, kind) if kind in DENIED else CosmosUnavailable(sentence, kind)


def first_line(message: str) -> str:
    """Return the first line of a message, shortened and without secrets."""
    redacted = SECRETS.sub("…", message.strip().partition("\n")[0].strip())
    return redacted if len(redacted) <= MAX_MESSAGE_CHARACTERS else f"{redacted[:MAX_MESSAGE_CHARACTERS]}…"


def no_response(failure: RequestFailed, where: str) -> CosmosUnavailable:
    """Return the error for an attempt without a response."""
    cause = failure.__cause__
    reason = ""
    if isinstance(cause, OSError):
        reason = cause.strerror or str(cause)
    sentence = f"{where} {SENTENCES[failure.kind]}"
    return failed(f"{sentence}: {reason}" if reason else sentence, failure.kind)


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
    """Parse a response that is not a success; Cosmos DB sends a JSON body with a code and a message."""

    def header(name: str) -> str | None:
        value = response.header(name.encode())
        return None if value is None else value.decode("latin-1")

    message = None
    with suppress(ValueError, KeyError):
        body = object_in(response)
        if body["code"]:
            message = str(body["message"])
    return Refusal.of(response.status, message, header)


def _retry_after_s(header: Callable[[str], str | None]) -> float:
    """Return the pause that the headers of a 429 ask for; Azure Resource Manager names it in seconds."""
    wait_ms = _number(header("x-ms-retry-after-ms"))
    if wait_ms is not None:
        return wait_ms / 1000
    wait_s = _number(header("retry-after"))
    return DEFAULT_RETRY_AFTER_S if wait_s is None else wait_s


def _number(text: str | None) -> int | None:
    """Parse a header that is a number, at most nine digits of it; None for anything else."""
    return int(text[:9]) if text and text.isascii() and text.isdigit() else None


def charge_in(response: Response) -> float:
    """Return the charge of a response, by default 0. Raises ValueError."""
    ru = float(response.header(CHARGE_HEADER) or 0.0)
    if not 0.0 <= ru <= MAX_CHARGE_RU:
        raise ValueError(f"a charge of {ru} request units")
    return ru
