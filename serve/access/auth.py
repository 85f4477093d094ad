"""Who may send a request: from its headers to a client, its scopes, and what is left of its rate.

A key comes as `X-API-Key` or as `Authorization: Bearer`, never in a URL. It is looked up by its SHA-256, so the
time of an answer says nothing of the keys that exist. One that was good is found without that from then on, by Python's
own hash of text, which has another seed in each process and reveals nothing of a part of a key.

Each client with a rate has one token bucket in memory that all workers share, so its limit holds however unevenly its
connections are spread. It holds the tokens of one second and is filled at the rate; a request takes one token.
"""

import fcntl
import mmap
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from ipaddress import ip_address
from math import ceil
from pathlib import Path
from time import monotonic

from multidict import istr

from hotplate.serve.access.keys import EVENTS, IF_MISSING, MAX_CLIENTS, READ, SCOPES, KeyHolder, digest_of, parse
from hotplate.serve.errors import ServiceMisused
from hotplate.serve.problems import Problem
from hotplate.serve.settings import ServiceSettings
from hotplate.serve.watched import WatchedFiles

API_KEY = istr("X-API-Key")
AUTHORIZATION = istr("Authorization")
BEARER = "bearer "
REALM = 'Bearer realm="hotplate"'
# What a route takes, by its template: probes and descriptions nothing, and what is not named here `read`.
SCOPES_BY_ROUTE: dict[str, str | None] = {
    "/": None,
    "/livez": None,
    "/readyz": None,
    "/docs": None,
    "/openapi.json": None,
    "/swagger.json": None,
    "/v1/events": EVENTS,
}
# How much a bucket holds, as a client's requests come in bursts.
BURST_S = 1.0
# How many seconds' tokens a worker admits on credit, and for how long it then refuses a client.
CREDIT_S = 0.005
BUSY_S = 0.001


class SharedRates:
    """The buckets of all clients in memory that all workers share; made before the workers, as long as the service.

    Two arrays of MAX_CLIENTS cells of eight bytes: whose bucket it is (a hash of name and rate), and when it
    will be full.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("hotplate-rates", os.MFD_CLOEXEC)
        os.ftruncate(self._file, 2 * MAX_CLIENTS * 8)
        cells = memoryview(mmap.mmap(self._file, 2 * MAX_CLIENTS * 8))
        self._owners = cells[: MAX_CLIENTS * 8].cast("Q")
        self.full_at = cells[MAX_CLIENTS * 8 :].cast("d")

    def buckets(self, clients: Iterable[KeyHolder]) -> dict[str, "Bucket"]:
        """Return the buckets of the clients that have a rate, by name; each worker finds the same for a name.

        Cells of clients that are gone are given to others when there are no more free ones. Waits for other workers
        that do the same, some microseconds each.
        """
        rates = {client.name: client.rate for client in clients if client.rate is not None}
        # A client with another rate begins with a full bucket: the debt of the old one was counted at the old rate.
        owners = {
            name: int.from_bytes(sha256(f"{name} {rate}".encode()).digest()[:8]) | 1 for name, rate in rates.items()
        }
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, MAX_CLIENTS)
        try:
            cells = {owner: cell for cell, owner in enumerate(self._owners) if owner}
            wanted = set(owners.values())
            free = [cell for cell, owner in enumerate(self._owners) if not owner]
            free = [cell for owner, cell in cells.items() if owner not in wanted] + free[::-1]
            for owner in wanted - cells.keys():
                cells[owner] = free.pop()
                self._owners[cells[owner]] = owner
                self.full_at[cells[owner]] = 0.0
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, MAX_CLIENTS)
        return {name: Bucket(self, cells[owners[name]], rate) for name, rate in rates.items()}

    def try_lock(self, cell: int) -> bool:
        """Lock one cell against other processes; False if one of them holds it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, cell)
        except OSError:
            return False
        return True

    def unlock(self, cell: int) -> None:
        """Unlock one cell."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, cell)


class Bucket:
    """One client's tokens; used until the keys are loaded again.

    A worker does not wait for the lock. If another holds it, a request is admitted on credit, which this worker pays
    with the next token that it takes. The kernel frees the lock of a process that dies.
    """

    __slots__ = ("_capacity", "_cell", "_credit", "_owed", "_rate", "_refused_until", "_shared")

    def __init__(self, shared: SharedRates, cell: int, rate: float) -> None:
        self._shared = shared
        self._cell = cell
        self._rate = rate
        self._capacity = max(1.0, rate * BURST_S)
        self._credit = max(1, int(rate * CREDIT_S))
        self._owed = 0
        self._refused_until = 0.0

    def take(self) -> float:
        """Take a token for one request: 0 if there was one, else the seconds until there is."""
        now = monotonic()
        if now < self._refused_until:
            return self._refused_until - now
        if not self._shared.try_lock(self._cell):
            if self._owed >= self._credit:
                return BUSY_S
            self._owed += 1
            return 0.0
        try:
            return self._take_locked(now)
        finally:
            self._shared.unlock(self._cell)

    def _take_locked(self, now: float) -> float:
        full_at = max(now, self._shared.full_at[self._cell])
        there = self._capacity - (full_at - now) * self._rate
        if there < 1:
            wait_s = (1 - there) / self._rate
            self._refused_until = now + wait_s
            return wait_s
        self._shared.full_at[self._cell] = full_at + (1 + self._owed) / self._rate
        self._owed = 0
        return 0.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, and what it may do; lives until the keys are loaded again."""

    name: str
    scopes: frozenset[str]
    digest: bytes = b""
    bucket: Bucket | None = None


