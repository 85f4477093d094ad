"""What the service's responses mean, its failures as our errors, and what is tried again, for how long and how fast.

StoreError
├── ContainerMissing                       the account has no such container, or no such database
├── StoreThrottled, PartUnavailable
│   └── CosmosThrottled                    429
└── PartUnavailable
    └── CosmosUnavailable                  one attempt failed; its kind says how
"""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from math import inf
from typing import Any, Literal, TypeVar

import orjson

from hotplate.stores.errors import PartUnavailable, StoreError, StoreFull, StoreThrottled
from hotplate.stores.http1 import RequestFailed, Response
from hotplate.stores.throttle import Backoff

T = TypeVar("T")

# What went wrong with one attempt, as metrics name it.
ErrorKind = Literal[
    "throttled", "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused"
]

# Kinds that another attempt meets again: somebody has to mend something first.
PERMANENT = ("unauthorized", "forbidden", "refused")

# Characters of the service's own message.
MAX_MESSAGE_CHARACTERS = 300

# How far a request's date may be from the service's clock.
MAX_SKEW_S = 15 * 60

SECRETS = re.compile(r"(?i)(sig(?:=|%3d)|type(?:=|%3d)(?:master|aad))\S*|[A-Za-z0-9+/_-]{40,}[=.A-Za-z0-9+/_-]*")
SESSION_NOT_AVAILABLE = 1002
CONTAINER_BEING_CREATED = 1013
STORAGE_FULL = 1014
REFUSED: tuple[str, ErrorKind] = ("{where} refused ({codes}): {message}", "refused")
TEMPORARY: tuple[str, ErrorKind] = ("{where} cannot answer for now ({codes}): {message}", "unavailable")
# Failures that another attempt may not meet: at once, or in another region.
TRANSIENT: frozenset[ErrorKind] = frozenset({"connect", "reset", "unavailable"})

# How a sentence says that there was no response.
NO_RESPONSE: dict[ErrorKind, str] = {
    "connect": "cannot be reached",
    "reset": "ended the connection before it answered",
    "malformed": "sent what is not an answer",
    "timeout": "did not answer in time",
}

WRONG_REGION: tuple[str, ErrorKind] = (
    "{where} does not do this in the region that was asked ({codes}): {message}",
    "unavailable",
)
FORBIDDEN = (
    "{where} forbids this; the identity needs the role Cosmos DB Built-in Data Contributor (Data Reader, to serve), or "
    "its address a place in the firewall's list ({codes}: {message})"
)
NOT_FOR_IDENTITIES = (
    "{where} lets no identity of Entra ID make, scale or drop databases and containers; add subscription= and "
    "resource_group= to its URL, or give the account's key ({codes}: {message})"
)
# What an account says whose keys may not change metadata; it gives that no substatus of its own.
KEY_METADATA_DISABLED = "not allowed through Azure Cosmos DB endpoint"

NOT_FOR_KEYS = (
    "{where} lets its key make, scale or drop no databases and containers; add subscription= and resource_group= to "
    "its URL ({codes}: {message})"
)
# What a status means, by its substatus or alone; any other status is a refusal. Sources:
# https://learn.microsoft.com/rest/api/cosmos-db/http-status-codes-for-cosmosdb and the troubleshooting pages for
# forbidden and unavailable responses next to it.
MEANINGS: dict[tuple[int, int | None], tuple[str, ErrorKind]] = {
    (403, None): (FORBIDDEN, "forbidden"),
    (403, 3): WRONG_REGION,
    (403, 1008): WRONG_REGION,
    (403, 5300): (NOT_FOR_IDENTITIES, "forbidden"),
    (404, SESSION_NOT_AVAILABLE): (
        "{where} has not seen yet what was written a moment ago ({codes}: {message})",
        "unavailable",
    ),
    (404, CONTAINER_BEING_CREATED): ("{where} is still making the container ({codes}: {message})", "unavailable"),
    **{(status, None): TEMPORARY for status in (408, 410, 449, 500, 502, 503, 504)},
}

# When a 429 does not say for how long: its budget is one of seconds.
DEFAULT_RETRY_AFTER_S = 1.0


