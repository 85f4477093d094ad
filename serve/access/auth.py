"""Authentication, scopes and rate limits of requests.

Keys come as `X-API-Key` or `Authorization: Bearer`, never in a URL. They are looked up by SHA-256, or in the fast lane
with a random hash seed, so response times reveal nothing about other keys.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from time import monotonic

from aiohttp import web
from multidict import istr
from xxhash import xxh3_64_intdigest

from hotplate.serve.access.keys import IF_MISSING, READ, SCOPES, KeyHolder, digest_of, parse
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.generation import Policy
from hotplate.serve.problems import Problem
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.shared_memory import shared_floats
from hotplate.serve.watched import WatchedFiles

API_KEY = istr("X-API-Key")
AUTHORIZATION = istr("Authorization")
BEARER = "bearer "
REALM = 'Bearer realm="hotplate"'
BURST_S = 1.0
# Many more than clients, to avoid collisions.
CELLS = 1 << 16
# Of times in seconds, as a share of a token.
ROUNDING = 1e-6


class Bucket:
    """The token bucket of one client in one worker: a cell of *full_at*, shared memory, holds when it will be full.

    Without a lock, two workers that take at once may count one token, which admits up to 5 % more of a client far above
    its rate.
    """

    __slots__ = ("_capacity", "_cell", "_full_at", "_rate")

    def __init__(self, full_at: "memoryview[float]", cell: int, rate: float) -> None:
        self._full_at = full_at
        self._cell = cell
        self._rate = rate
        self._capacity = max(1.0, rate * BURST_S)

    def take(self) -> float:
        """Take a token out of the bucket, for a request; return 0, or the seconds until there is one.

        The bucket gets `self._rate` tokens per second, up to `self._capacity`. Its cell has the time at which it will
        be full, so that nothing has to refill it: a token taken means 1 / rate seconds later.
        """
        now = monotonic()
        # At most empty: the cell may hold the debt of a lower rate.
        full_in_s = min(max(0.0, self._full_at[self._cell] - now), self._capacity / self._rate)

        missing_tokens = full_in_s * self._rate + 1 - self._capacity
        if missing_tokens > ROUNDING:
            return missing_tokens / self._rate

        self._full_at[self._cell] = now + full_in_s + 1 / self._rate
        return 0.0


def buckets_of(clients: Iterable[KeyHolder], full_at: "memoryview[float]") -> dict[str, Bucket]:
    """Return the token buckets of the clients that have a rate limit, by name.

    A bucket is a cell of *full_at*, which has CELLS: the hash of name and rate, or the next free one. As clients are
    taken in the order of their names, every process finds the same cells. A client with a new rate has another cell,
    and so begins with a full bucket.
    """
    buckets = dict[str, Bucket]()
    taken_cells = set[int]()
    for name, rate in sorted((client.name, client.rate) for client in clients if client.rate is not None):
        cell = xxh3_64_intdigest(f"{name} {rate}".encode()) % CELLS
        while cell in taken_cells:
            cell = (cell + 1) % CELLS
        taken_cells.add(cell)
        buckets[name] = Bucket(full_at, cell, rate)
    return buckets


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request."""

    name: str
    scopes: frozenset[str]
    bucket: Bucket | None = None


# The caller of an admitted request, if its route takes a key.
CALLER = web.RequestKey("caller", Caller)
# Verifies a token, given with its digest; raises a Problem.
VerifyToken = Callable[[str, bytes], Awaitable[Caller]]


