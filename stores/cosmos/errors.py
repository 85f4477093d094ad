"""What Cosmos DB or the way to it says, as one of our errors; the one place where statuses end."""

import re
from dataclasses import dataclass
from typing import Literal

from stores.errors import StoreError, StoreFull, StoreThrottled, StoreUnavailable

Kind = Literal[
    "throttled", "timeout", "connect", "reset", "malformed", "unavailable", "unauthorized", "forbidden", "refused"
]
"""What went wrong with one attempt, as metrics name it."""

LASTING = ("unauthorized", "forbidden", "refused")
"""Kinds that another attempt meets again: somebody has to mend something first."""

MOST_SHOWN = 300
"""Characters of the service's own message."""

SKEW_S = 15 * 60
"""How far a request's date may be from the service's clock."""

SECRETS = re.compile(r"(?i)(sig(?:=|%3d)|type(?:=|%3d)(?:master|aad))\S*|[A-Za-z0-9+/_-]{40,}[=.A-Za-z0-9+/_-]*")
SESSION_UNSEEN, BEING_MADE, NO_ROOM = 1002, 1013, 1014
REFUSED: tuple[str, Kind] = ("{where} refused ({codes}): {said}", "refused")
FOR_NOW: tuple[str, Kind] = ("{where} cannot answer for now ({codes}): {said}", "unavailable")
PASSING: frozenset[Kind] = frozenset({"connect", "reset", "unavailable"})
"""Failures that another attempt may not meet: at once, or in another region."""

UNANSWERED: dict[Kind, str] = {
    "connect": "cannot be reached",
    "reset": "ended the connection before it answered",
    "malformed": "sent what is no answer",
    "timeout": "did not answer in time",
}
"""How a sentence says that there was no answer."""

ELSEWHERE: tuple[str, Kind] = ("{where} does not do this in the region that was asked ({codes}): {said}", "unavailable")
FORBIDDEN = (
    "{where} forbids this; the identity needs the role Cosmos DB Built-in Data Contributor (Data Reader, to serve), or "
    "its address a place in the firewall's list ({codes}: {said})"
)
NOT_FOR_IDENTITIES = (
    "{where} lets no identity of Entra ID make, scale or drop databases and containers; add subscription= and "
    "resource_group= to its URL, or give the account's key ({codes}: {said})"
)
THROUGH_ARM = "not allowed through Azure Cosmos DB endpoint"
"""What an account says whose keys may not change metadata; it gives that no substatus of its own."""

NOT_FOR_KEYS = (
    "{where} lets its key make, scale or drop no databases and containers; add subscription= and resource_group= to "
    "its URL ({codes}: {said})"
)
MEANINGS: dict[tuple[int, int | None], tuple[str, Kind]] = {
    (403, None): (FORBIDDEN, "forbidden"),
    (403, 3): ELSEWHERE,
    (403, 1008): ELSEWHERE,
    (403, 5300): (NOT_FOR_IDENTITIES, "forbidden"),
    (404, SESSION_UNSEEN): ("{where} has not seen yet what was written a moment ago ({codes}: {said})", "unavailable"),
    (404, BEING_MADE): ("{where} is still making the container ({codes}: {said})", "unavailable"),
    **{(status, None): FOR_NOW for status in (408, 410, 449, 500, 502, 503, 504)},
}
"""What a status means, by its substatus or by itself; what is not listed was refused.

Sources: https://learn.microsoft.com/rest/api/cosmos-db/http-status-codes-for-cosmosdb and the troubleshooting pages
for forbidden and unavailable answers beside it.
"""

RETRY_S = 1.0
"""When a 429 does not say for how long: its budget is one of seconds."""


class ContainerMissing(StoreError):
    """The account has no such container, or no such database; the caller knows what that means."""


class CosmosUnavailable(StoreUnavailable):
    """One attempt failed; `kind` says how, and `lasting` whether another would fail alike."""

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def lasting(self) -> bool:
        """Whether another attempt would fail alike until somebody mends something."""
        return self.kind in LASTING


class CosmosThrottled(StoreThrottled):
    """The partition's second is spent, or the account's metadata limit."""

    kind: Kind = "throttled"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none of those a request can mean."""

    status: int
    substatus: int
    message: str
    """The service's own; it is cut and freed of secrets before it is shown."""

    retry_after_s: float | None = None
    skew_s: float = 0.0
    """How far our clock is ahead of the one that answered."""


def translated(refusal: Refusal, where: str, advice: str = "") -> StoreError:
    """Return our error for an answer; *where* is the store's URL without secrets, *advice* what to do about a 401."""
    said = shown(refusal.message)
    if refusal.status == 429:
        after_s = RETRY_S if refusal.retry_after_s is None else refusal.retry_after_s
        return CosmosThrottled(f"{where} has no request units left for now; raise its throughput", after_s)
    if refusal.status == 404 and refusal.substatus not in (SESSION_UNSEEN, BEING_MADE):
        return ContainerMissing(f"{where} has no such database or container: {said}")
    if refusal.status == 403 and refusal.substatus == NO_ROOM:
        return StoreFull(f"{where} has no room left: {said}")
    if refusal.status == 401:
        return CosmosUnavailable(_unauthorized(refusal, where, said, advice), "unauthorized")
    codes = refusal.status, refusal.substatus
    sentence, kind = MEANINGS.get(codes) or MEANINGS.get((refusal.status, None)) or REFUSED
    if refusal.status == 403 and THROUGH_ARM in refusal.message:
        sentence, kind = NOT_FOR_KEYS, "forbidden"
    shown_codes = f"{refusal.status}/{refusal.substatus}"
    return CosmosUnavailable(sentence.format(where=where, codes=shown_codes, said=said), kind)


def shown(message: str) -> str:
    """Return the first line of a service's message without what may be secret, and not too long."""
    line = message.strip().partition("\n")[0].strip()
    freed = SECRETS.sub("…", line)
    return freed if len(freed) <= MOST_SHOWN else f"{freed[:MOST_SHOWN]}…"


def _unauthorized(refusal: Refusal, where: str, said: str, advice: str) -> str:
    if abs(refusal.skew_s) > SKEW_S:
        way = "ahead of" if refusal.skew_s > 0 else "behind"
        minutes = round(abs(refusal.skew_s) / 60)
        return (
            f"{where} does not let us in: this machine's clock is {minutes} minutes {way} the service's; set it right"
        )
    return f"{where} does not let us in: {advice} ({said})"