class ContainerMissing(StoreError):
    """The account has no such container, or no such database; the caller knows what that means."""


class CosmosUnavailable(PartUnavailable):
    """One attempt failed; `kind` says how, and `permanent` whether another would fail alike."""

    def __init__(self, message: str, kind: ErrorKind, *, retry_after_s: float = 0.0) -> None:
        """Take for how long no other is made, besides."""
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s

    @property
    def permanent(self) -> bool:
        """Whether another attempt would fail alike until somebody mends something."""
        return self.kind in PERMANENT


class CosmosThrottled(StoreThrottled, PartUnavailable):
    """The partition's request units of this second are spent, or the account's for metadata; others may be left."""

    kind: ErrorKind = "throttled"


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response that is neither a success nor one of the MEANINGFUL statuses."""

    status: int
    substatus: int
    message: str
    """The service's own; it is cut and redacted of secrets before it is shown."""

    retry_after_s: float | None = None
    skew_s: float = 0.0
    """How far our clock is ahead of the one that responded."""


def error_for(response: ErrorResponse, where: str, advice: str = "") -> StoreError:
    """Return our error for a response; *where* is the store's URL without secrets, *advice* what to do about a 401."""
    message = first_line(response.message)
    if response.status == 429:
        after_s = DEFAULT_RETRY_AFTER_S if response.retry_after_s is None else response.retry_after_s
        return CosmosThrottled(f"{where} has no request units left for now; raise its throughput", after_s)
    if response.status == 404 and response.substatus not in (SESSION_NOT_AVAILABLE, CONTAINER_BEING_CREATED):
        return ContainerMissing(f"{where} has no such database or container: {message}")
    if response.status == 403 and response.substatus == STORAGE_FULL:
        return StoreFull(f"{where} has no room left: {message}")
    if response.status == 401:
        return CosmosUnavailable(_unauthorized(response, where, message, advice), "unauthorized")
    codes = response.status, response.substatus
    sentence, kind = MEANINGS.get(codes) or MEANINGS.get((response.status, None)) or REFUSED
    if response.status == 403 and KEY_METADATA_DISABLED in response.message:
        sentence, kind = NOT_FOR_KEYS, "forbidden"
    codes_text = f"{response.status}/{response.substatus}"
    return CosmosUnavailable(sentence.format(where=where, codes=codes_text, message=message), kind)


def first_line(message: str) -> str:
    """Return the first line of a service's message without what may be secret, and not too long."""
    line = message.strip().partition("\n")[0].strip()
    redacted = SECRETS.sub("…", line)
    return redacted if len(redacted) <= MAX_MESSAGE_CHARACTERS else f"{redacted[:MAX_MESSAGE_CHARACTERS]}…"


def _unauthorized(response: ErrorResponse, where: str, message: str, advice: str) -> str:
    if abs(response.skew_s) > MAX_SKEW_S:
        way = "ahead of" if response.skew_s > 0 else "behind"
        minutes = round(abs(response.skew_s) / 60)
        return (
            f"{where} does not let us in: this machine's clock is {minutes} minutes {way} the service's; set it right"
        )
    return f"{where} does not let us in: {advice} ({message})"


CHARGE_HEADER = b"x-ms-request-charge"
# No response costs more; a sum that is kept for ever must not meet an infinity.
MAX_CHARGE_RU = 1e6

OWNER_NOT_FOUND = 1003
# Statuses that say how things are, not that something failed.
MEANINGFUL = (404, 409, 412)


class MalformedResponse(ValueError):
    """A response makes no sense; its text ends the sentence `… sent`."""


def item_in(response: Response, name: str) -> dict[str, Any]:
    """Return the item of that *name*. Raises MalformedResponse."""
    item = object_in(response)
    if item.get("id") != name:
        raise MalformedResponse(f"another item than {name}")
    return item