class Guard:
    """Admits or refuses requests. Created before the workers."""

    _callers = Policy[dict[bytes, Caller]]()
    """By the digest of each key."""

    def __init__(
        self,
        keys: Path | None = None,
        *,
        anonymous: frozenset[str] = frozenset(SCOPES),
        verify_token: VerifyToken | None = None,
    ) -> None:
        """Load the file of keys, if any; raises ServiceMisused. *anonymous*: scopes without credentials."""
        self.anonymous = Caller("anonymous", anonymous)
        self.reads_take_a_key = READ not in anonymous
        self.knows_clients = keys is not None or verify_token is not None
        self._verify_token = verify_token
        self._callers = {}
        self.watched = list[WatchedFiles]()
        if keys:
            load = partial(self._load, keys, shared_floats(CELLS))
            self.watched.append(WatchedFiles([keys], load, if_missing=IF_MISSING))

    def _load(self, keys: Path, rates: "memoryview[float]", contents: Sequence[bytes]) -> None:
        """Use the clients in the file of keys from now on; raises KeysUnreadable if it cannot be parsed.

        *contents* is the content of one file, which is at *keys*. All processes take from *rates*.
        """
        clients = parse(keys, contents[0])
        buckets = buckets_of(clients, rates)

        callers = dict[bytes, Caller]()  # by the digest of each key; a client may have two
        for client in clients:
            caller = Caller(client.name, frozenset(client.scopes), buckets.get(client.name))
            callers |= dict.fromkeys(client.digests(), caller)
        self._callers = callers

    async def admit(self, headers: Mapping[str, str], scope: str) -> Caller:
        """Return the caller of a request that requires *scope*.

        Raises a Problem: 401 without a known key, 403 without the scope, 429 above the rate limit.
        """
        caller = self.caller(credential_of(headers))
        if not isinstance(caller, Caller):
            verify = caller
            caller = await verify()
        self.charge(caller, scope)
        return caller

    def caller(self, credential: str | None) -> Caller | Callable[[], Awaitable[Caller]]:
        """Return the client that sent *credential*, a key or token; raises a Problem (401) for an unknown key.

        Without a credential, or if the service knows no clients, it is the anonymous one. For a token, an awaitable
        function is returned that verifies it.
        """
        if credential is None or not self.knows_clients:
            return self.anonymous

        digest = digest_of(credential)
        caller = self._callers.get(digest)
        if caller is not None:
            return caller
        if self._verify_token is not None and credential.count(".") == 2:  # a JSON Web Token
            return partial(self._verify_token, credential, digest)
        raise refused_credential("unknown-key", "the key is not known; it may have been revoked")

    def charge(self, caller: Caller, scope: str) -> None:
        """Check that a caller may use *scope*, such as "read", and count the request against its rate limit.

        Raises a Problem: those of `require`, and 429 beyond the rate.
        """
        self.require(caller, scope)
        wait_s = 0.0 if caller.bucket is None else caller.bucket.take()
        if wait_s > 0:
            detail = "this client has sent all the requests that it may for now"
            raise Problem(429, "rate-limited", detail, {"Retry-After": str(ceil(wait_s))})

    def require(self, caller: Caller, scope: str) -> None:
        """Check that a caller may use *scope*; raises a Problem: 401 if a key is needed, 403 if the key lacks it."""
        if scope not in caller.scopes:
            if caller is self.anonymous:
                detail = "this takes a key; send it as X-API-Key or as Authorization: Bearer"
                raise Problem(401, "no-key", detail, {"WWW-Authenticate": REALM})
            detail = f"this takes the scope {scope}, which the key or token of {caller.name} lacks"
            challenge = f'{REALM}, error="insufficient_scope", scope="{scope}"'
            raise Problem(403, "missing-scope", detail, {"WWW-Authenticate": challenge})


def guard_of(settings: ServiceSettings, verify_token: VerifyToken | None) -> Guard:
    """Create the guard, which checks keys, tokens, scopes and rates; *verify_token* verifies tokens of OIDC.

    The setting --anonymous allows requests without a key or token to read. If the service has neither, such requests
    may do everything on a loopback address; on another one, ServiceMisused is raised unless --anonymous is set.
    """
    # The scopes of requests without a key or token.
    if settings.keys is not None or verify_token is not None:
        anonymous = frozenset({READ} if settings.anonymous else ())
    elif is_loopback(settings.host):
        anonymous = frozenset(SCOPES)
    elif settings.anonymous:
        anonymous = frozenset({READ})
    else:
        raise ServiceMisused(
            f"{settings.host} can be reached from other machines: give --keys FILE to require keys "
            "(hotplate keys create makes one), or --anonymous to allow reads without a key"
        )
    return Guard(settings.keys, anonymous=anonymous, verify_token=verify_token)


def is_loopback(host: str) -> bool:
    """Return whether an address is of loopback; False for names other than localhost."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def credential_of(headers: Mapping[str, str]) -> str | None:
    """Return the key or token of a request; None if it has none."""
    key = headers.get(API_KEY)
    return key if key is not None else bearer(headers.get(AUTHORIZATION))


def bearer(authorization: str | None) -> str | None:
    """Return the credential of an `Authorization` header; None for other schemes."""
    if authorization is None or authorization[: len(BEARER)].lower() != BEARER:
        return None
    return authorization[len(BEARER) :].strip()


def refused_credential(name: str, detail: str) -> Problem:
    """Return the Problem of type *name* for an invalid key or token."""
    return Problem(401, name, detail, {"WWW-Authenticate": f'{REALM}, error="invalid_token"'})
