"""What a response of the service means: its status and substatus as one of our errors.

StoreError
├── ContainerMissing                       the account has no such container, or no such database
├── StoreThrottled, PartUnavailable
│   └── CosmosThrottled                    429
└── PartUnavailable
    └── CosmosUnavailable                  one attempt failed; its kind says how
"""

import re
import ssl
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import orjson

from hotplate.stores.errors import PartUnavailable, StoreError, StoreFull, StoreThrottled
from hotplate.stores.http1 import RequestFailed, Response

# What went wrong with one attempt, as metrics name it.
ErrorKind = Literal[
    "throttled", "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused"
]

# Kinds that another attempt meets again, until an operator changes something.
PERMANENT = ("unauthorized", "forbidden", "refused")
# Kinds that another attempt may not meet: at once, or in another region.
TRANSIENT: frozenset[ErrorKind] = frozenset({"connect", "reset", "unavailable"})

# The limit for any operation but a lookup; the service itself ends operations then.
DEADLINE_S = 5.0

MAX_MESSAGE_CHARACTERS = 300
# How far a request's date may be from the service's clock.
MAX_SKEW_S = 15 * 60
# When a 429 does not say for how long: its budget is one of seconds.
DEFAULT_RETRY_AFTER_S = 1.0
# No response costs more; a sum that is kept for ever must not meet an infinity.
MAX_CHARGE_RU = 1e6
CHARGE_HEADER = b"x-ms-request-charge"

SECRETS = re.compile(r"(?i)(sig(?:=|%3d)|type(?:=|%3d)(?:master|aad))\S*|[A-Za-z0-9+/_-]{40,}[=.A-Za-z0-9+/_-]*")
SESSION_NOT_AVAILABLE = 1002
OWNER_NOT_FOUND = 1003
CONTAINER_BEING_CREATED = 1013
STORAGE_FULL = 1014

# How a sentence says that there was no response.
NO_RESPONSE: dict[ErrorKind, str] = {
    "connect": "cannot be reached",
    "reset": "ended the connection before it answered",
    "malformed": "sent what is not an answer",
    "timeout": "did not answer in time",
}

TEMPORARY: tuple[str, ErrorKind] = ("cannot answer for now ({codes}): {message}", "unavailable")
WRONG_REGION: tuple[str, ErrorKind] = (
    "does not do this in the region that was asked ({codes}): {message}",
    "unavailable",
)
# What an account says whose keys may not change metadata; there is no substatus for it.
KEY_METADATA_DISABLED = "not allowed through Azure Cosmos DB endpoint"
FORBIDDEN = (
    "forbids this; the identity needs the role Cosmos DB Built-in Data Contributor (Data Reader, to serve), or its "
    "address a place in the firewall's list ({codes}: {message})"
)
NOT_FOR_IDENTITIES = (
    "lets no identity of Entra ID make, scale or drop databases and containers; add subscription= and resource_group= "
    "to its URL, or give the account's key ({codes}: {message})"
)
NOT_FOR_KEYS = (
    "lets its key make, scale or drop no databases and containers; add subscription= and resource_group= to its URL "
    "({codes}: {message})"
)
# The meaning of a status, by its substatus or alone; any other status is a refusal. Sources:
# https://learn.microsoft.com/rest/api/cosmos-db/http-status-codes-for-cosmosdb and the troubleshooting pages for
# forbidden and unavailable responses next to it.
MEANINGS: dict[tuple[int, int | None], tuple[str, ErrorKind]] = {
    (403, None): (FORBIDDEN, "forbidden"),
    (403, 3): WRONG_REGION,
    (403, 1008): WRONG_REGION,
    (403, 5300): (NOT_FOR_IDENTITIES, "forbidden"),
    (404, SESSION_NOT_AVAILABLE): (
        "has not seen yet what was written a moment ago ({codes}: {message})",
        "unavailable",
    ),
    (404, CONTAINER_BEING_CREATED): ("is still making the container ({codes}: {message})", "unavailable"),
    **{(status, None): TEMPORARY for status in (408, 410, 449, 500, 502, 503, 504)},
}


class ContainerMissing(StoreError):
    """The account has no such container, or no such database; the caller knows what that means."""