def object_in(response: Response) -> dict[str, Any]:
    """Return the JSON object that a response is. Raises MalformedResponse."""
    try:
        value = orjson.loads(response.body)
    except orjson.JSONDecodeError:
        raise MalformedResponse("something that is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedResponse("JSON that is not an object")
    return value


def is_absent(response: Response) -> bool:
    """Return whether the item, and nothing that holds it, does not exist. Raises MalformedResponse."""
    return response.status == 404 and error_response(response, 0.0).substatus == 0


def error_response(response: Response, sent_at: float) -> ErrorResponse:
    """Return what a response that is not a success says; it may come from whatever stands before the service.

    Raises MalformedResponse if a status that would be taken for data (`MEANINGFUL`) is not the service's own.
    """
    try:
        message = _message(response)
    except MalformedResponse:
        if response.status in MEANINGFUL:
            raise
        message = "no reason given"
    substatus = _integer(response.header(b"x-ms-substatus")) or 0
    if response.status == 404 and substatus == 0 and "Owner resource does not exist" in message:
        substatus = OWNER_NOT_FOUND
    retry_after_ms = _integer(response.header(b"x-ms-retry-after-ms"))
    service_time = date_in(response)
    return ErrorResponse(
        response.status,
        substatus,
        message,
        None if retry_after_ms is None else retry_after_ms / 1000,
        0.0 if service_time is None else sent_at - service_time,
    )


def _message(response: Response) -> str:
    body = object_in(response)
    message = body.get("message")
    if "code" not in body or not isinstance(message, str):
        raise MalformedResponse(f"status {response.status} without a reason")
    return message


def date_in(response: Response) -> float | None:
    """Return the service's clock in seconds, as the response says; None if it does not."""
    value = response.header(b"date")
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value.decode("latin-1")).timestamp()
    except ValueError:
        return None


def _integer(value: bytes | None) -> int | None:
    return int(value[:9]) if value is not None and value.isdigit() else None


def charge_in(response: Response) -> float:
    """Return a response's charge; 0 if it does not say. Raises MalformedResponse."""
    value = response.header(CHARGE_HEADER)
    try:
        ru = 0.0 if value is None else float(value)
    except ValueError:
        ru = -1.0
    if not 0.0 <= ru <= MAX_CHARGE_RU:
        raise MalformedResponse("a charge that is not a number of request units")
    return ru


def no_response(failure: RequestFailed, where: str) -> CosmosUnavailable:
    """Return our error for an attempt without a response."""
    sentence = f"{where} {NO_RESPONSE[failure.kind]}{_connection_error(failure.__cause__)}"
    return CosmosUnavailable(sentence, failure.kind, retry_after_s=failure.retry_after_s)