# Returns who sent a token of somebody else's, known by its digest; raises a Problem if it is not valid.
VerifyToken = Callable[[str, bytes], Awaitable[Caller]]


class Guard:
    """Lets requests in, or refuses them; made before the workers, and followed by each of them for itself."""

    def __init__(
        self,
        keys: Path | None = None,
        *,
        anonymous: frozenset[str] = frozenset(SCOPES),
        verify_token: VerifyToken | None = None,
    ) -> None:
        """Take the file of keys, what verifies tokens, and what callers with neither may do; raises ServiceMisused."""
        self.anonymous = Caller("anonymous", anonymous)
        self.reads_take_a_key = READ not in anonymous
        self.knows_clients = keys is not None or verify_token is not None
        self._verify_token = verify_token
        self._callers = dict[bytes, Caller]()
        self._seen = dict[str, Caller]()
        """Callers by their keys, as these come: to hash one takes longer than all the rest. Never what is not a key."""
        self.watched = list[WatchedFiles]()
        if keys:
            use = partial(self._parse, keys, SharedRates())
            self.watched.append(WatchedFiles([keys], use, if_missing=IF_MISSING))

    def _parse(self, keys: Path, rates: SharedRates, contents: Sequence[bytes]) -> Callable[[], None]:
        clients = parse(keys, contents[0])
        buckets = rates.buckets(clients)
        callers = {
            digest: Caller(client.name, frozenset(client.scopes), digest, buckets.get(client.name))
            for client in clients
            for digest in client.digests()
        }

        def use() -> None:
            self._callers, self._seen = callers, {}

        return use

    async def admit(self, headers: Mapping[str, str], scope: str) -> Caller:
        """Return who sent a request for something that takes *scope*.

        Raises a Problem: 401 without a key or with an unknown one, 403 if it lacks the scope, 429 where the client's
        rate is used up.
        """
        found = self.caller(credential_of(headers))
        caller = found if isinstance(found, Caller) else await found()
        self.charge(caller, scope)
        return caller

    def caller(self, credential: str | None) -> Caller | Callable[[], Awaitable[Caller]]:
        """Return who sent a key of ours, or no key; of a token, what verifies it and returns who sent it.

        Raises a Problem, 401, for what is neither.
        """
        if credential is None or not self.knows_clients:
            return self.anonymous
        known = self._seen.get(credential)
        if known is not None:
            return known
        digest = digest_of(credential)
        known = self._callers.get(digest)
        if known is not None and compare_digest(known.digest, digest):
            self._seen[credential] = known
            return known
        if self._verify_token is not None and credential.count(".") == 2:
            return partial(self._verify_token, credential, digest)
        raise refused_credential("unknown-key", "the key is not known; it may have been revoked")

    def charge(self, caller: Caller, scope: str) -> None:
        """Count a request for something that takes *scope*; raises a Problem, 401, 403 or 429, as `admit` does."""
        if scope not in caller.scopes:
            if caller is self.anonymous:
                detail = "this takes a key; send it as X-API-Key or as Authorization: Bearer"
                raise Problem(401, "no-key", detail, {"WWW-Authenticate": REALM})
            detail = f"this takes the scope {scope}, which the key or token lacks"
            challenge = f'{REALM}, error="insufficient_scope", scope="{scope}"'
            raise Problem(403, "missing-scope", detail, {"WWW-Authenticate": challenge})
        if caller.bucket is not None and (wait_s := caller.bucket.take()) > 0:
            detail = "this client has sent all the requests that it may for now"
            raise Problem(429, "rate-limited", detail, {"Retry-After": str(ceil(wait_s))})


def scope_of(template: str) -> str | None:
    """Return the scope that a route takes; None for what everybody may see."""
    return SCOPES_BY_ROUTE.get(template, READ)


def guard_of(settings: ServiceSettings, verify_token: VerifyToken | None) -> Guard:
    """Make the guard that the settings ask for, and *verify_token* for those of an issuer.

    Callers on loopback are on this machine and may do everything, unless a key is needed. Raises
    ServiceMisused for a service that would face others without anybody having said who may call it.
    """
    if settings.keys is not None or verify_token is not None:
        anonymous = frozenset({READ} if settings.anonymous else ())
    elif is_loopback(settings.host):
        anonymous = frozenset(SCOPES)
    elif settings.anonymous:
        anonymous = frozenset({READ})
    else:
        raise ServiceMisused(
            f"{settings.host} can be reached from other machines: give --keys FILE to say who may call the service "
            "(hotplate keys create makes one), or --anonymous to let everybody read"
        )
    return Guard(settings.keys, anonymous=anonymous, verify_token=verify_token)


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine only; a name other than localhost counts as not."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def credential_of(headers: Mapping[str, str]) -> str | None:
    """Return the key or token of a request; an `Authorization` of another scheme is not one, but may be a proxy's."""
    key = headers.get(API_KEY)
    return key if key is not None else bearer(headers.get(AUTHORIZATION))


def bearer(given: str | None) -> str | None:
    """Return the key or token of an `Authorization`; None if it is of another scheme."""
    if given is None or given[: len(BEARER)].lower() != BEARER:
        return None
    return given[len(BEARER) :].strip()


def refused_credential(name: str, detail: str) -> Problem:
    """Refuse a key or a token that is there, but no good; *name* is the problem's."""
    return Problem(401, name, detail, {"WWW-Authenticate": f'{REALM}, error="invalid_token"'})