class CosmosUnavailable(PartUnavailable):
    """One attempt failed; `kind` says how, and `permanent` whether another fails alike."""

    def __init__(self, message: str, kind: ErrorKind, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.kind = kind

        self.permanent = kind in PERMANENT


class CosmosThrottled(StoreThrottled, PartUnavailable):
    """The partition's request units of this second are spent, or the account's for metadata; others may be left."""

    kind: ErrorKind = "throttled"


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response that is not a success."""

    status: int
    substatus: int
    message: str
    """The service's own; it is cut and redacted of secrets before it is shown."""

    retry_after_s: float | None = None
    skew_s: float = 0.0
    """How far our clock is ahead of the service's."""


def error_for(response: ErrorResponse, where: str, advice: str = "") -> StoreError:
    """Return our error for a response; *where* is the store's URL without secrets, *advice* what to do about a 401."""
    status, substatus, message = response.status, response.substatus, first_line(response.message)
    if status == 429:
        after_s = DEFAULT_RETRY_AFTER_S if response.retry_after_s is None else response.retry_after_s
        return CosmosThrottled(f"{where} has no request units left for now; raise its throughput", after_s)
    if status == 404 and substatus not in (SESSION_NOT_AVAILABLE, CONTAINER_BEING_CREATED):
        return ContainerMissing(f"{where} has no such database or container: {message}")
    if status == 403 and substatus == STORAGE_FULL:
        return StoreFull(f"{where} has no room left: {message}")
    if status == 401:
        why = _clock_difference(response.skew_s) or f"{advice} ({message})"
        return CosmosUnavailable(f"{where} does not let us in: {why}", "unauthorized")
    known = MEANINGS.get((status, substatus)) or MEANINGS.get((status, None))
    sentence, kind = known or ("refused ({codes}): {message}", "refused")
    if status == 403 and KEY_METADATA_DISABLED in response.message:
        sentence = NOT_FOR_KEYS
    return CosmosUnavailable(f"{where} {sentence.format(codes=f'{status}/{substatus}', message=message)}", kind)


def _clock_difference(skew_s: float) -> str:
    if abs(skew_s) <= MAX_SKEW_S:
        return ""
    way = "ahead of" if skew_s > 0 else "behind"
    return f"this machine's clock is {round(abs(skew_s) / 60)} minutes {way} the service's; set it right"


def first_line(message: str) -> str:
    """Return the first line of a service's message, redacted of secrets and cut."""
    redacted = SECRETS.sub("…", message.strip().partition("\n")[0].strip())
    return redacted if len(redacted) <= MAX_MESSAGE_CHARACTERS else f"{redacted[:MAX_MESSAGE_CHARACTERS]}…"


def no_response(failure: RequestFailed, where: str) -> CosmosUnavailable:
    """Return our error for an attempt without a response."""
    cause, reason = failure.__cause__, ""
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = f": its certificate is not trusted ({cause.verify_message}); name who vouches for it with ca="
    elif isinstance(cause, OSError) and cause.strerror:
        reason = f": {cause.strerror}"
    sentence = f"{where} {NO_RESPONSE[failure.kind]}{reason}"
    return CosmosUnavailable(sentence, failure.kind, retry_after_s=failure.retry_after_s)


class MalformedResponse(ValueError):
    """A response makes no sense; its text ends the sentence `… sent`."""


def object_in(response: Response) -> dict[str, Any]:
    """Return the JSON object that a response is. Raises MalformedResponse."""
    try:
        value = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise MalformedResponse("something that is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedResponse("JSON that is not an object")
    return value


def item_in(response: Response, name: str) -> dict[str, Any]:
    """Return the item of that *name*. Raises MalformedResponse."""
    item = object_in(response)
    if item.get("id") != name:
        raise MalformedResponse(f"another item than {name}")
    return item


def error_response(response: Response, sent_at: float) -> ErrorResponse:
    """Return what a response that is not a success says.

    A proxy before the service may have sent it: raises MalformedResponse for a 404, 409 or 412 without the service's
    own body, because those are taken for facts about an item.
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
    return ErrorResponse(response.status, substatus, message, retry_after_s, sent_at - (date_in(response) or sent_at))


def date_in(response: Response) -> float | None:
    """Return the service's clock in seconds; None if the response does not have it."""
    try:
        return parsedate_to_datetime((response.header(b"date") or b"").decode("latin-1")).timestamp()
    except ValueError:
        return None


def _integer(value: bytes | None) -> int | None:
    return int(value[:9]) if value is not None and value.isdigit() else None


def charge_in(response: Response) -> float:
    """Return a response's charge; 0 if it has none. Raises MalformedResponse."""
    try:
        ru = float(response.header(CHARGE_HEADER) or 0.0)
    except ValueError:
        ru = -1.0
    if not 0.0 <= ru <= MAX_CHARGE_RU:
        raise MalformedResponse("a charge that is not a number of request units")
    return ru