def _connection_error(cause: BaseException | None) -> str:
    """Return what the system says of a connection that could not be made, as the end of a sentence."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f": its certificate is not trusted ({cause.verify_message}); name who vouches for it with ca="
    return f": {cause.strerror}" if isinstance(cause, OSError) and cause.strerror else ""


# When any operation but a lookup is given up; the service itself ends operations then.
DEADLINE_S = 5.0

# Budget that was not spent in time may be caught up with, up to this much time's worth; never more at once.
BURST_S = 0.1

# How long one operation is tried again while the service is away; what was written stays.
UNAVAILABLE_S = 20.0

# How long 429s are retried without a single success: the service is there, and says when to come back.
THROTTLED_S = 120.0

# How long a new container may stay invisible: the service answers 404 for a while, here and there.
CONTAINER_VISIBLE_S = 60.0

# The first and the longest pause after a failure that names none; each is shortened by chance, to spread writers.
BACKOFF_S = (0.05, 2.0)

# Requests at a time: at 5 ms each, some 12,000 a second.
IN_FLIGHT = 64


class RateLimiter:
    """Says when the next request may go out; pure, on an injected clock (seconds), and lives as long as its store.

    A request is taken at what it will probably cost, before it is sent, and corrected when its charge is known: so
    requests in flight never spend more than the rate. After a 429 nothing goes out until the time that it named. That
    alone finds a container's throughput, whatever the rate: what it admits in a second is spent, and the refusals are
    those few that were in flight when it was used up.
    """

    def __init__(self, clock: Callable[[], float], rate_ru: float | None) -> None:
        """Take RU/s; None where only the service limits."""
        self._clock = clock
        self._rate_ru = rate_ru
        self._paid_at = clock()

    def wait_s(self) -> float:
        """Return how long nothing may go out; 0 where the next request may go now."""
        return max(0.0, self._paid_at - self._clock())

    def take(self, charge_ru: float) -> None:
        """Count a request in that goes out now; the next waits until this one is paid for."""
        if self._rate_ru is not None:
            self._paid_at = max(self._paid_at, self._clock() - BURST_S) + charge_ru / self._rate_ru

    def correct(self, more_ru: float) -> None:
        """Correct the charge of a request that was taken, by what it cost more, or less."""
        if self._rate_ru is not None:
            self._paid_at += more_ru / self._rate_ru

    def pause(self, seconds: float) -> None:
        """Let nothing out for so long: the service said so."""
        self._paid_at = max(self._paid_at, self._clock() + seconds)  # and no budget is saved up until then


class Retrier:
    """Tries operations until they are done, within a rate; lives as long as its store."""

    def __init__(self, clock: Callable[[], float], limiter: RateLimiter) -> None:
        self._clock = clock
        self._limiter = limiter
        self._succeeded_at = clock()
        self._admission = asyncio.Lock()

    async def call(self, attempt: Callable[[], Awaitable[T]], *, at_most_s: float = inf) -> T:
        """Call what costs no budget until it succeeds; raises what the last attempt raised.

        Gives up after UNAVAILABLE_S of failures or THROTTLED_S of 429s, or after *at_most_s* if that is less.
        """
        began_at, failing_since, backoff = self._clock(), None, Backoff(*BACKOFF_S)
        while True:
            try:
                done = await attempt()
            except CosmosThrottled as error:
                if self._clock() - max(began_at, self._succeeded_at) > min(THROTTLED_S, at_most_s):
                    raise
                failing_since, wait_s = None, error.retry_after_s
            except CosmosUnavailable as error:
                failing_since = self._clock() if failing_since is None else failing_since
                if error.permanent or self._clock() - failing_since > min(UNAVAILABLE_S, at_most_s):
                    raise
                wait_s = backoff.next_s()
            else:
                self._succeeded_at = self._clock()
                return done
            await asyncio.sleep(wait_s)

    async def until_visible(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Call, as `call` does, what comes right after its container was made, and so may come too early."""
        began_at, backoff = self._clock(), Backoff(*BACKOFF_S)
        while True:
            try:
                return await self.call(attempt)
            except ContainerMissing:
                if self._clock() - began_at > CONTAINER_VISIBLE_S:
                    raise
            await asyncio.sleep(backoff.next_s())

    async def with_budget(
        self, expected_ru: float, attempt: Callable[[], Awaitable[T]], charge_ru: Callable[[T], float]
    ) -> T:
        """Call, as `call` does, what spends of the budget: not before there is room for what it is expected to cost.

        *charge_ru* returns what the result of an attempt did cost.
        """

        async def limited() -> T:
            await self._admit(expected_ru)
            try:
                done = await attempt()
            except CosmosThrottled as error:
                self._limiter.correct(-expected_ru)
                self._limiter.pause(error.retry_after_s)
                raise
            self._limiter.correct(charge_ru(done) - expected_ru)
            return done

        return await self.call(limited)

    async def _admit(self, expected_ru: float) -> None:
        async with self._admission:  # first come, first served
            wait_s = self._limiter.wait_s()
            while wait_s > 0:
                await asyncio.sleep(wait_s)
                wait_s = self._limiter.wait_s()  # a 429 may have come in between
            self._limiter.take(expected_ru)


async def for_each(values: Sequence[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do the same to many, IN_FLIGHT at a time, begun in order; the first failure ends it and is raised."""
    left = iter(values)
    failed = False

    async def work() -> None:
        nonlocal failed
        for value in left:
            if failed:
                return
            try:
                await do(value)
            except BaseException:
                failed = True
                raise

    outcomes = await asyncio.gather(*(work() for _ in range(min(IN_FLIGHT, len(values)))), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome
